"""Services over pairs: what they predict on and log while pairs are made, and what a replay gives."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import defaultdict

from river import linear_model, preprocessing

from batch.archive import archived_partitions
from batch.logged import Logged
from batch.verify import verify
from featurestore import Source, col, derived
from featurestore.online import connect
from learner import Label, Service
from onceflow import embedded
from onceflow.modules import Definitions
from onceflow.runtime import build_worker
from tests.streams.meetings import history, meetings, pairs, produce
from tests.streams.test_worker import beside
from tests.streams.working import messages, settings_of, work

COUNT = 200


def served(tag):
    """The definitions of meetings, with a service on pairs and one on payments; both read the view of pairs."""
    made = meetings(tag)
    payments, _, both = made.sources.values()
    paired = made.views[f"meetings{tag}"]
    frauds = Source(
        f"frauds-{tag}",
        schema={"about": str, "fraud": bool, "at": "timestamp[ms]"},
        event_time="at",
        key="about",
    )
    options = {
        "label": Label(frauds, id="about", value=col("fraud"), wait="1h"),
        "model": preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    }
    share = derived(col("amount") / col(f"{paired.name}:paid_5m"), name="share")
    features = [paired.n_5m, paired.large_lifetime, share, "amount"]
    services = [
        Service(f"pairs-{tag}", on=both, id="pair_id", features=features, **options),
        Service(f"payments-{tag}", on=payments, id="card", features=features, **options),
    ]
    sources = made.sources | {frauds.name: frauds}
    return Definitions(sources, made.views, {each.name: each for each in services})


def report_of(definitions, settings):
    """What verification finds of states, rows and logged features."""

    async def run():
        store = connect(settings.redis)
        logged = [Logged(each.name, each.feature_set) for each in definitions.services.values()]
        views, partitions = list(definitions.views.values()), archived_partitions(settings.data / "events")
        try:
            return await verify(views, logged, store, settings.data, partitions, merged=settings.mode == "replay")
        finally:
            await store.close()

    return asyncio.run(run())


def asked(records):
    """How many events the services predict on."""
    payments = sum(record.topic.startswith("payments") and record.event is not None for record in records)
    return len(pairs(records)[0]) + payments


def test_features_of_pairs_that_a_replay_logs_are_those_of_history(pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions, records = served(tag), history(tag, COUNT, shuffled=False)
    produce(pair.kafka, tag, records)
    settings = settings_of(pair, tag, tmp_path)
    worker = work(definitions, settings)
    assert worker.stats.predictions == asked(records)
    report = report_of(definitions, settings)
    assert (report.good, report.skipped) == (True, 0), report
    assert report.logged_features_compared == 4 * asked(records)


def test_what_is_predicted_on_pairs_live_has_the_features_that_a_replay_gives(pair, tmp_path):
    tag = secrets.token_hex(4)
    definitions, records = served(tag), history(tag, COUNT)
    settings = settings_of(pair, tag, tmp_path / "live", mode="live", max_wait_ms=20)
    for begin, end in ((0, COUNT // 2), (COUNT // 2, len(records))):
        produce(pair.kafka, tag, records[begin:end])
        upto = len(pairs(records[:end])[0])
        worker = build_worker(definitions, settings)
        asyncio.run(beside(worker, settings, lambda upto=upto: len(features(pair, definitions)) == upto))
    assert report_of(definitions, settings).good
    with embedded.redis() as store:
        again = settings_of(pair, tag, tmp_path / "replay", mirror=False)
        work(definitions, again.model_copy(update={"redis": f"redis://{store.address}/0"}))
    found = features(pair, definitions)
    assert found.keys() == pairs(records)[0].keys()
    for name, given in found.items():
        assert len(given) == 2, name
        assert given[0] == given[1], name


def features(pair, definitions):
    """By pair what was logged of it, time after time."""
    (service, _), found = definitions.services, defaultdict(list)
    for read in messages(pair.kafka, f"predictions.{service}"):
        found[read.key.decode()].append(json.loads(read.value)["features"])
    return found
