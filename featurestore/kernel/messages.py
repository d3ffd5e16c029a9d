"""Protobuf's messages into columns, in compiled code (see `featurestore.messages`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featurestore.kernel.bare import bared
from featurestore.kernel.layout import INT_MAX, ZERO, compiled, entry, inlined
from featurestore.kernel.objects import KEY, TIME, is_utf8, view

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.kernel.objects import Names, Parsed

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int64]

#: How a field is on the wire.
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5

#: What is done with a field: nothing, or it is looked at and no more.
PASS, CHECK_TEXT, CHECK_VARINTS, CHECK_FOURS, CHECK_EIGHTS = range(5)
#: A message is entered; seconds and nanoseconds add up to milliseconds.
ENTER, SECONDS, NANOS = range(5, 8)
#: Values of columns, by type; those of 64 bits without a sign must have the highest one clear.
INT64, INT32, UINT32, UINT64, SINT32, SINT64, TRUTH, SFIXED32, REAL32, REAL64, LABEL, TEXT = range(8, 20)

#: A field: its number; what is done, and with which column or node; a bit for what must not come twice, or -1; the
#: labels of an enum.
NUMBER, WIRE, HOW, TARGET, BIT, FIRST_LABEL, END_LABEL, FIELD_WORDS = range(8)
#: A node, which is a message at a path, or one that is only checked: its fields, and the columns that it always has.
FIRST_FIELD, END_FIELD, FIRST_ALWAYS, END_ALWAYS, NODE_WORDS = range(5)

#: Messages within messages, at most.
DEPTH = 16
_BAD = ZERO - 1
_WORD32 = (1 << 32) - 1
_MANY_SECONDS = 1 << 50


class Shape(NamedTuple):
    """What records of one type of message hold."""

    head: Bytes  # what a record begins with
    nodes: Ints  # the outermost is the first
    fields: Ints
    always: Ints  # columns, and the label that is their default, or -1
    labels: Ints  # of enums: number, where the name begins in `names`, where it ends
    names: Bytes


@entry
def read_all(buffer: Bytes, starts: Ints, lengths: Ints, names: Names, shape: Shape, out: Parsed, frames: Ints) -> None:
    """Read each record of the buffer that begins as the shape says, and is plain; `frames` is room, (DEPTH, 2)."""
    text, known, made, found = bared(buffer), bared(names), bared(shape), bared(out)
    stack, head = bared(frames), made.head.shape[0]
    for row in range(starts.shape[0]):
        if head <= lengths[row] <= known.limits[1] and _begins(text, starts[row], made.head):
            at, end = starts[row] + head, starts[row] + lengths[row]
            found.taken[row] = _message(text, at, end, row, known, made, found, stack)


@inlined
def _begins(text: Bytes, at: int, head: Bytes) -> bool:
    for i in range(head.shape[0]):  # noqa: SIM110 - Numba has no generators
        if text[at + i] != head[i]:
            return False
    return True


@compiled
def _message(text: Bytes, at: int, end: int, row: int, names: Names, shape: Shape, out: Parsed, stack: Ints) -> bool:
    """Whether the message from `at` up to `end` is plain; its values are written then."""
    depth, node, seen, stop, field = ZERO, ZERO, ZERO, end, ZERO
    _enter(row, node, names, shape, out)
    while True:
        while at == stop:
            if depth == 0:
                return _is_whole(row, names, out)
            depth -= 1
            node, stop = stack[depth, 0], stack[depth, 1]
        at, tag = _varint(text, at, stop)
        if at < 0 or not 8 <= tag <= _WORD32:
            return False
        field = _field(shape, node, tag >> 3, field)
        if shape.fields[field, NUMBER] != tag >> 3:
            at = _passed(text, at, stop, tag & 7)
            if at < 0:
                return False
            continue
        bit = shape.fields[field, BIT]
        if shape.fields[field, WIRE] != tag & 7 or (bit >= 0 and seen >> bit & 1):
            return False
        seen |= 1 << bit if bit >= 0 else 0
        if shape.fields[field, HOW] != ENTER:
            at = _value(text, at, stop, row, field, names, shape, out)
            if at < 0:
                return False
            continue
        at, upto = _span(text, at, stop)
        if at < 0 or depth == DEPTH:
            return False
        stack[depth, 0], stack[depth, 1] = node, stop
        depth, node, stop = depth + 1, shape.fields[field, TARGET], upto
        _enter(row, node, names, shape, out)


@inlined
def _enter(row: int, node: int, names: Names, shape: Shape, out: Parsed) -> None:
    """Let the columns that a message always has be there; they are 0 and empty from the start."""
    for i in range(shape.nodes[node, FIRST_ALWAYS], shape.nodes[node, END_ALWAYS]):
        column, label = shape.always[i, 0], shape.always[i, 1]
        out.valid[column, row] = True
        if label >= 0:
            _label(row, column, label, names, shape, out)


@inlined
def _label(row: int, column: int, label: int, names: Names, shape: Shape, out: Parsed) -> None:
    begin, end = shape.labels[label, 1], shape.labels[label, 2]
    place = names.places[column]
    out.texts[place, row, 0], out.texts[place, row, 1] = view(shape.names, begin, end - begin, 1)


@inlined
def _is_whole(row: int, names: Names, out: Parsed) -> bool:
    """Whether what must be there is, and the time is one."""
    for column in range(names.kinds.shape[0]):
        if names.required[0] >> column & 1 and not out.valid[column, row]:
            return False
        if names.kinds[column] == TIME and not 0 <= out.words[names.places[column], row] <= names.limits[0]:
            return False
    return True


@inlined
def _field(shape: Shape, node: int, number: int, last: int) -> int:
    """The place of a node's field of this number, which often is the one after the last; of none, any other."""
    first, end = shape.nodes[node, FIRST_FIELD], shape.nodes[node, END_FIELD]
    if first <= last + 1 < end and shape.fields[last + 1, NUMBER] == number:
        return last + 1
    for field in range(first, end):
        if shape.fields[field, NUMBER] == number:
            return field
    return ZERO  # the first of all is none


@inlined
def _varint(text: Bytes, at: int, end: int) -> tuple[int, int]:
    """Where a number of variable length ends, or -1, and the number."""
    value, shift = ZERO, ZERO
    while at < end and shift < 70:
        byte = ZERO + text[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at if shift < 63 or byte < 2 else _BAD, value
        shift += 7
    return _BAD, value


@inlined
def _span(text: Bytes, at: int, end: int) -> tuple[int, int]:
    """Where bytes begin, whose length comes first, or -1, and where they end."""
    at, size = _varint(text, at, end)
    return at if at >= 0 and 0 <= size <= end - at else _BAD, at + size


@compiled
def _passed(text: Bytes, at: int, end: int, wire: int) -> int:
    """Where a field of no interest ends; -1 when it is cut off, or a group."""
    if wire == VARINT:
        return _varint(text, at, end)[0]
    if wire == LENGTH:
        at, upto = _span(text, at, end)
        return upto if at >= 0 else _BAD
    size = 8 if wire == EIGHT_BYTES else 4 if wire == FOUR_BYTES else end + 1
    return at + size if size <= end - at else _BAD


@inlined
def _value(text: Bytes, at: int, end: int, row: int, field: int, names: Names, shape: Shape, out: Parsed) -> int:
    """Do with a field what is to be done; where it ends, or -1."""
    how, column, wire = shape.fields[field, HOW], shape.fields[field, TARGET], shape.fields[field, WIRE]
    if how == PASS:
        return _passed(text, at, end, wire)
    if wire == LENGTH:
        at, upto = _span(text, at, end)
        if at < 0 or not _looks_right(text, at, upto, how):
            return _BAD
        if how == TEXT:
            if names.kinds[column] == KEY and upto - at > names.limits[2]:
                return _BAD
            place = names.places[column]
            out.texts[place, row, 0], out.texts[place, row, 1] = view(text, at, upto - at, 0)
            out.valid[column, row] = True
        return upto
    if wire == VARINT:
        at, word = _varint(text, at, end)
    else:
        at, word = _fixed(text, at, end, 8 if wire == EIGHT_BYTES else 4)
    if at < 0 or (how == UINT64 and word < 0):
        return _BAD
    return at if _is_written(word, row, field, names, shape, out) else _BAD


@inlined
def _looks_right(text: Bytes, at: int, end: int, how: int) -> bool:
    """Whether bytes are what a field of this kind has."""
    if how in (TEXT, CHECK_TEXT):
        return is_utf8(text, at, end)
    if how == CHECK_VARINTS:
        while 0 <= at < end:
            at = _varint(text, at, end)[0]
        return at == end
    return (end - at) % (4 if how == CHECK_FOURS else 8) == 0


@inlined
def _fixed(text: Bytes, at: int, end: int, size: int) -> tuple[int, int]:
    """Where a number of so many bytes ends, or -1, and the number."""
    word = ZERO
    if size > end - at:
        return _BAD, word
    for i in range(size):
        word |= (ZERO + text[at + i]) << 8 * i
    return at + size, word


@inlined
def _is_written(word: int, row: int, field: int, names: Names, shape: Shape, out: Parsed) -> bool:
    """Write what a number means, if a column can have it."""
    how, column = shape.fields[field, HOW], shape.fields[field, TARGET]
    place = names.places[column]
    out.valid[column, row] = True
    if how == LABEL:
        for label in range(shape.fields[field, FIRST_LABEL], shape.fields[field, END_LABEL]):
            if shape.labels[label, 0] == _signed(word):
                _label(row, column, label, names, shape, out)
                return True
        return False
    if how == SECONDS:
        out.words[place, row] += 1_000 * word
        return -_MANY_SECONDS < word < _MANY_SECONDS
    if how == NANOS:
        out.words[place, row] += _signed(word) // 1_000_000
        return True
    out.words[place, row] = _meant(word, how)
    return True


@inlined
def _meant(word: int, how: int) -> int:
    """What a number on the wire means; reals as their bits."""
    if how in (INT32, SFIXED32):
        return _signed(word)
    if how == UINT32:
        return word & _WORD32
    if how == TRUTH:
        return ZERO + (word != 0)
    if how == REAL32:
        return _widened(word)
    if how in (SINT32, SINT64):
        word = word & _WORD32 if how == SINT32 else word
        return (word >> 1 & INT_MAX) ^ -(word & 1)
    return word


@inlined
def _signed(word: int) -> int:
    """The lower 32 bits as a number with a sign."""
    word &= _WORD32
    return word - (word >> 31 << 32)


@inlined
def _widened(word: int) -> int:
    """The bits of a real of 32 bits, as those of one with 64."""
    sign, exponent, fraction = word >> 31 << 63, word >> 23 & 0xFF, word & 0x7F_FFFF
    if exponent == 0xFF:
        return sign | 0x7FF << 52 | fraction << 29
    if exponent == 0:
        if fraction == 0:
            return sign
        exponent = ZERO + 1
        while not fraction >> 23:
            fraction, exponent = fraction << 1, exponent - 1
        fraction &= 0x7F_FFFF
    return sign | exponent + 896 << 52 | fraction << 29
