"""Protobuf straight into columns, in compiled code.

What is usual (proto3, single fields of plain types, times, enums, messages within messages) becomes words here, and
never Python objects. All else is left to `protobuf`'s reader, message by message: this one takes a message only when it
is sure that the other one would take it too, with the same values, and says of none that it is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.kernel import messages as kernel
from featurestore.kernel.messages import EIGHT_BYTES, FOUR_BYTES, LENGTH, VARINT, Shape, read_all
from featurestore.parsing import nothing_parsed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
    from numpy.typing import NDArray

    from featurestore.kernel.objects import Names, Parsed
    from featurestore.values import Values

    Tree = dict[str, Any]  # by field, a column or a tree of what is wanted of a message

#: Of a type's number: how it is on the wire, what is done with its value, and what kinds of columns take it.
_INTS = ("int", "timestamp[ms]")
_TYPES: Mapping[int, tuple[int, int, Sequence[str]]] = {
    1: (EIGHT_BYTES, kernel.REAL64, ("float",)),
    2: (FOUR_BYTES, kernel.REAL32, ("float",)),
    3: (VARINT, kernel.INT64, _INTS),
    4: (VARINT, kernel.UINT64, _INTS),
    5: (VARINT, kernel.INT32, _INTS),
    6: (EIGHT_BYTES, kernel.UINT64, _INTS),
    7: (FOUR_BYTES, kernel.UINT32, _INTS),
    8: (VARINT, kernel.TRUTH, ("bool",)),
    9: (LENGTH, kernel.TEXT, ("str",)),
    12: (LENGTH, kernel.PASS, ()),
    13: (VARINT, kernel.UINT32, _INTS),
    14: (VARINT, kernel.LABEL, ("str",)),
    15: (FOUR_BYTES, kernel.SFIXED32, _INTS),
    16: (EIGHT_BYTES, kernel.INT64, _INTS),
    17: (VARINT, kernel.SINT32, _INTS),
    18: (VARINT, kernel.SINT64, _INTS),
}
_PACKED = {VARINT: kernel.CHECK_VARINTS, FOUR_BYTES: kernel.CHECK_FOURS, EIGHT_BYTES: kernel.CHECK_EIGHTS}
_MESSAGE = 11
_TIMES = ("google.protobuf.Timestamp", "google.protobuf.Duration")
_SCALARS = ("confluent.type.Decimal", "google.type.Date")
_BITS = 62


class OtherError(Exception):
    """A type of message, or a wish for columns, that is not for this reader."""


def shape_of(kind: Descriptor, head: bytes, columns: Mapping[str, str], paths: Mapping[str, Sequence[str]]) -> Shape:
    """What compiled code must know to read columns, whose types are given, at paths. OtherError: it is not for it."""
    tree: Tree = {}
    for column, name in enumerate(columns):
        ways = [way for path in paths[name] if (way := _way(kind, path.split(".")))]
        if len(ways) > 1:
            raise OtherError
        for *inner, last in ways:
            place = tree
            for step in inner:
                place = place.setdefault(step, {})
                if not isinstance(place, dict):
                    raise OtherError
            if last in place:
                raise OtherError
            place[last] = column
    return _Shapes(list(columns.values())).of(kind, head, tree)


def read(values: Values[bytes | None], names: Names, shape: Shape) -> Parsed:
    """Read what is plain among the records that begin as the shape says."""
    out = nothing_parsed(names, len(values), shape.names)
    frames = np.empty((kernel.DEPTH, 2), np.int64)
    read_all(values.buffer, values.starts, values.lengths, names, shape, out, frames)
    return out


def names_of_enum(kind: EnumDescriptor) -> dict[int, str]:
    """The names of an enum's values, by number; of several for one, the first."""
    return {value.number: value.name for value in reversed(kind.values)}


def _way(kind: Descriptor, steps: Sequence[str]) -> list[str]:
    """The path to a field, which ends in the `value` of wrappers; empty where there is none."""
    way = []
    for at, step in enumerate(steps):
        field = kind.fields_by_name.get(step)
        if field is None:
            return []
        if field.is_repeated or (field.message_type and field.message_type.full_name in _SCALARS):
            raise OtherError
        way.append(step)
        last = at + 1 == len(steps)
        if not last and (field.message_type is None or _is_value(field.message_type)):
            return []
        if field.message_type is not None:
            kind = field.message_type
    return [*way, "value"] if _is_value(kind) and kind.full_name not in _TIMES else way


def _is_value(kind: Descriptor) -> bool:
    """Whether a message of this type is read as a value: a time, or a wrapper."""
    return kind.full_name in _TIMES or kind.file.name == "google/protobuf/wrappers.proto"


def _is_proto3(file: FileDescriptor) -> bool:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto  # noqa: PLC0415 - an optional dependency

    made = FileDescriptorProto()
    file.CopyToProto(made)
    return bool(made.syntax == "proto3")


class _Shapes:
    """Makes a shape; `types` are those of the columns."""

    def __init__(self, types: Sequence[str]) -> None:
        self.types = types
        self.nodes: list[tuple[list[list[int]], list[tuple[int, int]]]] = []
        self.checked: dict[str, int] = {}
        self.labels: list[tuple[int, int, int]] = []
        self.names, self.bits = b"", 0

    def of(self, kind: Descriptor, head: bytes, tree: Tree) -> Shape:
        self.node(kind, tree)
        if self.bits > _BITS:
            raise OtherError
        nodes: list[list[int]] = []
        fields, always = [[0] * kernel.FIELD_WORDS], list[tuple[int, int]]()
        for mine, there in self.nodes:
            nodes.append([len(fields), len(fields) + len(mine), len(always), len(always) + len(there)])
            fields += mine
            always += there
        return Shape(
            np.frombuffer(head, np.uint8),
            _words(nodes, kernel.NODE_WORDS),
            _words(fields, kernel.FIELD_WORDS),
            _words(always, 2),
            _words(self.labels, 3),
            np.frombuffer(self.names or b"\0", np.uint8),
        )

    def node(self, kind: Descriptor, tree: Tree) -> int:
        """The number of a new node for messages of this type, of which the tree is wanted."""
        if not _is_proto3(kind.file):
            raise OtherError
        number = len(self.nodes)
        if not tree:
            self.checked[kind.full_name] = number
        fields: list[list[int]] = []
        always: list[tuple[int, int]] = []
        self.nodes.append((fields, always))
        bits: dict[str, int] = {}
        for field in kind.fields:
            if field.name in tree:  # all members of a `oneof` share a bit: only one of them may come
                bits[_group(field)] = self.bits
                self.bits += 1
        for field in kind.fields:
            wire, how, target, *labels = self.field(field, tree.get(field.name), always)
            fields.append([field.number, wire, how, target, bits.get(_group(field), -1), *(labels or (0, 0))])
        return number

    def field(self, field: FieldDescriptor, wanted: int | Tree | None, always: list[tuple[int, int]]) -> Sequence[int]:
        """How a field is on the wire, what is done with it, with which column or node, and its labels."""
        if field.type == _MESSAGE:
            return LENGTH, kernel.ENTER, self.entered(field.message_type, wanted)
        if field.type not in _TYPES or isinstance(wanted, dict):
            raise OtherError
        wire, how, takers = _TYPES[field.type]
        if wanted is None:
            if how == kernel.TEXT:
                return wire, kernel.CHECK_TEXT, 0
            return (LENGTH, _PACKED[wire], 0) if field.is_repeated and field.is_packed else (wire, kernel.PASS, 0)
        if self.types[wanted] not in takers:
            raise OtherError
        labels = self.labelled(field) if how == kernel.LABEL else (0, 0)
        if not field.has_presence:
            always.append((wanted, labels[0] if how == kernel.LABEL else -1))
        return wire, how, wanted, *labels

    def entered(self, kind: Descriptor, wanted: int | Tree | None) -> int:
        """The node of a message within another."""
        if wanted is None:
            return self.checked[kind.full_name] if kind.full_name in self.checked else self.node(kind, {})
        if isinstance(wanted, dict):
            return self.node(kind, wanted)
        if kind.full_name not in _TIMES or self.types[wanted] not in _INTS:
            raise OtherError
        fields = [
            [1, VARINT, kernel.SECONDS, wanted, self.bits, 0, 0],
            [2, VARINT, kernel.NANOS, wanted, self.bits + 1, 0, 0],
        ]
        self.bits += 2
        self.nodes.append((fields, [(wanted, -1)]))
        return len(self.nodes) - 1

    def labelled(self, field: FieldDescriptor) -> tuple[int, int]:
        """Where the labels of an enum begin and end; that of 0, the default, is the first."""
        first = len(self.labels)
        for number, name in sorted(names_of_enum(field.enum_type).items(), key=lambda each: abs(each[0])):
            begin = len(self.names)
            self.names += name.encode()
            self.labels.append((number, begin, len(self.names)))
        return first, len(self.labels)


def _words(rows: Sequence[Sequence[int]], width: int) -> NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(-1, width)


def _group(field: FieldDescriptor) -> str:
    """What can be set only once: a field, or one of several."""
    return f"oneof {field.containing_oneof.name}" if field.containing_oneof else field.name
