"""Between workers and Redis: connections that end around a commit, and replies that take their time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from threading import Thread

from featurestore.online import _CLAIM, _COMMIT
from tests.featurestore.relay import Relay

#: What may become of a commit. After the first two it was not done, but after the others it was: the worker cannot tell
#: the first four from each other.
CUTS = ("before it was sent", "while it was sent", "before its reply", "within its reply", "after its reply")
CLAIM, COMMIT = _CLAIM._sha.encode(), _COMMIT._sha.encode()


class Proxy(Relay):
    """Forwards to a Redis on `port`. Of the commits a `share` ends its connection; replies wait for `delay` seconds.

    `cuts` counts the ends by their place, `claims` how many partitions have been taken on.
    """

    def __init__(self, port, seed=0):
        super().__init__(port)
        self._rng = random.Random(seed)
        self.share, self.delay = 0.0, 0.0
        self.cuts, self.claims = Counter(), 0
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.open(), self._loop).result()
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def pumps(self, reader, back, there, writer):
        """Those of a connection, and where it ends."""
        cut = []
        return self._asks(reader, back, cut), self._tells(there, writer, cut)

    async def _asks(self, source, sink, cut):
        """Forward requests, up to a commit that is not to arrive."""
        with suppress(OSError):
            while data := await source.read(1 << 16):
                self.claims += data.count(CLAIM)
                if not cut and COMMIT in data and self._rng.random() < self.share:
                    cut.append(self._rng.choice(CUTS))
                    self.cuts[cut[0]] += 1
                    if cut[0] in CUTS[:2]:
                        sink.write(data[: self._rng.randrange(len(data)) if cut[0] == CUTS[1] else 0])
                        await sink.drain()
                        return
                sink.write(data)
                await sink.drain()

    async def _tells(self, source, sink, cut):
        """Forward replies, up to that of a commit after which the connection ends."""
        with suppress(OSError):
            while data := await source.read(1 << 16):
                await asyncio.sleep(self.delay)
                places = {CUTS[2]: 0, CUTS[3]: self._rng.randrange(len(data)), CUTS[4]: len(data)}
                upto = places.get(cut[0]) if cut else None
                sink.write(data[:upto])
                await sink.drain()
                if upto is not None:
                    return
