"""A model that may take only so long: what it has not answered by then stays without an answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread

import polars as pl

from serving.predictor import ANSWER

#: Rows that a model is asked at a time: what it has answered when its time is up is kept.
_PIECE = 256

#: The first answer may take so many seconds: something may have to be compiled or loaded for it.
_FIRST_SECONDS = 3.0


class Punctual:
    """`answers`, called in a thread of its own, for at most `seconds`.

    Rows that it had no time for get nulls. While it is still at work then, nothing more is asked of it, and later rows
    get nulls at once; what it says in the end is thrown away. It is left alone when the process ends.
    """

    def __init__(self, answers: Callable[[pl.DataFrame], pl.DataFrame], seconds: float) -> None:
        self._answers, self._seconds = answers, seconds
        self._call: _Call | None = None

    def warm(self, row: pl.DataFrame) -> None:
        """Ask for one answer that nobody needs, so that those who do find the model ready; not for ever."""
        self._asked(row, _FIRST_SECONDS)

    def answers(self, rows: pl.DataFrame) -> pl.DataFrame:
        """A row of answers, or of nulls, for each row; raises what the model failed with, in this call or the last."""
        made = [] if self._busy() else self._asked(rows, self._seconds)
        missing = len(rows) - sum(map(len, made))
        return pl.concat([*made, pl.DataFrame(schema=ANSWER).clear(missing)])

    def _busy(self) -> bool:
        if self._call is None:
            return False
        if self._call.ended.done():
            self._call.ended.result()
        return not self._call.ended.done()

    def _asked(self, rows: pl.DataFrame, seconds: float) -> list[pl.DataFrame]:
        call = self._call = _Call(self._answers, rows)
        Thread(target=call.run, name="model", daemon=True).start()
        if wait([call.ended], seconds).done:
            call.ended.result()
        call.over = True
        return call.made[:]


class _Call:
    """One question of many rows: `made` has the answers so far; once it is `over`, the rest is not asked."""

    def __init__(self, answers: Callable[[pl.DataFrame], pl.DataFrame], rows: pl.DataFrame) -> None:
        self._answers, self._rows = answers, rows
        self.made: list[pl.DataFrame] = []
        self.over = False
        self.ended: Future[None] = Future()

    def run(self) -> None:
        try:
            for piece in self._rows.iter_slices(_PIECE):
                self.made.append(self._answers(piece))
                if self.over:
                    break
        except BaseException as error:  # noqa: BLE001 - not caught here, but handed to who asked
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)
