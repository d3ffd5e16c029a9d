"""What a worker and a learner show to Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from featurestore import ConfigError
from featurestore.align import Partition
from learner.live import LiveLearner
from onceflow.services import ReplayService
from streams.processor import Processor
from streams.stats import BOUNDS, SECONDS, SIZES, Stats

#: Which numbers of a service's summary are shown, and under which name.
_SERVICE_NUMBERS = (
    "predictions",
    "labels_joined",
    "labels_expired",
    "labels_pending",
    "auc",
    "auc_without_windows",
    "log_loss",
    "log_loss_prior",
    "model_version",
)

#: Counters of a worker: name, meaning, value.
_COUNTS: tuple[tuple[str, str, Callable[[Stats], int]], ...] = (
    ("events", "Events folded and stored", lambda stats: stats.events),
    ("predictions", "Predictions made", lambda stats: stats.predictions),
    ("states", "Entity states written", lambda stats: stats.states),
    ("late", "Events too late for every window", lambda stats: stats.late),
    ("repeats", "Events left out, for their id came before", lambda stats: stats.repeats),
    ("pairs", "Pairs made by joins", lambda stats: stats.pairs),
    ("unpaired", "Events too many to wait for a pair", lambda stats: stats.unpaired),
    ("fetched_bytes", "Bytes of keys and values from Kafka, unpacked", lambda stats: stats.fetched_bytes),
    ("state_cache_hits", "Entities of a turn whose states were in memory", lambda stats: stats.cache_hits),
    ("state_cache_misses", "Entities of a turn that Redis was asked for", lambda stats: stats.cache_misses),
)


class WorkerCollector(Collector):
    """Reads a worker's counters whenever Prometheus asks."""

    def __init__(
        self, stats: Stats, processors: Sequence[Processor], lag: Callable[[], Mapping[Partition, int]]
    ) -> None:
        self._stats = stats
        self._lag = lag
        self._services = [processor for processor in processors if isinstance(processor, ReplayService)]

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        stats = self._stats
        for name, says, value in _COUNTS:
            yield CounterMetricFamily(f"onceflow_{name}", says, value=value(stats))
        missing = CounterMetricFamily(
            "onceflow_unanswered", "Events that the model had no time for, by service", labels=["service"]
        )
        for service, count in list(stats.unanswered.items()):
            missing.add_metric([service], count)
        yield missing
        rejected = CounterMetricFamily("onceflow_rejected", "Records quarantined, by reason", labels=["reason"])
        for reason, count in list(stats.rejected.items()):
            rejected.add_metric([reason], count)
        yield rejected
        lag = GaugeMetricFamily("onceflow_lag_records", "Records still to be stored", labels=["topic", "partition"])
        for (topic, partition), count in self._lag().items():
            lag.add_metric([topic, str(partition)], count)
        yield lag
        newest = GaugeMetricFamily("onceflow_stream_timestamp_seconds", "Newest event time")
        if stats.stream_time is not None:
            newest.add_metric([], stats.stream_time / 1000)
        yield newest
        yield from _histograms(stats)
        yield from _service_metrics([service.summary for service in self._services])


def _histograms(stats: Stats) -> Iterable[Metric]:
    spent = HistogramMetricFamily("onceflow_stage_seconds", "Time that a stage of a turn took", labels=["stage"])
    for stage, counts in list(stats.stages.items()):
        spent.add_metric([stage], _buckets(SECONDS, counts), stats.seconds[stage])
    batches = HistogramMetricFamily("onceflow_batch_records", "Records that one fetch brought of a partition")
    batches.add_metric([], _buckets(SIZES, stats.batches), stats.records)
    sizes = HistogramMetricFamily("onceflow_turn_events", "Events that were folded and stored together")
    sizes.add_metric([], _buckets(SIZES, stats.sizes), stats.events)
    fresh = HistogramMetricFamily("onceflow_freshness_seconds", "From an event's reaching Kafka until it can be read")
    fresh.add_metric([], _buckets(BOUNDS / 1000, stats.freshness), stats.freshness_sum / 1000)
    return spent, batches, sizes, fresh


def _buckets(bounds: NDArray[Any], counts: NDArray[np.int64]) -> list[tuple[str, float]]:
    """How many are at or below each bound, as Prometheus has it."""
    return list(zip([*map(str, bounds.tolist()), "+Inf"], counts.cumsum().tolist(), strict=True))


class LearnerCollector(Collector):
    """Reads the counters of a process's learners whenever Prometheus asks."""

    def __init__(self, learners: Sequence[LiveLearner]) -> None:
        self._learners = learners

    def collect(self) -> Iterable[Metric]:
        """The metrics as they were a second ago or less."""
        read = CounterMetricFamily("onceflow_learner_records", "Records read", labels=["service", "topic"])
        skipped = CounterMetricFamily(
            "onceflow_learner_skipped", "Records not learnt from, by reason", labels=["service", "topic", "reason"]
        )
        lag = GaugeMetricFamily("onceflow_learner_lag", "Records still to be read", labels=["service", "topic"])
        published = GaugeMetricFamily("onceflow_learner_published", "Version published last", labels=["service"])
        for learner in self._learners:
            name = learner.service.name
            for topic, count in list(learner.inputs.read.items()) if learner.begun else ():
                read.add_metric([name, topic], count)
            for (topic, reason), count in list(learner.inputs.skipped.items()) if learner.begun else ():
                skipped.add_metric([name, topic, reason], count)
            for topic, count in learner.lag.items():
                lag.add_metric([name, topic], count)
            if learner.published is not None:
                published.add_metric([name], learner.published)
        yield from (read, skipped, lag, published)
        yield from _service_metrics([learner.summary for learner in self._learners])


def _service_metrics(summaries: Sequence[Mapping[str, Any]]) -> Iterable[Metric]:
    for number in _SERVICE_NUMBERS:
        family = GaugeMetricFamily(f"onceflow_service_{number}", f"{number} of a service", labels=["service"])
        for summary in summaries:
            if summary[number] is not None:
                family.add_metric([summary["service"]], summary[number])
        yield family


def serve_metrics(collector: Collector, port: int) -> None:
    """Answer Prometheus on `port` of this machine, in a thread; ConfigError when the port is in use."""
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise ConfigError(f"metrics_port {port} is in use: give another one ({error.strerror})") from error
