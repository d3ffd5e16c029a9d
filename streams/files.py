"""The files of a worker, which follow the stream: archives of its topics, and the mirror of what it sends."""

from __future__ import annotations

import time

from featurestore.offline import GridWriter
from streams.forgetting import Forgetting
from streams.intake import Intake
from streams.mirror import Mirror

FLUSH_SECONDS = 5.0
"""How long what has come may be missing from the files of a live worker."""


class Files:
    """Archives and mirror, written out now and then, and rid of what is erased."""

    def __init__(self, intake: Intake, mirror: Mirror | None, forgetting: Forgetting) -> None:
        self._intake, self._mirror, self._forgetting = intake, mirror, forgetting
        self._flush_at = 0.0

    async def follow(self) -> None:
        """Let files follow within seconds; a flush rewrites them, so that it may take a twentieth of the time."""
        begun = time.monotonic()
        if begun >= self._flush_at:
            await self.flush()
            await self._forgetting.sweep(self._writers, wait=False)
            ended = time.monotonic()
            self._flush_at = ended + max(FLUSH_SECONDS, 20 * (ended - begun))

    async def flush(self) -> None:
        """Write what files lack of what has come."""
        for archive in self._intake.archives:
            archive.flush()
        if self._mirror is not None:
            await self._mirror.flush()

    async def finish(self) -> None:
        """Write everything, and rid all files of what is erased."""
        await self.flush()
        await self._forgetting.sweep(self._writers, wait=True)

    async def leave_off(self) -> None:
        """Forget what the mirror has not written yet, and a sweep that is under way: the files say where to go on."""
        await self._forgetting.leave_off()
        if self._mirror is not None:
            await self._mirror.forget()

    @property
    def _writers(self) -> list[GridWriter]:
        return [*self._intake.archives, *(self._mirror.writers if self._mirror is not None else ())]
