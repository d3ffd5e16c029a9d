"""What a worker says of its work: little, and the same thing only now and then."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from featurestore.align import Partition
from streams.batches import TP
from streams.ingest import Refused

_log = logging.getLogger("streams.worker")

REMIND_SECONDS = 10.0
"""How long more records of a topic are refused for the same reason before that is said again."""


def taken(starts: Mapping[TP, int]) -> None:
    """Say which partitions were taken on, and from which offsets."""
    topics: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for tp, start in sorted(starts.items()):
        topics[tp.topic][tp.partition] = start
    for topic, offsets in topics.items():
        _log.info("partitions taken on", extra={"topic": topic, "offsets": offsets})


def given_away(partitions: Iterable[Partition]) -> None:
    """Say which partitions were given away."""
    topics: defaultdict[str, list[int]] = defaultdict(list)
    for topic, partition in sorted(partitions):
        topics[topic].append(partition)
    for topic, numbers in topics.items():
        _log.info("partitions given away", extra={"topic": topic, "partitions": numbers})


class Refusals:
    """Says, by topic and reason, that records were refused: the last one, and how many since it was said before."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._due: dict[tuple[str, str], float] = {}

    def note(self, partition: Partition, refused: Sequence[Refused]) -> None:
        """Take note of records of a partition that were refused."""
        now = time.monotonic()
        for last in {each.error: each for each in refused}.values():
            kind = partition[0], last.error
            self._counts[kind] += sum(each.error == last.error for each in refused)
            if now >= self._due.get(kind, now):
                self._due[kind] = now + REMIND_SECONDS
                self._say(partition, last, self._counts.pop(kind))

    @staticmethod
    def _say(partition: Partition, last: Refused, count: int) -> None:
        place = {"topic": partition[0], "partition": partition[1], "offset": last.offset}
        detail = (last.message.headers or {}).get("detail", b"").decode()
        _log.warning("records refused", extra={**place, "reason": last.error, "detail": detail, "records": count})
