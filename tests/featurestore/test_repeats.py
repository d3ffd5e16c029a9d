"""Which events are repeats is a function of a bounded stretch of the log, however it is read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import DefinitionError, Source
from featurestore.kernel import repeats as kernel
from featurestore.repeats import Repeats, without_repeats
from featurestore.sources import ROW_BITS
from tests.featurestore.helpers import callable_part

hashed = callable_part(kernel.hashed)

KINDS = {"str": pl.String, "int": pl.Int64}
# As many pairwise different texts as integers, some of them prefixes of others, one longer than a word of the hash.
TEXTS = ["", "a", "aa", "\0", "\0\0", "é", "a" * 8, "a" * 9, "0123456789abcdef-and-more", "b"]


def source(kind="str", dedup=3, **options):
    return Source(
        "payments", schema={"id": kind, "at": int}, event_time="at", key="id", id="id", dedup=dedup, **options
    )


def frame(ids, kind, offsets, partition=0):
    events = pl.DataFrame({"id": ids, "_offset": offsets}, schema={"id": KINDS[kind], "_offset": pl.Int64})
    return events.with_columns(pl.lit(partition, pl.Int32).alias("_partition"))


def oracle(log, dedup, bits=0):
    """Whether each of the (offset, id) repeats an id: as the words say it."""
    return [
        any(b == a and a is not None and (at >> bits) - (then >> bits) <= dedup for then, b in log[:i])
        for i, (at, a) in enumerate(log)
    ]


@st.composite
def logs(draw, bits=0):
    """Offsets with holes and few ids, so that many come again at any distance."""
    kind = draw(st.sampled_from(["str", "int"]))
    values = TEXTS if kind == "str" else [0, -1, 2**63 - 1, -(2**63), 1, 256, 2**32, 7, 8, 9]
    ids = draw(st.lists(st.none() | st.sampled_from(values[: draw(st.integers(1, 10))]), max_size=40))
    steps = draw(st.lists(st.integers(1, 4), min_size=len(ids), max_size=len(ids)))
    offsets = (np.cumsum(steps) + draw(st.integers(-1, 5))).tolist()
    if bits:  # several events in a record
        offsets = [(offset // 3 << bits) + offset for offset in offsets]
    return kind, list(zip(offsets, ids, strict=True))


def cuts(draw, count):
    return [0, *sorted(draw(st.lists(st.integers(0, count), max_size=5))), count]


def found(made, kind, log, places):
    """Offsets of the repeats that are told, the log given in pieces."""
    repeats, out = Repeats(made), []
    for begin, end in pairwise(places):
        part = log[begin:end]
        events = frame([each for _, each in part], kind, [at for at, _ in part])
        kept, again = repeats.sort_out(events)
        assert sorted([*kept["_offset"].to_list(), *again.tolist()]) == [at for at, _ in part]
        out += again.tolist()
    return out


@given(st.data(), st.integers(1, 12), st.sampled_from([0, ROW_BITS]))
def test_however_a_log_is_cut_its_repeats_are_those_of_the_oracle(data, dedup, bits):
    kind, log = data.draw(logs(bits))
    made = source(kind, dedup, format="arrow" if bits else "json")
    expected = [at for (at, _), again in zip(log, oracle(log, dedup, bits), strict=True) if again]
    assert found(made, kind, log, cuts(data.draw, len(log))) == expected


@given(st.data(), st.integers(1, 12), st.sampled_from([0, ROW_BITS]))
def test_who_begins_anywhere_and_reads_the_records_before_finds_the_same(data, dedup, bits):
    kind, log = data.draw(logs(bits))
    made = source(kind, dedup, format="arrow" if bits else "json")
    begin = data.draw(st.integers(0, log[-1][0] + 1 if log else 0))
    whole = [at for at in found(made, kind, log, [0, len(log)]) if at >= begin]
    rest = [(at, each) for at, each in log if at >> bits >= (begin >> bits) - dedup]
    assert [at for at in found(made, kind, rest, cuts(data.draw, len(rest))) if at >= begin] == whole


@given(st.data(), st.integers(1, 12), st.sampled_from([0, ROW_BITS]))
def test_what_is_left_of_a_log_has_no_repeats(data, dedup, bits):
    """So a replay of an archive, which does not keep them, changes nothing."""
    kind, log = data.draw(logs(bits))
    made = source(kind, dedup, format="arrow" if bits else "json")
    events = pl.concat([frame([x for _, x in log], kind, [at for at, _ in log], p) for p in range(2)])
    kept = without_repeats(made, events)
    again = oracle(log, dedup, bits)
    assert kept["_offset"].to_list() == 2 * [at for (at, _), gone in zip(log, again, strict=True) if not gone]
    assert without_repeats(made, kept).equals(kept)


@pytest.mark.parametrize("dedup", [100, 5_000, 200_000])
def test_memory_is_bounded_and_keeps_what_it_must_however_much_comes(dedup):
    made, rng = source("int", dedup), np.random.default_rng(dedup)
    repeats, last, size = Repeats(made), {}, 10_000
    for begin in range(0, 300_000, size):
        ids = rng.integers(0, 3 * dedup, size)
        _, again = repeats.sort_out(frame(ids, "int", np.arange(begin, begin + size)))
        told = set(again.tolist())
        for at, each in enumerate(ids.tolist(), begin):
            assert (at in told) == (each in last and at - last[each] <= dedup)
            last[each] = at
    assert len(repeats._table) <= 4 * (dedup + size)


def test_a_source_without_an_id_keeps_all():
    plain = Source("payments", schema={"id": str, "at": int}, event_time="at", key="id")
    events = frame(["a", "a"], "str", [0, 1])
    assert without_repeats(plain, events) is events


def test_ids_are_hashed_by_sip_hash_as_its_authors_say():
    key = np.frombuffer(bytes(range(16)), np.uint64)
    for length, expected in ((0, "a3817f04ba25a8e66df67214c7550293"), (1, "da87c1d86b99af44347659119b22fc45")):
        low, high = hashed(np.arange(length, dtype=np.uint8), 0, length, key)
        assert (int(low).to_bytes(8, "little") + int(high).to_bytes(8, "little")).hex() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "ids"}, "there is no column 'ids'; did you mean 'id'"),
        ({"id": "x"}, "id 'x' must be str or int in the schema, not float"),
        ({"id": "id", "dedup": 0}, "dedup says how many records back an id counts, not 0"),
    ],
)
def test_an_id_that_cannot_be_one_is_refused(changes, message):
    with pytest.raises(DefinitionError, match=message):
        Source("payments", schema={"id": str, "x": float, "at": int}, event_time="at", key="id", **changes)
