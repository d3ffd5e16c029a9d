"""Something between a client and a server that forwards what both say, as far as a test lets it."""

import asyncio


class Relay:
    """Forwards connections to a server on `port`; what becomes of one says `pumps`."""

    def __init__(self, port):
        self._target, self._tasks = port, set()

    def pumps(self, reader, back, there, writer):
        """Two coroutines: one forwards requests from `reader` to `back`, one replies from `there` to `writer`."""
        raise NotImplementedError

    async def open(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def close(self):
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        writers = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(back)
            pumps = [asyncio.ensure_future(each) for each in self.pumps(reader, back, there, writer)]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the server is away
        finally:
            for each in writers:
                each.close()
            self._tasks.discard(asyncio.current_task())
