"""Protobuf: what reads messages by a schema in .proto text, which protoc compiles, once for each schema.

A message becomes an object with all fields of its schema. A field that is not on the wire has the value that the schema
gives it: null where it can be told from one that was set (`optional`, of a `oneof`, a message), or else 0, "" or false.
Enums are the names of their values, times milliseconds, decimals floats, wrappers what they wrap.

The folder `protos` has what Confluent's registry knows by itself, and so does not give as references.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from datetime import date
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec

from featurestore.errors import ConfigError
from featurestore.messages import OtherError, names_of_enum, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool

    from featurestore.kernel.messages import Shape

    Read = Callable[[Any], Any]

_MAIN = "_.proto"
_PROTOS = Path(__file__).parent / "protos"
_IMPORT = re.compile(r"((?!\.)[\w.-]{1,99}(?<!\.proto)/)*(?!\.)[\w.-]{1,99}\.proto")
_EPOCH = date(1970, 1, 1)
_WRAPPERS = ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")


def _milliseconds(moment: Any) -> int:  # noqa: ANN401 - a message with seconds and nanos
    return int(moment.seconds * 1_000 + moment.nanos // 1_000_000)


def _day(day: Any) -> int:  # noqa: ANN401 - a message with year, month and day
    return (date(day.year, day.month, day.day) - _EPOCH).days * 86_400_000


def _decimal(number: Any) -> float:  # noqa: ANN401 - a message with value and scale
    return float(f"{int.from_bytes(number.value, 'big', signed=True)}e{-number.scale}")


_WELL_KNOWN: Mapping[str, Read] = {
    "confluent.type.Decimal": _decimal,
    "google.type.Date": _day,
    "google.protobuf.Timestamp": _milliseconds,
    "google.protobuf.Duration": _milliseconds,
    **{f"google.protobuf.{name}Value": attrgetter("value") for name in _WRAPPERS},
}


def compiler() -> str:
    """The path of protoc. ConfigError: it is not here, or Python's library is not."""
    try:
        import google.protobuf  # noqa: F401, PLC0415 - an optional dependency
    except ImportError:
        raise ConfigError("Protobuf cannot be read here: pip install 'onceflow[protobuf]'") from None
    found = shutil.which("protoc", path=str(Path(sys.executable).parent)) or shutil.which("protoc")
    if found is None:
        raise ConfigError("Protobuf needs protoc, its compiler: pip install 'onceflow[protobuf]', or put it on PATH")
    return str(Path(found).absolute())


class Messages:
    """Reads messages in Confluent's format, after their id: the place of a message's type, and the message.

    `imports` has the texts of what the schema imports, by name, but for what every registry knows. ValueError: it is no
    schema.
    """

    def __init__(self, text: str, imports: Mapping[str, str]) -> None:
        self._schema, self._pool = compiled(text, imports)
        self._known: dict[str, Read] = {}
        self._types: dict[tuple[int, ...], tuple[Read, Read]] = {}
        self._shapes: dict[Any, Shape | None] = {}

    def __call__(self, content: bytes) -> Any:  # noqa: ANN401
        """The object that a message is. msgspec.DecodeError: it is not as its schema says."""
        from google.protobuf import message  # noqa: PLC0415 - an optional dependency

        try:
            path, at = _place(content)
            parse, plain = self._types.get(path) or self._type(path)
            return plain(parse(content[at:]))
        except (message.DecodeError, ValueError) as error:
            raise msgspec.DecodeError(f"it is not as its schema says: {error}") from error

    def _type(self, path: tuple[int, ...]) -> tuple[Read, Read]:
        from google.protobuf import message_factory  # noqa: PLC0415 - an optional dependency

        kind = type_at(self._schema, self._pool, path)
        made = message_factory.GetMessageClass(kind).FromString, _reader(kind, self._known)
        self._types[path] = made
        return made

    def shape(
        self, head: bytes, content: bytes, columns: Mapping[str, str], paths: Mapping[str, Sequence[str]]
    ) -> Shape | None:
        """What compiled code must know to read columns of messages of this one's type; None: it cannot.

        `head` is what records have before their content.
        """
        try:
            path, at = _place(content)
            kind = type_at(self._schema, self._pool, path)
        except ValueError:
            return None
        key = (head + content[:at], tuple(columns.items()), tuple(paths.items()))
        if key not in self._shapes:
            try:
                self._shapes[key] = shape_of(kind, key[0], columns, paths)
            except OtherError:
                self._shapes[key] = None
        return self._shapes[key]


def compiled(text: str, imports: Mapping[str, str]) -> tuple[FileDescriptorProto, DescriptorPool]:
    """A schema, and where the descriptors of it and of its imports are found. ValueError: it is none."""
    from google.protobuf import descriptor_pb2, descriptor_pool  # noqa: PLC0415 - an optional dependency

    if wrong := next((name for name in imports if not _IMPORT.fullmatch(name)), None):
        raise ValueError(f"it imports {wrong!r}, which is no path of a .proto file")
    with TemporaryDirectory(prefix="onceflow-protobuf-") as folder:
        for name, content in {**imports, _MAIN: text}.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, "utf-8")
        command = [compiler(), "--proto_path=.", f"--proto_path={_PROTOS}", "--include_imports"]
        command += ["--descriptor_set_out=made", _MAIN]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"it is no Protobuf schema: {done.stderr.strip()}")
        files = descriptor_pb2.FileDescriptorSet.FromString(Path(folder, "made").read_bytes()).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:  # those that others import come first
        pool.Add(file)
    return files[-1], pool


def type_at(schema: FileDescriptorProto, pool: DescriptorPool, path: Sequence[int]) -> Descriptor:
    """The type of message at a place: its index in the schema, or that of the message that it is nested in first."""
    names, types = [schema.package] if schema.package else [], schema.message_type
    for index in path:
        if not 0 <= index < len(types):
            raise ValueError(f"its schema has no message at {list(path)}")
        names.append(types[index].name)
        types = types[index].nested_type
    return pool.FindMessageTypeByName(".".join(names))


def _place(content: bytes) -> tuple[tuple[int, ...], int]:
    """The place of a message's type, and where the message begins. The first type is a zero instead of a list."""
    if content.startswith(b"\0"):
        return (0,), 1
    count, at = _zigzag(content, 0)
    if count < 1:
        raise ValueError("it does not say which message of its schema it is")
    path = []
    for _ in range(count):
        index, at = _zigzag(content, at)
        path.append(index)
    return tuple(path), at


def _zigzag(content: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for shift, byte in enumerate(content[at : at + 5]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value >> 1 ^ -(value & 1), at + shift + 1
    raise ValueError("it does not say which message of its schema it is")


def _reader(kind: Descriptor, known: dict[str, Read]) -> Read:
    """What makes an object of a message; `known` are those there are already, for a type may hold itself."""
    if kind.full_name in _WELL_KNOWN:
        return _WELL_KNOWN[kind.full_name]
    if kind.full_name not in known:
        fields: list[tuple[str, Read]] = []
        known[kind.full_name] = lambda message: {name: get(message) for name, get in fields}
        fields += [(field.name, _getter(field, known)) for field in kind.fields]
    return known[kind.full_name]


def _getter(field: FieldDescriptor, known: dict[str, Read]) -> Read:
    """What takes the value of a field from a message."""
    name, get, kind = field.name, attrgetter(field.name), field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        shown = _shown(kind.fields_by_name["value"], known)
        return lambda message: {key: shown(value) for key, value in get(message).items()}
    shown = _shown(field, known)
    if field.is_repeated:
        return lambda message: list(map(shown, get(message)))
    if field.has_presence:
        return lambda message: shown(get(message)) if message.HasField(name) else None
    return (lambda message: shown(get(message))) if field.enum_type else get


def _shown(field: FieldDescriptor, known: dict[str, Read]) -> Read:
    """What a value of a field becomes."""
    if field.message_type is not None:
        return _reader(field.message_type, known)
    if field.enum_type is None:
        return lambda value: value
    names = names_of_enum(field.enum_type)
    return lambda number: names.get(number, number)
