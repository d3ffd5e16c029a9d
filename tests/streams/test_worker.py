from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import duckdb
import polars as pl
import pytest
import redis
from confluent_kafka.admin import AdminClient, NewPartitions

from featurestore import oracle
from featurestore.errors import FencedError, FormatError, GapError, StateError
from onceflow import embedded
from onceflow.children import free_port
from onceflow.runtime import build_worker, run_worker
from onceflow.services import ReplayService
from serving.predictor import reads_of
from streams.app import build_app, run_app
from streams.messages import feature_table
from streams.transport import Delivery
from tests.faults.child import start
from tests.streams.shop import MINUTE, PARTITIONS, START, TAG, bad_records, history, logs, produce, shop, with_repeats
from tests.streams.working import (
    Died,
    blobs,
    dies_in_turn,
    in_memory,
    messages,
    own_servers,
    same,
    settings_of,
    stored,
    table,
    work,
)


def tagged():
    return secrets.token_hex(4)


@pytest.fixture(scope="module")
def done(pair, tmp_path_factory):
    """A worker's whole replay of a history that ends with every kind of bad record, and what it should be."""
    tag = tagged()
    records = with_repeats(history(tag, 300))
    records += bad_records(tag, records[-1].time + MINUTE)
    produce(pair.kafka, tag, records)
    data, definitions = tmp_path_factory.mktemp("done"), shop(tag)
    settings = settings_of(pair, tag, data)
    worker = work(definitions, settings)
    good, ends = logs(definitions, records)
    _, outputs, _ = in_memory(definitions, good)
    return SimpleNamespace(**locals())


def check_all(worker, definitions, settings, records, folder):
    """Compare what a worker left in every place with the same views and services over the whole history at once."""
    good, ends = logs(definitions, records)
    flow, outputs, chunk = in_memory(definitions, good)
    tag = next(iter(definitions.sources)).partition("-")[2]
    found = stored(settings.redis, tag)
    for view in definitions.views.values():
        for partition in range(PARTITIONS):
            assert blobs(found, view, partition) == flow.states[view.key].blobs(partition)
            place = found[f"{{{view.source.name}:{partition}}}:{view.key}:next".encode()]
            clock = flow.states[view.key].clock(partition)
            assert place == [b"1", b"%d" % ends[view.source.name, partition], b"%d" % clock]
        assert same(outputs[view.key].events, table(settings.data / "features" / view.name))
    for topic, source in definitions.sources.items():
        frame = pl.concat([frame for (name, _), frame in good.items() if name == topic])
        columns = ["_partition", "_offset", "_timestamp", *source.schema]
        assert same(frame.select(columns), table(settings.data / "events" / topic))
    for service in definitions.services.values():
        once = ReplayService(service, folder)
        reads = {read: outputs[read.view.key].reads[read] for read in reads_of(service).values()}
        expected = once.process(chunk, reads)
        kept = table(settings.data / "predictions" / service.name)
        assert same(expected.select("_partition", "_offset", "id", "probability", "model_version"), kept)
        inputs = expected.select("_partition", "_offset", "_effective", *service.inputs)
        assert same(inputs.with_columns(pl.col(service.inputs).fill_nan(None)), kept)
        [mine] = [x for x in worker.processors if x.name == service.name]
        assert mine.loop.summary() == once.loop.summary()
        assert once.loop.summary()["labels_learnt"] > 0


# --- the outcome of a replay ------------------------------------------------------------------------------------------


def test_states_features_predictions_and_models_equal_those_of_the_whole_history_at_once(done, tmp_path):
    check_all(done.worker, done.definitions, done.settings, done.records, tmp_path)


def test_every_bad_record_is_in_quarantine_once_with_its_bytes_and_its_place(done):
    offsets, wanted = Counter(), {}
    for record in done.records:
        at = (record.topic, record.partition)
        if record.error not in (None, "repeat"):
            wanted[*at, offsets[at]] = (record.error, record.value)
        offsets[at] += 1
    found = defaultdict(list)
    for topic in done.definitions.sources:
        for kind in ("dlq", "late"):
            for read in messages(done.pair.kafka, f"{topic}.{kind}"):
                said = {name: value.decode() for name, value in read.headers.items()}
                place = (said["topic"], int(said["partition"]), int(said["offset"]))
                assert (place[0], place[1], kind == "late") == (topic, read.partition, said["error"] == "late")
                assert said["detail"]
                found[place].append((said["error"], read.value))
    assert found.keys() == wanted.keys()
    for place, (error, value) in wanted.items():
        views = 2 if error == "late" else 1  # an event may be too late for one view and not for another
        assert found[place] == [(error, value and value[:4096])] * views


def test_the_counters_tell_what_happened(done):
    stats = done.worker.stats
    errors = Counter(record.error for record in done.records if record.error)
    assert stats.late == 2 * errors.pop("late")
    assert stats.repeats == errors.pop("repeat") > 30
    assert dict(stats.rejected) == dict(errors)
    assert stats.events == sum(map(len, done.good.values()))
    assert START < stats.first_fold == stats.summary()["first_fold"] <= time.time_ns() // 1_000_000
    assert stats.predictions == 2 * sum(len(frame) for (topic, _), frame in done.good.items() if "orders" in topic)


def test_the_feed_of_features_tiles_the_offsets_and_says_what_the_views_gave(done):
    for view in done.definitions.views.values():
        frames, upto = [], Counter()
        for read in messages(done.pair.kafka, f"features.{view.name}"):
            rows, begin, end = feature_table(read.value)
            assert begin == upto[read.partition]
            upto[read.partition] = end
            frames.append(pl.DataFrame(rows))
        assert upto == {p: done.ends[view.source.name, p] for p in range(PARTITIONS)}
        assert same(done.outputs[view.key].events, pl.concat([frame for frame in frames if len(frame)]))


def test_archive_and_mirror_are_complete_for_any_engine(done):
    def read(folder, columns):
        files = f"{done.data}/{folder}/**/*.parquet"
        listed = ", ".join(f'"{name}"' for name in columns)
        query = f"select {listed} from read_parquet('{files}', hive_partitioning=false, union_by_name=true)"
        return pl.DataFrame(duckdb.sql(query).fetchall(), schema=columns, orient="row", infer_schema_length=None)

    for topic, source in done.definitions.sources.items():
        frame = pl.concat([frame for (name, _), frame in done.good.items() if name == topic])
        columns = ["_partition", "_offset", "_timestamp", *source.schema]
        assert same(frame.select(columns), read(f"events/{topic}", columns))
    for view in done.definitions.views.values():
        frame = done.outputs[view.key].events
        assert same(frame, read(f"features/{view.name}", frame.columns))
    for service in done.definitions.services.values():
        sent = [json.loads(read.value) for read in messages(done.pair.kafka, f"predictions.{service.name}")]
        found = table(done.data / "predictions" / service.name)
        assert sorted(found.select("id", "probability", "_offset").rows()) == sorted(
            (each["id"], each["probabilities"]["true"], each["offset"]) for each in sent
        )
        assert len(found) == sum(len(frame) for (topic, _), frame in done.good.items() if topic == service.on.name)


def test_what_has_been_done_is_not_done_again(done):
    def state():
        names = [f"features.{name}" for name in done.definitions.views]
        names += [f"predictions.{name}" for name in done.definitions.services]
        names += [f"{topic}.dlq" for topic in done.definitions.sources]
        sent = {name: messages(done.pair.kafka, name) for name in names}
        files = {path: path.read_bytes() for path in done.data.rglob("*.parquet")}
        return sent, files, stored(done.pair.redis_url, done.tag)

    before = state()
    worker = work(done.definitions, done.settings)
    assert worker.stats.events == 0
    assert dict(worker.stats.rejected) == {}
    assert state() == before


# --- time across topics -----------------------------------------------------------------------------------------------


def ordered(tag, orders, seed=5):
    """A history without events out of order, so that each one sees just what has come by its own time."""
    return history(tag, orders, seed=seed, shuffled=False)


def test_a_worker_without_memory_for_states_reads_them_again_and_ends_with_the_same(embedded_pair, tmp_path):
    tag = tagged()
    records = history(tag, 150)
    produce(embedded_pair.kafka, tag, records)
    definitions, settings = shop(tag), settings_of(embedded_pair, tag, tmp_path, chunk=100)
    worker = build_worker(definitions, settings, until_end=True)
    worker = replace(worker, options=replace(worker.options, memory=0))
    run_worker(worker, settings)
    assert worker.stats.cache_misses > 0
    check_all(worker, definitions, settings, records, tmp_path / "once")


def test_partitions_that_are_added_under_a_worker_stop_it_with_instructions(real_pair, tmp_path):
    tag = tagged()
    produce(real_pair.kafka, tag, history(tag, 20))
    definitions, settings = shop(tag), settings_of(real_pair, tag, tmp_path, mode="live", mirror=False, archive=False)
    worker = build_worker(definitions, settings)
    admin = AdminClient({"bootstrap.servers": real_pair.kafka})
    for made in admin.create_partitions([NewPartitions(f"clicks-{tag}", PARTITIONS + 1)]).values():
        made.result(20)
    with pytest.raises(StateError, match=f"clicks-{tag} had {PARTITIONS} partitions when this worker started"):
        run_worker(worker, settings)


def test_a_replayed_prediction_sees_all_that_has_come_by_its_time_and_never_the_future(pair, tmp_path):
    tag = tagged()
    definitions, records = shop(tag), ordered(tag, 150)
    # All of one topic lies there before the others begin: in one huge fetch, from the first event to the last.
    clicks = [record for record in records if record.topic.startswith("clicks")]
    produce(pair.kafka, tag, clicks)
    produce(pair.kafka, tag, [record for record in records if record not in clicks])
    work(definitions, settings_of(pair, tag, tmp_path))
    [view] = [view for name, view in definitions.views.items() if name.startswith("clicks")]
    service = definitions.services[f"returned-{tag}"]
    events = [
        {**record.event, "_time": record.time, "_partition": record.partition, "_offset": i}
        for i, record in enumerate(clicks)
    ]
    users = {record.event["order_id"]: record.event["user"] for record in records if "orders" in record.topic}
    found = table(tmp_path / "predictions" / service.name)
    ties = 0
    for row in found.iter_rows(named=True):
        user, at = users[row["id"]], row["_time"]
        mine = [event for event in events if event["user"] == user and event["_time"] <= at]
        ties += any(event["_time"] == at for event in mine)
        effective, wanted = oracle.features(view, mine, (user,), at)
        assert effective == at
        for name in ("n_30s", "n_10m", "long_30s", "long_10m"):
            assert row[f"{view.name}:{name}"] == wanted[name], (row["id"], name)
    assert len(found) == 150
    assert ties > 10


def test_two_replays_give_the_same_bits_at_any_pace(tmp_path):
    tag = tagged()
    definitions, records = shop(tag), history(tag, 200, seed=3)
    outcomes = []
    for chunk, grid in ((40, 64), (5_000, 1_000)):
        with own_servers() as pair:
            produce(pair.kafka, tag, records)
            data = tmp_path / str(chunk)
            worker = work(definitions, settings_of(pair, tag, data, chunk=chunk, grid=grid))
            sent = {name: messages(pair.kafka, f"predictions.{name}") for name in definitions.services}
            kept = {x.name: (x.loop.summary(), x.loop.positions) for x in worker.processors}
            features = [repr(table(data / "features" / name).rows()) for name in definitions.views]
            outcomes.append((sent, kept, features, stored(pair.redis_url, tag)))
    assert outcomes[0] == outcomes[1]
    assert all(summary["model_version"] > 1 for summary, _ in outcomes[0][1].values())


# --- live -------------------------------------------------------------------------------------------------------------


def live_records(tag, now):
    """Some clicks and orders of one partition only: returns, and the other partitions, stay silent."""
    shifted = []
    for record in ordered(tag, 30):
        if record.partition == 0 and not record.topic.startswith("returns"):
            event = {**record.event, "at": now}
            shifted.append(record._replace(time=now, event=event, value=json.dumps(event).encode()))
    return shifted


async def beside(worker, settings, until, seconds=30, *, alone=True):
    """Run a worker until a condition holds, then stop it."""
    delivery = Delivery(positions=worker.positions, lead=worker.lead, assigned=worker.assigned, revoked=worker.revoked)
    topics = [*worker.sources, *worker.mirrored]
    options = {"delivery": delivery, "session_timeout_ms": settings.session_timeout_ms, "alone": alone}
    app = build_app(settings.group, settings.kafka, topics, worker.receive, **options)
    task = asyncio.ensure_future(run_app(app, worker.main))
    async with asyncio.timeout(seconds):
        while not task.done() and not until():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    if not task.done():
        task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def test_live_a_silent_topic_is_not_waited_for_longer_than_max_wait(pair, tmp_path):
    tag, definitions, now = tagged(), None, time.time_ns() // 1_000_000
    definitions, records = shop(tag), live_records(tag, now)
    produce(pair.kafka, tag, records)
    settings = settings_of(pair, tag, tmp_path, mode="live", max_wait_ms=50)
    worker = build_worker(definitions, settings)
    assert worker.gather == 0.025  # what lies at another broker is heard of in time
    asyncio.run(beside(worker, settings, lambda: worker.stats.events >= len(records)))
    good, _ = logs(definitions, records)
    flow, _, _ = in_memory(definitions, good)
    found = stored(pair.redis_url, tag)
    for view in definitions.views.values():
        assert blobs(found, view, 0) == flow.states[view.key].blobs(0)
    orders = sum("orders" in record.topic for record in records)
    for name in definitions.services:
        assert len(messages(pair.kafka, f"predictions.{name}")) == orders


def test_live_partitions_do_not_wait_for_each_other_where_nothing_depends_on_their_order(embedded_pair, tmp_path):
    tag, now = tagged(), time.time_ns() // 1_000_000
    definitions, records = replace(shop(tag), services={}), live_records(tag, now)
    produce(embedded_pair.kafka, tag, records)
    settings = settings_of(embedded_pair, tag, tmp_path, mode="live", max_wait_ms=600_000, mirror=False)
    worker = build_worker(definitions, settings)
    assert worker.gather == settings.gather_ms / 1000
    asyncio.run(beside(worker, settings, lambda: worker.stats.events >= len(records)))
    flow, _, _ = in_memory(definitions, logs(definitions, records)[0])
    found = stored(embedded_pair.redis_url, tag)
    for view in definitions.views.values():
        assert blobs(found, view, 0) == flow.states[view.key].blobs(0)


def test_live_an_event_of_the_future_is_refused_by_the_clock(embedded_pair, tmp_path):
    tag, now = tagged(), time.time_ns() // 1_000_000
    definitions, records = shop(tag), live_records(tag, now)
    ahead = {**records[0].event, "at": now + 10 * MINUTE}
    early = records[0]._replace(value=json.dumps(ahead).encode(), time=now + 10 * MINUTE)
    produce(embedded_pair.kafka, tag, [early, *records])
    settings = settings_of(embedded_pair, tag, tmp_path, mode="live")
    worker = build_worker(definitions, settings)
    asyncio.run(beside(worker, settings, lambda: worker.stats.events >= len(records)))
    assert worker.stats.rejected == {"future": 1}
    assert worker.stats.stream_time == now


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", ["kafka", "redis"])
def test_a_server_that_is_away_at_the_start_is_waited_for(away, tmp_path):
    tag, ports = tagged(), {"kafka": free_port(), "redis": free_port()}
    pair = SimpleNamespace(kafka=f"127.0.0.1:{ports['kafka']}", redis_url=f"redis://127.0.0.1:{ports['redis']}/0")
    runs = {"kafka": embedded.kafka, "redis": embedded.redis}
    log = tmp_path / "worker.log"
    with ExitStack() as stack:
        for name in runs.keys() - {away}:
            stack.enter_context(runs[name](ports[name]))
        if away == "redis":
            produce(pair.kafka, tag, history(tag, 5))
        process = begun(tag, pair, tmp_path, log)
        wait_for(lambda: "trying again" in log.read_text(), process, log)
        time.sleep(1)
        stack.enter_context(runs[away](ports[away]))
        process.join(30)
        assert process.exitcode == 0, log.read_text()
    lines = [line for line in log.read_text().splitlines() if "trying again" in line]
    assert len(lines) == 1, lines
    assert f"127.0.0.1:{ports[away]}" in lines[0]


def begun(tag, pair, data, log):
    """A worker's process over the shop; what it prints is in `log`."""
    settings = settings_of(pair, tag, data)
    names = ("kafka", "redis", "data", "group", "mode", "grid", "chunk")
    environment = {f"ONCEFLOW_{name.upper()}": str(getattr(settings, name)) for name in names}
    log.touch()
    return start(["worker", "-m", "tests.faults.definitions", "--until-end"], log, {**environment, TAG: tag})


def wait_for(condition, process, log, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_states_of_another_format_are_refused_and_left_alone(pair, tmp_path):
    tag = tagged()
    definitions = shop(tag)
    produce(pair.kafka, tag, history(tag, 5))
    view = next(iter(definitions.views.values()))
    key = f"{{{view.source.name}:1}}:{view.key}:next"
    foreign = {b"format": b"99", b"next": b"7", b"owner": b"someone"}
    with redis.Redis.from_url(pair.redis_url) as client:
        client.hset(key, mapping=foreign)
        with pytest.raises(FormatError, match="format 99"):
            work(definitions, settings_of(pair, tag, tmp_path))
        process = begun(tag, pair, tmp_path, tmp_path / "log")
        process.join(30)
        assert process.exitcode == 1
        *_, last = (tmp_path / "log").read_text().splitlines()
        assert last.startswith("onceflow: view")
        assert "written by format 99" in last
        assert client.hgetall(key) == foreign
        assert [k for k in client.scan_iter(match=f"*{tag}*") if client.type(k) != b"hash"] == []


def test_a_torn_snapshot_is_refused_and_left_alone(embedded_pair, tmp_path):
    tag = tagged()
    definitions = shop(tag)
    produce(embedded_pair.kafka, tag, history(tag, 40))
    work(definitions, settings_of(embedded_pair, tag, tmp_path))
    file = tmp_path / "snapshots" / f"plain-{tag}.snapshot"
    torn = file.read_bytes()[:-100]
    file.write_bytes(torn)
    with pytest.raises(FormatError, match=f"plain-{tag}.snapshot is torn"):
        work(definitions, settings_of(embedded_pair, tag, tmp_path))
    assert file.read_bytes() == torn


@pytest.mark.parametrize("damage", ["missing", "older"])
def test_a_service_that_forgot_what_it_did_does_not_do_it_again_with_features_from_the_future(
    embedded_pair, tmp_path, damage
):
    tag = tagged()
    definitions, records = shop(tag), history(tag, 60)
    settings = settings_of(embedded_pair, tag, tmp_path)
    file = tmp_path / "snapshots" / f"returned-{tag}.snapshot"
    produce(embedded_pair.kafka, tag, records[:200])
    work(definitions, settings)
    old = file.read_bytes()
    produce(embedded_pair.kafka, tag, records[200:])
    work(definitions, settings)
    file.unlink() if damage == "missing" else file.write_bytes(old)
    with pytest.raises(StateError, match=f"service 'returned-{tag}' stands at offset .*its snapshot is missing or"):
        work(definitions, settings)


def test_a_redis_that_is_emptied_stops_the_worker_and_the_next_one_builds_all_anew(tmp_path):
    tag = tagged()
    definitions, records = shop(tag), history(tag, 250)
    with own_servers() as pair:
        produce(pair.kafka, tag, records)
        settings = settings_of(pair, tag, tmp_path, chunk=50)
        with redis.Redis.from_url(pair.redis_url) as client:
            flusher = threading.Thread(target=flush_soon, args=(client, tag))
            flusher.start()
            with pytest.raises(FencedError, match="emptied or rolled back"):
                work(definitions, settings)
            flusher.join()
        check_all(work(definitions, settings), definitions, settings, records, tmp_path / "again")


def flush_soon(client, tag):
    """Empty Redis once some states are in it."""
    while not any(client.type(key) == b"string" for key in client.scan_iter(match=f"*{tag}*", count=1_000)):
        time.sleep(0.005)
    client.flushall()


def test_a_redis_that_lost_its_last_writes_stops_the_worker_before_anything_is_made_of_what_is_left(
    embedded_pair, tmp_path, monkeypatch
):
    tag = tagged()
    definitions, records = shop(tag), ordered(tag, 250)
    settings = settings_of(embedded_pair, tag, tmp_path)
    half = next(i for i in range(500, len(records)) if records[i].time > records[i - 1].time)
    produce(embedded_pair.kafka, tag, records[:half])
    work(definitions, settings)  # so that the next one must read states
    produce(embedded_pair.kafka, tag, records[half:])
    settings = settings_of(embedded_pair, tag, tmp_path, chunk=20)
    worker, turns = build_worker(definitions, settings, until_end=True), []
    committed = worker._committed
    with redis.Redis.from_url(embedded_pair.redis_url) as client:

        def all_keys():
            return {key: client.dump(key) for key in client.scan_iter(match=f"*{tag}*", count=1_000)}

        def roll_back(turn):
            committed(turn)
            turns.append(all_keys() if len(turns) == 1 else {})
            if len(turns) == 4:
                client.delete(*all_keys())
                for key, value in turns[1].items():
                    client.restore(key, 0, value)

        monkeypatch.setattr(worker, "_committed", roll_back)
        with pytest.raises((FencedError, GapError)):
            asyncio.run(beside(worker, settings, lambda: False))
    assert len(turns) == 4
    check_all(work(definitions, settings), definitions, settings, records, tmp_path / "again")


def test_a_worker_that_ends_waits_for_its_last_turn_and_for_the_mirror(embedded_pair, tmp_path, monkeypatch):
    tag = tagged()
    definitions, records = shop(tag), history(tag, 120)
    produce(embedded_pair.kafka, tag, records)
    settings = settings_of(embedded_pair, tag, tmp_path)
    worker = build_worker(definitions, settings, until_end=True)
    store = worker._store

    async def slow(turn):
        await asyncio.sleep(0.3)
        await store(turn)

    monkeypatch.setattr(worker, "_store", slow)
    asyncio.run(beside(worker, settings, lambda: False))
    check_all(worker, definitions, settings, records, tmp_path / "again")


# --- a restart in the middle of a turn --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["send", "first checkpoint", "checkpoints", "commit"])
def test_a_turn_that_was_cut_short_after_any_step_is_finished_by_the_next_worker(
    embedded_pair, tmp_path, monkeypatch, step
):
    tag = tagged()
    definitions, records = shop(tag), history(tag, 200, seed=9)
    records += bad_records(tag, records[-1].time + MINUTE)
    produce(embedded_pair.kafka, tag, records)
    settings = settings_of(embedded_pair, tag, tmp_path)
    for turn in (1, 3):
        dying = build_worker(definitions, settings, until_end=True)

        async def partly(made, dying=dying):
            steps = {"send": 0, "first checkpoint": 1}.get(step, len(made.checkpoints))
            for write in made.checkpoints[:steps]:
                write()
            if step == "commit":
                await dying.store.commit(made.commits[: len(made.commits) // 2])

        async def nothing():
            pass

        dies_in_turn(turn, dying, partly)
        monkeypatch.setattr(dying._files, "flush", nothing)  # it had no time for that
        with pytest.raises(Died):
            asyncio.run(beside(dying, settings, lambda: False))
    check_all(work(definitions, settings), definitions, settings, records, tmp_path / "again")
