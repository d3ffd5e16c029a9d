from __future__ import annotations

import gzip
import itertools

import numpy as np
import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import StateError
from streams import records
from streams.records import COLUMNS, MemoryRecords, headers_of, slab_of

TP = TopicPartition("payments", 3)
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

content = st.none() | st.binary(max_size=20) | st.binary(min_size=200, max_size=300)
headers = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=3)
record = st.tuples(st.integers(0, 2**41), content, content, headers)
batch = st.tuples(st.sampled_from(list(CODECS.values())), st.integers(0, 9), st.lists(record, min_size=1, max_size=30))


def encoded(base, rows, codec=0, *, transactional=False, producer=-1):
    """A record batch of (timestamp, key, value, headers) as a producer makes it, at an offset."""
    epoch = -1 if producer < 0 else 0
    builder = DefaultRecordBatchBuilder(2, codec, int(transactional), producer, epoch, epoch, 10_000_000)
    for i, (stamp, key, value, pairs) in enumerate(rows):
        assert builder.append(i, stamp, key, value, pairs) is not None
    return base.to_bytes(8, "big") + bytes(builder.build())[8:]


def control(base, kind, producer):
    """A control record: 0 aborts, 1 commits."""
    raw = bytearray(encoded(base, [(0, bytes([0, 0, 0, kind]), b"", [])], transactional=True, producer=producer))
    raw[22] |= 0x20
    raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4, "big")
    return bytes(raw)


def log_of(batches):
    """Record batches one after another, with `gap` offsets missing after each."""
    out, base = [], 100
    for codec, gap, rows in batches:
        out.append(encoded(base, rows, codec))
        base += len(rows) + gap
    return b"".join(out)


def taken(raw, start=100, aborted=None, level=1):
    """What this project makes of a fetch: the slabs, and where the next fetch begins."""
    got = fetcher.PartitionRecords(TP, MemoryRecords(raw), aborted, start, None, COLUMNS, True, level)
    return list(got), got.next_fetch_offset


def objects(raw, start=100, aborted=None, level=1):
    """What aiokafka makes of it."""
    got = fetcher.PartitionRecords(TP, MemoryRecords(raw), aborted, start, None, None, True, level)
    return list(got), got.next_fetch_offset


def rows_of(slabs):
    return [
        row
        for slab in slabs
        for row in zip(
            slab.offsets.tolist(),
            slab.timestamps.tolist(),
            slab.keys,
            slab.values,
            map(headers_of, slab.headers),
            strict=True,
        )
    ]


@settings(max_examples=200)
@given(st.lists(batch, min_size=1, max_size=4), st.integers(0, 60), st.integers(0, 70))
def test_slabs_hold_what_aiokafka_makes_objects_of(batches, skip, cut):
    raw = log_of(batches)
    raw += raw[:cut]  # the last batch cut off, as brokers do
    start = 100 + skip % (len(batches[0][2]))  # brokers begin with the batch that holds what was asked for
    slabs, following = taken(raw, start)
    expected, upto = objects(raw, start)
    assert rows_of(slabs) == rows_of([slab_of(expected, upto)])
    assert following == upto
    assert all(slab.next == upto for slab in slabs)


def test_records_of_aborted_transactions_and_control_records_are_left_out():
    raw = b"".join(
        [
            encoded(100, [(1, None, b"a", [])], transactional=True, producer=7),
            encoded(101, [(1, None, b"b", [])], transactional=True, producer=8),
            control(102, 0, 7),
            control(103, 1, 8),
            encoded(104, [(1, None, b"c", [])], transactional=True, producer=7),
            control(105, 1, 7),
        ]
    )
    slabs, following = taken(raw, aborted=[(7, 100)])
    assert [value for slab in slabs for value in slab.values] == [b"b", b"c"]
    assert following == 106
    assert objects(raw, aborted=[(7, 100)])[1] == 106


def test_a_fetch_of_nothing_but_control_records_moves_on():
    assert taken(control(100, 1, 7)) == ([], 101)


def test_every_flipped_bit_is_noticed():
    raw = log_of([(0, 0, [(1, b"k", b"value", [])] * 3)])
    for at, bit in itertools.product(range(17, len(raw)), range(8)):
        damaged = bytearray(raw)
        damaged[at] ^= 1 << bit
        with pytest.raises(StateError, match="payments\\[3\\] at offset 100: a record batch cannot be read"):
            taken(bytes(damaged))


@settings(max_examples=500)
@given(st.binary(min_size=1, max_size=60), st.integers(0, 200), st.integers(1, 100))
def test_nonsense_with_a_right_checksum_is_refused_or_read_within_its_bounds(noise, at, count):
    raw = bytearray(log_of([(0, 0, [(1, b"k", b"value", [])] * 20)]))
    at = 61 + at % (len(raw) - 61)
    raw[at : at + len(noise)] = noise[: len(raw) - at]
    raw[57:61] = count.to_bytes(4, "big")
    raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4, "big")
    try:
        slabs, _ = taken(bytes(raw))
    except StateError:
        return
    for slab in slabs:
        for part in (slab.keys, slab.values, slab.headers):
            assert (part.starts >= 0).all()
            assert (part.starts + part.lengths <= len(part.buffer)).all()


def with_content(content_bytes, codec, count=1):
    """A record batch whose compressed part is this."""
    raw = bytearray(encoded(100, [(1, None, b"x", [])])[:61]) + content_bytes
    raw[8:12] = (len(raw) - 12).to_bytes(4, "big")
    raw[21:23] = codec.to_bytes(2, "big")
    raw[57:61] = count.to_bytes(4, "big")
    raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4, "big")
    return bytes(raw)


def test_a_batch_that_expands_beyond_all_measure_is_refused_before_it_fills_memory(monkeypatch):
    monkeypatch.setattr(records, "MAX_EXPANDED", 1 << 20)
    with pytest.raises(StateError, match="offset 100: a compressed record batch expands to more than 1 MiB"):
        taken(with_content(gzip.compress(bytes(2 << 20)), CODECS["gzip"]))


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_what_does_not_expand_is_refused(codec):
    with pytest.raises(StateError, match="it does not expand"):
        taken(with_content(b"\xff" * 40, codec))


def test_codecs_and_formats_that_nobody_knows_are_refused():
    with pytest.raises(StateError, match="there is no codec 6"):
        taken(with_content(b"x" * 40, 6))
    old = bytearray(log_of([(0, 0, [(1, None, b"x", [])])]))
    old[16] = 1
    with pytest.raises(StateError, match="it has format 1"):
        taken(bytes(old))


def test_consumers_of_others_get_their_records_as_ever():
    found, _ = objects(log_of([(0, 0, [(5, b"k", b"v", [("h", b"x")])])]))
    assert [(row.offset, row.timestamp, row.key, row.value, row.headers) for row in found] == [
        (100, 5, b"k", b"v", (("h", b"x"),))
    ]
    assert isinstance(slab_of(found, 101).offsets, np.ndarray)
