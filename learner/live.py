"""The learner as a process of its own: predictions and labels from Kafka in, models into the store.

All that it knows lies in one file a service, `<service>.learner`: models, waiting predictions, metrics, and how far
each partition was taken. What was done after it was written is done again when the process dies: nothing is learnt
twice, and nothing is missed. In a replay the outcome is the same to the bit. A model is published after the snapshot
that holds it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from featurestore.align import Chunk, Partition
from featurestore.errors import ConfigError, FormatError
from featurestore.files import locked
from learner import snapshot
from learner.inputs import Inputs, Options, Place, topics
from learner.loop import ServiceLoop
from learner.reader import Reader, wait_for_topics
from learner.service import Service
from learner.store import CHAMPION, ModelStore

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 0.02
_SHOW_SECONDS = 1.0
_STEP_SECONDS = 0.5
_FIRST, _FEWEST = 1_000, 64  # rows of a step: before its pace is known, and at least


class LiveLearner:
    """One service's learner. `folder` is where its snapshot lies.

    `summary` is that of the loop, `lag` the records still to come by topic: both at most a second old, and safe to read
    from another thread.
    """

    def __init__(self, service: Service, folder: Path, store: ModelStore, options: Options) -> None:
        """FormatError: the snapshot is torn, foreign, or of another definition; it is left alone."""
        self.service = service
        self.options = options
        self.lag: dict[str, int] = {}
        self.published: int | None = None
        self._store = store
        self._file = folder / f"{service.name}.learner"
        self.loop, self._places = _restored(service, self._file, hold=not options.replay)
        self.summary = self.loop.summary()
        self._inputs: Inputs | None = None
        self._rows = 0  # taken since the last snapshot
        self._due = self._show_at = self._publish_at = 0.0
        self._offered = 0  # the model version that was published last
        self._limit = min(options.chunk, _FIRST)

    @property
    def inputs(self) -> Inputs:
        """What it reads; there once it has begun."""
        assert self._inputs is not None
        return self._inputs

    @property
    def begun(self) -> bool:
        """Whether it has begun to read."""
        return self._inputs is not None

    def begin(self, partitions: Mapping[str, int]) -> dict[Partition, int | None]:
        """Get ready to read topics of so many partitions; returns where to start. GapError: some are gone."""
        self._inputs = Inputs(self.service, partitions, self._places, self.options)
        return {at: place.next for at, place in self._inputs.places.items()}

    def turn(self, reader: Reader, now: float, wall: int) -> bool:
        """Take and learn what has come; returns whether there was anything to do."""
        heard = self.inputs.receive(reader, now, wall)
        chunk = self.inputs.take(self._limit)
        if chunk is not None:
            self._learn(chunk)
        if now >= self._show_at:
            self.summary, self.lag = self.loop.summary(), reader.lag()
            self._show_at = now + _SHOW_SECONDS
        if now >= self._due or self._rows >= self.options.events:
            self.checkpoint(now)
        return heard or chunk is not None

    def _learn(self, chunk: Chunk) -> None:
        begun = time.perf_counter()
        self.loop.step(self.inputs.predictions(chunk), self.inputs.labels(chunk))
        self._rows += max(1, chunk.events)
        # Told to stop, it must be at the end of a step soon. How the rows are cut into steps changes nothing.
        pace = chunk.events / (time.perf_counter() - begun)
        self._limit = min(self.options.chunk, max(_FEWEST, int(pace * _STEP_SECONDS)))

    def checkpoint(self, now: float, *, last: bool = False) -> None:
        """Write the snapshot and, if it is time or the `last` call, publish what was learnt since."""
        begun = time.monotonic()
        if self._rows or last:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            snapshot.write(self._file, self._dump())
            self._rows = 0
        if last or now >= self._publish_at:
            self._publish()
            self._publish_at = now + self.options.publish
        # A big one shall not take all the time there is.
        self._due = now + max(self.options.every, 10 * (time.monotonic() - begun))
        self.summary = self.loop.summary()

    def _publish(self) -> None:
        """Put the model into the store as champion, unless it has learnt nothing since."""
        if self.loop.model_version == self._offered:
            return
        name, versions = self.service.name, self._store.versions(self.service.name)
        if versions and self._store.meta(name, versions[-1])["digest"] == self.loop.model.digest():
            self.published = versions[-1]  # by a process that died before it could name or remember it
        else:
            places = sorted(self.inputs.places.items())
            positions = [[topic, partition, place.next] for (topic, partition), place in places]
            lineage = {"views": [view.key for view in self.service.views], "positions": positions}
            self.published = self._store.publish(name, self.loop.model, lineage, self.loop.summary())
        self._store.alias(name, CHAMPION, self.published)
        self._offered = self.loop.model_version

    def _dump(self) -> dict[str, Any]:
        places = self.inputs.places
        rows = [[*at, place.next, place.clock, place.source] for at, place in sorted(places.items())]
        return {"learner": self.loop.dump(), "places": rows}


def run(learners: Sequence[LiveLearner], kafka: str, stop: Event) -> None:
    """Learn until told to stop or, with `until_end`, until all is done; then leave a snapshot and publish.

    Waits for Kafka and for topics that are not there. GapError: Kafka no longer has what comes next.
    """
    wanted = {topic for learner in learners for topic in topics(learner.service)}
    partitions = wait_for_topics(kafka, wanted, stop)
    if partitions is None:
        return
    with ExitStack() as stack:
        pairs = []
        for learner in learners:
            labels = learner.service.label.source
            headers = [labels.name] if labels.headers else []
            reader = Reader(kafka, learner.begin(partitions), headers)
            pairs.append((learner, stack.enter_context(closing(reader))))
        _log.info("learning", extra={"services": [learner.service.name for learner in learners]})
        while not stop.is_set() and not all(learner.inputs.finished for learner in learners):
            busy = [learner.turn(reader, time.monotonic(), _wall()) for learner, reader in pairs]
            if not any(busy):
                stop.wait(_IDLE_SECONDS)
        for learner in learners:
            learner.checkpoint(time.monotonic(), last=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only learner whose snapshots lie in `folder`; ConfigError when there is another. Ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / "learner.lock", wait=False))
        except BlockingIOError:
            raise ConfigError(f"another learner runs on {folder}: stop it first, there is one a project") from None
        yield


def _restored(service: Service, file: Path, *, hold: bool) -> tuple[ServiceLoop, dict[Partition, Place]]:
    kept = snapshot.read(file)
    if kept is None:
        return ServiceLoop(service, hold=hold), {}
    if "learner" not in kept:
        raise FormatError(f"{file} is no snapshot of a learner process: move it away, or name another file")
    places = {(topic, partition): Place(*rest) for topic, partition, *rest in kept["places"]}
    return ServiceLoop.load(service, kept["learner"], hold=hold), places


def _wall() -> int:
    return time.time_ns() // 1_000_000
