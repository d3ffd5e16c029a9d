from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from itertools import chain

import pytest
import redis

from batch.archive import archived_partitions
from batch.verify import verify
from featurestore.errors import ConfigError, StateError
from featurestore.online import connect
from onceflow.produce import ensure_topics
from onceflow.runtime import build_worker
from streams.joins import HEADER, ends_of, made_key
from tests.streams.meetings import history, meetings, pairs, produce
from tests.streams.shop import SECOND, START, Log, erasures, send
from tests.streams.test_worker import beside
from tests.streams.working import Died, dies_in_turn, messages, settings_of, stored, table, work


def tagged():
    return secrets.token_hex(4)


def made(pair, definitions):
    """The pairs in the joined topic, in the order of each partition."""
    (joined,) = definitions.joins
    return [json.loads(read.value) for read in messages(pair.kafka, joined.name)]


def counted(definitions, data):
    """By card how many pairs the last row of the mirror says that there were."""
    name = next(name for name in definitions.views if name.startswith("meetings"))
    rows = table(data / "features" / name)
    return dict(rows.group_by("card", maintain_order=True).last().select("card", "n_lifetime").rows())


def folded(pair, definitions, tag):
    """How many messages of the joined topic the view of it has folded."""
    (joined,) = definitions.joins
    (name,) = (view.key for view in definitions.views.values() if view.source is joined)
    found = stored(pair.redis_url, tag)
    return sum(int(value[1] or 0) for key, value in found.items() if key.endswith(f"{name}:next".encode()))


def compared(definitions, settings, *, merged=True):
    """What verification finds of all that a worker left."""

    async def run():
        store = connect(settings.redis)
        views, partitions = list(definitions.views.values()), archived_partitions(settings.data / "events")
        try:
            return await verify(views, [], store, settings.data, partitions, merged=merged)
        finally:
            await store.close()

    return asyncio.run(run())


def test_a_replay_makes_all_pairs_once_and_features_of_them(pair, tmp_path):
    tag = tagged()
    definitions, records = meetings(tag), history(tag, 400)
    produce(pair.kafka, tag, records)
    settings = settings_of(pair, tag, tmp_path)
    worker = work(definitions, settings)
    expected, late = pairs(records)
    found = made(pair, definitions)
    assert {each["pair_id"]: each for each in found} == expected
    assert len(found) == len(expected) == worker.stats.pairs > 100
    assert counted(definitions, tmp_path) == Counter(each["card"] for each in expected.values())
    assert compared(definitions, settings).good
    for topic, count in late.items():
        assert len(messages(pair.kafka, f"{topic}.late")) == count
        assert len(messages(pair.kafka, f"{topic}.dlq")) == sum(r.topic == topic and r.event is None for r in records)
    assert worker.stats.late == sum(late.values()) > 0
    assert worker.stats.rejected["malformed"] == sum(record.event is None for record in records)


@pytest.mark.slow
def test_pairs_do_not_depend_on_how_a_replay_is_cut_or_interrupted(embedded_pair, tmp_path):
    tags, orders = [tagged(), tagged()], []
    for tag, cuts, chunk in ((tags[0], [400], 300), (tags[1], [90, 91, 250, 400], 40)):
        definitions, records, begin = meetings(tag), history(tag, 400), 0
        settings = settings_of(embedded_pair, tag, tmp_path / tag, chunk=chunk)
        for end in cuts:
            produce(embedded_pair.kafka, tag, records[begin:end])
            work(definitions, settings)
            begin = end
        produce(embedded_pair.kafka, tag, records[begin:])
        work(definitions, settings)
        assert work(definitions, settings).stats.pairs == 0
        found = made(embedded_pair, definitions)
        assert {each["pair_id"]: each for each in found} == pairs(records)[0]
        assert len(found) == len(pairs(records)[0])
        assert compared(definitions, settings).good
        for topic in list(definitions.sources)[:2]:
            refused = sum(record.topic == topic and record.event is None for record in records)
            assert len(messages(embedded_pair.kafka, f"{topic}.dlq")) == refused
            assert len(messages(embedded_pair.kafka, f"{topic}.late")) == pairs(records)[1][topic]
        orders.append(sorted(each["pair_id"] for each in found))
    assert orders[0] == orders[1]


def test_a_store_that_lost_its_positions_makes_no_pairs_again(embedded_pair, tmp_path):
    tag = tagged()
    definitions, records = meetings(tag), history(tag, 300)
    produce(embedded_pair.kafka, tag, records[:200])
    work(definitions, settings_of(embedded_pair, tag, tmp_path / "before", chunk=40))
    with redis.Redis.from_url(embedded_pair.redis_url) as client:
        client.delete(*client.scan_iter(match=f"*{tag}*", count=10_000))
    last = [ends(embedded_pair, definitions, partition) for partition in (0, 1)]
    again = sum(
        any(int(offset) >= end for offset, end in zip(name.split(":")[1:], last[int(name[0])], strict=True))
        for name in pairs(records[:200])[0]
    )
    produce(embedded_pair.kafka, tag, records[200:])
    settings = settings_of(embedded_pair, tag, tmp_path / "after")
    work(definitions, settings)
    found, expected = made(embedded_pair, definitions), pairs(records)[0]
    assert {each["pair_id"]: each for each in found} == expected
    assert len(found) <= len(expected) + again < len(expected) + len(pairs(records[:200])[0])


def ends(pair, definitions, partition):
    """How far the joined topic says that pairs of a partition were delivered."""
    (joined,) = definitions.joins
    told = [read.headers[HEADER] for read in messages(pair.kafka, joined.name) if read.partition == partition]
    return ends_of(joined, partition, told)


@pytest.mark.parametrize("first", ["payments", "logins"])
def test_live_what_waits_is_read_again_after_a_restart(pair, tmp_path, first):
    tag = tagged()
    definitions, records = meetings(tag), history(tag, 200)
    settings = settings_of(pair, tag, tmp_path, mode="live", max_wait_ms=20)
    earlier = [record for record in records if record.topic.startswith(first)]
    later = [record for record in records if not record.topic.startswith(first)]
    expected = pairs(records)[0]
    for end in (0, 50, len(later)):
        produce(pair.kafka, tag, earlier if not end else later[:50] if end == 50 else later[50:])
        upto, read = len(pairs([*earlier, *later[:end]])[0]), sum(r.event is not None for r in earlier)
        worker = build_worker(definitions, settings)

        def done(worker=worker, upto=upto, read=read):
            return worker.stats.events >= read and folded(pair, definitions, tag) >= upto

        asyncio.run(beside(worker, settings, done))
    found = made(pair, definitions)
    assert {each["pair_id"]: each for each in found} == expected
    assert len(found) == len(expected)
    assert compared(definitions, settings, merged=False).good


@pytest.mark.parametrize("commits", [0, 3, 8])
def test_pairs_that_a_dying_worker_made_are_made_again_and_counted_once(embedded_pair, tmp_path, commits):
    tag = tagged()
    definitions, records = meetings(tag), history(tag, 400, seed=3)
    produce(embedded_pair.kafka, tag, records)
    settings = settings_of(embedded_pair, tag, tmp_path, chunk=60)
    for turn in (2, 3):
        (dying,) = build_worker(definitions, settings, until_end=True).first

        async def partly(made, dying=dying):
            await dying.store.commit(made.commits[:commits])

        dies_in_turn(turn, dying, partly)
        with pytest.raises(Died):
            asyncio.run(beside(dying, settings, lambda: False))
    worker, expected = work(definitions, settings), pairs(records)[0]
    sent = [each["pair_id"] for each in made(embedded_pair, definitions)]
    assert set(sent) == set(expected)
    assert worker.stats.repeats == len(sent) - len(expected)
    assert (worker.stats.repeats > 0) == (commits < 8)
    assert counted(definitions, tmp_path) == Counter(each["card"] for each in expected.values())
    assert compared(definitions, settings).good


def erased(tag):
    """One partition's records about an erasure of c1: before both, both, and after them; and the pairs there are."""

    def at(kind, card, second):
        event = {
            "card": card,
            "at": START + second * SECOND,
            **({"amount": second} if kind == "payments" else {"device": "d"}),
        }
        return Log(f"{kind}-{tag}", 0, event["at"], json.dumps(event).encode(), event)

    before = [at("payments", card, 0) for card in ("c2", "c1")] + [at("logins", "c1", 5)]
    before += [at("payments", "c9", 20), at("logins", "c8", 20)]
    both = erasures(tag, ["payments", "logins"], START + 20 * SECOND, "card", b"sc1", partitions=1)
    after = [at("logins", "c1", 30), at("logins", "c2", 30), at("payments", "c1", 60), at("logins", "c1", 61)]
    return [before, both, after], [("c1", 0, 5), ("c2", 0, 30), ("c1", 60, 30), ("c1", 60, 61)]


def of_cards(pair, definitions):
    """Card and both times, in seconds, of the pairs there are."""
    found = made(pair, definitions)
    return [(each["card"], *((each[name] - START) // SECOND for name in ("at", "at_right"))) for each in found]


@pytest.mark.parametrize("cuts", [[3], [1, 2, 3]])
def test_an_erased_entity_waits_no_longer_and_an_erasure_of_pairs_takes_those_there_are(pair, tmp_path, cuts):
    tag, begin = tagged(), 0
    definitions, (parts, expected) = meetings(tag), erased(tag)
    settings = settings_of(pair, tag, tmp_path)
    for end in cuts:
        produce(pair.kafka, tag, list(chain(*parts[begin:end])), partitions=1)
        work(definitions, settings)
        begin = end
    assert of_cards(pair, definitions) == expected
    assert counted(definitions, tmp_path) == {"c1": 3, "c2": 1}
    assert set(table(tmp_path / "events" / f"payments-{tag}")["card"]) == {None, "c1", "c2", "c9"}
    gone = erasures(tag, [f"payments-{tag}.logins"], START, "card", b"sc1", partitions=1)
    send(pair.kafka, [definitions.joins[0].name], gone, partitions=1)
    work(definitions, settings)
    assert counted(definitions, tmp_path) == {"c2": 1}
    assert set(table(tmp_path / "events" / definitions.joins[0].name)["card"]) == {None, "c2"}
    assert compared(definitions, settings).good


def test_live_what_is_read_again_is_erased_again(pair, tmp_path):
    tag = tagged()
    definitions, (parts, expected) = meetings(tag), erased(tag)
    settings = settings_of(pair, tag, tmp_path, mode="live", max_wait_ms=20)
    for at, part in enumerate(parts):
        produce(pair.kafka, tag, part, partitions=1)
        upto = len(list(chain(*parts[: at + 1])))
        worker = build_worker(definitions, settings)
        asyncio.run(beside(worker, settings, lambda upto=upto: taken(pair, definitions) == upto))
    assert sorted(of_cards(pair, definitions)) == sorted(expected)


def taken(pair, definitions):
    """The offsets of both logs up to which pairs were made, together."""
    with redis.Redis.from_url(pair.redis_url) as client:
        keys = client.scan_iter(match=f"*{made_key(definitions.joins[0])}:next", count=10_000)
        return sum(int(client.hget(key, "next") or 0) for key in keys)


def test_topics_of_different_size_are_refused_before_anything_is_made(embedded_pair, tmp_path):
    tag = tagged()
    definitions = meetings(tag)
    ensure_topics(embedded_pair.kafka, {f"payments-{tag}": 2, f"logins-{tag}": 3})
    with pytest.raises(ConfigError, match=rf"need the same number .* payments-{tag} has 2, logins-{tag} has 3"):
        build_worker(definitions, settings_of(embedded_pair, tag, tmp_path), until_end=True)


def test_a_join_that_was_redefined_needs_another_name(embedded_pair, tmp_path):
    tag = tagged()
    produce(embedded_pair.kafka, tag, history(tag, 100))
    settings = settings_of(embedded_pair, tag, tmp_path)
    work(meetings(tag), settings)
    with pytest.raises(StateError, match=r"pairs of another definition.*another name"):
        work(meetings(tag, within="3m"), settings)


def test_a_replay_of_joins_must_end(embedded_pair, tmp_path):
    tag = tagged()
    with pytest.raises(ConfigError, match="--until-end"):
        build_worker(meetings(tag), settings_of(embedded_pair, tag, tmp_path))
