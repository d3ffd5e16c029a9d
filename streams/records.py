"""What a fetch brings of a partition, as columns: Kafka's record batches (format 2) taken apart in compiled code.

aiokafka makes an object of every record. Consumers whose value deserializer is `COLUMNS` get one `Slab` instead of all
the records of a fetch; others are left alone. What Kafka promises is kept: records of aborted transactions, control
records and those before the offset asked for are left out, and what is damaged is an error, never skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cramjam
import numpy as np
import pyarrow as pa
from aiokafka.codec import snappy_decode
from aiokafka.consumer import fetcher
from aiokafka.record.util import calc_crc32c
from numpy.typing import NDArray

from featurestore.errors import StateError
from featurestore.kernel.bare import bared
from featurestore.kernel.layout import ZERO, compiled, entry
from featurestore.values import Values

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Headers = tuple[tuple[str, bytes], ...]

MAX_EXPANDED = 256 << 20
"""Bytes that a compressed record batch may have: a broker takes a megabyte, of which zstd makes gigabytes."""

# Offset, length, leader's epoch, format, checksum, attributes, last offset and record count relative to the first
# offset, first and last timestamp, producer, its epoch, sequence, number of records.
_HEAD = struct.Struct(">qiibIhiqqqhii")
_CHECKED_FROM = 21  # the checksum is of all that follows it
_LENGTH_FROM = 12
_LEAST_RECORD = 7  # bytes
_CODEC, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_CODECS = {1: "gzip", 3: "lz4", 4: "zstd"}
_SNAPPY = 2

COLUMNS = object()
"""In the place of a value deserializer: this consumer takes slabs."""

# Rows of what `_unpack` writes, a column a record.
OFFSET, STAMP, KEY, KEY_LENGTH, VALUE, VALUE_LENGTH, HEADERS, HEADERS_LENGTH = range(8)


@dataclass(slots=True)
class Slab:
    """Records in offset order. All before `next` is accounted for. For `headers` see `headers_of`."""

    next: int
    offsets: Ints
    timestamps: Ints
    keys: Values[bytes | None]
    values: Values[bytes | None]
    headers: Values[bytes] | list[Headers]

    def __len__(self) -> int:
        return len(self.offsets)


class _Section(NamedTuple):
    """The records of one record batch: where they lie, how many, from which offset and time on."""

    data: bytes | memoryview
    records: int
    offset: int
    stamp: int
    is_append_time: bool


class MemoryRecords(fetcher.MemoryRecords):
    """aiokafka's, with the bytes that it was made of."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


PlainRecords = fetcher.PartitionRecords


class SlabRecords(PlainRecords):  # type: ignore[valid-type,misc]
    """Gives one slab of all records fetched."""

    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[Slab]:
        asked: int = self.next_fetch_offset
        sections = list(self._sections(memoryview(self._records.data)))
        slab = _slab(sections, asked, self.next_fetch_offset)
        if len(slab):
            yield slab

    def _sections(self, raw: memoryview) -> Iterator[_Section]:
        at = 0
        while at + _HEAD.size <= len(raw):
            head = _HEAD.unpack_from(raw, at)
            base, length, _, version, checksum, attributes, last, first_stamp, last_stamp, producer = head[:10]
            end = at + _LENGTH_FROM + length
            if end > len(raw):
                break  # brokers cut the last batch off where the fetch is full
            where = f"{self._tp.topic}[{self._tp.partition}] at offset {base}"
            if version != 2:
                raise _damaged(where, f"it has format {version}, which brokers from 0.11 on do not write")
            if end < at + _HEAD.size or calc_crc32c(raw[at + _CHECKED_FROM : end]) != checksum:
                raise _damaged(where, "its checksum is wrong")
            if not self._is_left_out(raw[at + _HEAD.size : end], base, attributes, producer):
                data = _expanded(raw[at + _HEAD.size : end], attributes & _CODEC, where)
                if head[-1] * _LEAST_RECORD > len(data):
                    raise _damaged(where, f"it cannot hold {head[-1]} records")
                appended = bool(attributes & _APPEND_TIME)
                yield _Section(data, head[-1], base, last_stamp if appended else first_stamp, appended)
            self.next_fetch_offset = max(self.next_fetch_offset, base + last + 1)
            at = end

    def _is_left_out(self, data: memoryview, base: int, attributes: int, producer: int) -> bool:
        """Whether a record batch holds nothing for readers; keeps track of who has aborted."""
        control = bool(attributes & _CONTROL)
        if self._isolation_level == fetcher.READ_COMMITTED and producer >= 0:
            self._consume_aborted_up_to(base)
            if control and _is_abort(data):
                self._aborted_producers.discard(producer)
            if attributes & _TRANSACTIONAL and producer in self._aborted_producers:
                return True
        return control


def _partition_records(*args: Any) -> Any:  # noqa: ANN401
    """What aiokafka is to make of a fetch; the sixth argument is the value deserializer."""
    return (SlabRecords if args[5] is COLUMNS else PlainRecords)(*args)


fetcher.MemoryRecords = MemoryRecords
fetcher.PartitionRecords = _partition_records


def _damaged(where: str, why: str) -> StateError:
    return StateError(
        f"{where}: a record batch cannot be read: {why}. The broker's log is damaged, or something between it and here "
        "is; nothing was skipped. Restore the partition from a replica, or its archive, and start again"
    )


def _expanded(data: memoryview, codec: int, where: str) -> bytes | memoryview:
    if not codec:
        return data
    try:
        if codec == _SNAPPY:
            return _unsnapped(bytes(data), where)
        with pa.CompressedInputStream(pa.BufferReader(data), _CODECS[codec]) as stream:
            expanded: bytes = stream.read(MAX_EXPANDED + 1)
    except KeyError:
        raise _damaged(where, f"there is no codec {codec}") from None
    except OSError as error:
        raise _damaged(where, f"it does not expand: {error}") from error
    return _not_too_much(expanded, where)


def _unsnapped(data: bytes, where: str) -> bytes:
    try:
        return _not_too_much(snappy_decode(data), where)
    except (struct.error, cramjam.DecompressionError) as error:
        raise _damaged(where, f"it does not expand: {error}") from error


def _not_too_much(expanded: bytes, where: str) -> bytes:
    if len(expanded) > MAX_EXPANDED:
        raise StateError(
            f"{where}: a compressed record batch expands to more than {MAX_EXPANDED >> 20} MiB: no honest producer's "
            "does. Delete the records up to there with kafka-delete-records, and start again"
        )
    return expanded


def _slab(sections: list[_Section], asked: int, following: int) -> Slab:
    """The records of the sections from the offset that was asked for on."""
    buffer = np.frombuffer(sections[0].data if len(sections) == 1 else b"".join(s.data for s in sections), np.uint8)
    sizes = np.array([len(section.data) for section in sections], np.int64)
    ends = np.cumsum(sizes)
    numbers = [(s.records, s.offset, s.stamp, s.is_append_time) for s in sections]
    table = np.column_stack([ends - sizes, ends, np.array(numbers, np.int64).reshape(-1, 4)])
    found = np.empty((8, sum(section.records for section in sections)), np.int64)
    count = _unpack(buffer, np.ascontiguousarray(table), asked, found)
    if count < 0:
        raise StateError(f"a record batch at offset {sections[-1 - count].offset} is malformed: nothing was skipped")
    found = found[:, :count]
    parts: Any = [Values(buffer, found[at], found[at + 1]) for at in (KEY, VALUE, HEADERS)]
    return Slab(following, found[OFFSET], found[STAMP], *parts)


@entry
def _unpack(buffer: Bytes, sections: Ints, asked: int, out: Ints) -> int:
    """Take records apart; how many there are from `asked` on, or -1 less the number of a section that is malformed."""
    text, found, count = bared(buffer), bared(out), ZERO
    for s in range(sections.shape[0]):
        at, end, records = sections[s, 0], sections[s, 1], sections[s, 2]
        for _ in range(records):
            at = _record(text, at, end, found, count)
            if at < 0:
                return -1 - s
            offset = found[OFFSET, count] + sections[s, 3]
            found[OFFSET, count] = offset
            found[STAMP, count] = sections[s, 4] + (ZERO if sections[s, 5] else found[STAMP, count])
            count += offset >= asked
        if at != end:
            return -1 - s
    return count


@compiled
def _record(text: Bytes, at: int, end: int, out: Ints, row: int) -> int:
    """Write where the parts of a record lie; returns its end, or -1."""
    length, at = _varint(text, at, end)
    stop = at + length
    if at < 0 or length < 0 or stop > end:
        return -1
    out[STAMP, row], at = _varint(text, at + 1, stop)
    out[OFFSET, row], at = _varint(text, at, stop)
    for part in (KEY, VALUE):
        size, at = _varint(text, at, stop)
        out[part, row], out[part + 1, row] = at, max(size, -1)
        at = at + max(size, ZERO) if at >= 0 else at
        if at < 0 or at > stop:
            return -1
    out[HEADERS, row], out[HEADERS_LENGTH, row] = at, stop - at
    return stop if at < stop else -1


@compiled
def _varint(text: Bytes, at: int, end: int) -> tuple[int, int]:
    """A zigzag number and where it ends; -1 for the end when it does not, or `at` was -1 already."""
    number, shift = ZERO, ZERO
    while 0 <= at < end and shift < 64:
        byte = ZERO + text[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return (number >> 1 & 0x7FFFFFFFFFFFFFFF) ^ -(number & 1), at
        shift += 7
    return ZERO, -1


def _is_abort(data: memoryview) -> bool:
    """Whether the only record of a control batch says that its transaction was aborted."""
    table, out = np.array([[0, len(data), 1, 0, 0, 0]], np.int64), np.empty((8, 1), np.int64)
    if _unpack(np.frombuffer(data, np.uint8), table, 0, out) != 1 or out[KEY_LENGTH, 0] < 4:
        return False
    _, kind = struct.unpack_from(">hh", data, int(out[KEY, 0]))
    return bool(kind == 0)


def headers_of(found: bytes | Headers | None) -> Headers:
    """The headers of a record, names and values in their order; encoded as in its record batch, or read already."""
    if not isinstance(found, bytes):
        return found or ()
    out: list[tuple[str, bytes]] = []
    try:
        count, at = _number(found, 0)
        for _ in range(count):
            name, at = _counted(found, at)
            value, at = _counted(found, at)
            out.append((name.decode(errors="replace"), value))
    except IndexError:
        raise StateError("the headers of a record are malformed: nothing was skipped") from None
    return tuple(out)


def _counted(found: bytes, at: int) -> tuple[bytes, int]:
    size, at = _number(found, at)
    end = at + max(size, 0)
    return found[at:end], end


def _number(found: bytes, at: int) -> tuple[int, int]:
    """As `_varint`, which is slow to call for the few bytes of one record; IndexError where the bytes end before."""
    number = shift = 0
    while (byte := found[at]) > 0x7F:
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
    number |= byte << shift
    return number >> 1 ^ -(number & 1), at + 1


def slab_of(rows: list[Any], following: int) -> Slab:
    """Records that aiokafka has made objects of, as a slab."""
    offsets = np.array([row.offset for row in rows], np.int64)
    stamps = np.array([row.timestamp for row in rows], np.int64)
    keys, values = Values.of([row.key for row in rows]), Values.of([row.value for row in rows])
    return Slab(following, offsets, stamps, keys, values, [row.headers for row in rows])
