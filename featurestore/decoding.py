"""JSON records into columns: bytes in, a frame and a list of rejects out.

A record is accepted when it is one JSON object (RFC 8259, UTF-8) whose known fields have the types of the schema:

- "int" and "timestamp[ms]" take integer literals within int64: no `1.0`, no `1e3`, no booleans, no strings;
- "float" takes any number literal, integers too, and gives the nearest double, which must be finite;
- "str" takes strings only and never parses them; escaped NULs and control characters are kept, lone surrogates refused;
- "bool" takes `true` and `false` only;
- a missing or null field is null, unless it is required;
- of a repeated field the last value counts, and every one must be allowed: of its type, in range, not null if required;
- unknown fields are skipped: they must be well-formed JSON, and no more is asked of them.

The fate of a record never depends on its neighbours, so any cut into batches gives the same rows. What these rules mean
is msgspec's to say, which is strict; what it does not check (size, depth, the encoding of skipped fields) is checked on
the joined batch. Plain records never come that far: compiled code makes columns of them at ten times the rate
(`featurestore.parsing`), and takes only what msgspec would take.
"""

from __future__ import annotations

import csv
import re
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import polars as pl

from featurestore.expressions import TYPES
from featurestore.parsing import MAX_COLUMNS, columns_of, names_of, parsed
from featurestore.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

T = TypeVar("T")

#: The newest event time that is taken for a date: the last millisecond of the year 9999.
MAX_TIME = 253_402_300_799_999

#: The longest key, in characters: keys are held in memory and in the names of Redis keys.
MAX_KEY = 256

#: The longest record, in bytes, and its deepest nesting, in levels.
MAX_BYTES, MAX_DEPTH = 65_536, 32

#: The longest detail of a reject, in characters.
MAX_DETAIL = 200
# Error codes and how msgspec words them; the tests hold the wording.
_SIGNS = (
    ("null", "got `null`"),
    ("oversized", "of length"),
    ("range", "out of range"),
    ("range", "` >= "),
    ("range", "` <= "),
)
_INT = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_JSON_TYPES: dict[str, Any] = {"str": str, "int": _INT64, "float": float, "bool": bool, "timestamp[ms]": _INT64}
_EVENT_TIME = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME)]
_KEY = Annotated[str, msgspec.Meta(max_length=MAX_KEY)]

# "[" with this bit set is "{", and no other byte becomes one.
_BRACE_BIT = 0x20
_DEPTH_STEP = np.zeros(256, np.int64)
_DEPTH_STEP[list(b"[{")] = 1
_DEPTH_STEP[list(b"]}")] = -1
# Possessive, and content with a missing end: linear on any bytes.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)


#: What events may not be: error, detail, and whether each event is so.
Wrong = tuple[str, str, np.ndarray[Any, np.dtype[np.bool_]]]


class Reject(NamedTuple):
    """A record that was not accepted.

    `row` is its index in the batch, `place` the row of it that is meant where it holds several. `error` is one of:
    "tombstone" (no value), "oversized" (too many bytes, or a key too long), "encoding" (not UTF-8), "depth",
    "malformed" (not one value of its format), "missing", "null" (a required field), "type", "range". `detail` says
    more, in at most 200 characters.
    """

    row: int
    error: str
    detail: str
    place: int = 0


class Decoded(NamedTuple):
    """The accepted events as columns, the int64 indices of their records, and the others; all in the batch's order.

    `places` says which row of its record an event is, where records hold several.
    """

    frame: pl.DataFrame
    rows: npt.NDArray[np.int64]
    rejects: list[Reject]
    places: npt.NDArray[np.int64] | None = None

    def reject(self, at: int, error: str, detail: str) -> Reject:
        """The event at this place of the frame, refused."""
        return Reject(int(self.rows[at]), error, detail, 0 if self.places is None else int(self.places[at]))

    def without(self, bad: npt.NDArray[np.bool_], rejects: Iterable[Reject]) -> Decoded:
        """Without the events that are bad, for these reasons."""
        if not bad.any():
            return self
        places = None if self.places is None else self.places[~bad]
        return Decoded(self.frame.filter(~bad), self.rows[~bad], sorted([*self.rejects, *rejects]), places)


def set_apart(decoded: Decoded, wrong: Iterable[Wrong]) -> Decoded:
    """Without the events that are wrong in some way; the first that is found is the reason."""
    bad, rejects = np.zeros(len(decoded.frame), np.bool_), []
    for error, detail, found in wrong:
        rejects += [decoded.reject(at, error, detail) for at in np.flatnonzero(found & ~bad).tolist()]
        bad |= found
    return decoded.without(bad, rejects)


def decode_json(
    schema: Mapping[str, str],
    required: Sequence[str],
    event_time: str,
    values: Sequence[bytes | None],
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
) -> Decoded:
    """Decode one JSON object a value into the columns of `schema` (name -> canonical type).

    `required` columns and `event_time` must be present and not null; required strings, the keys, hold at most
    `MAX_KEY` characters. The event time (ms) lies between 0 and `MAX_TIME`. A value has at most `max_bytes` bytes and
    `max_depth` levels, the outermost object being the first. Nothing in `values` raises: what breaks a rule is
    returned as a `Reject`.
    """
    values = Values.of(values)
    if len(schema) > MAX_COLUMNS:
        return _decoded_strictly(schema, required, event_time, values, max_bytes, max_depth)
    limits = (MAX_TIME, max_bytes, MAX_KEY)
    names = names_of(tuple(schema.items()), frozenset(required), event_time, limits)
    found = parsed(names, values)
    frame, rest = columns_of(schema, names, found, values), np.flatnonzero(~found.taken)
    if not len(rest):
        return Decoded(frame, np.arange(len(values), dtype=np.int64), [])
    strict = _decoded_strictly(schema, required, event_time, values.taken(rest), max_bytes, max_depth)
    return joined([(np.flatnonzero(found.taken), frame)], rest, strict)


def joined(
    parts: Sequence[tuple[npt.NDArray[np.int64], pl.DataFrame]], rest: npt.NDArray[np.int64], strict: Decoded
) -> Decoded:
    """What was decoded of some rows of a batch, and what another decoder says of the `rest`, in the batch's order."""
    rows = np.concatenate([*(rows for rows, _ in parts), rest[strict.rows]])
    order = np.argsort(rows)
    rejects = [reject._replace(row=int(rest[reject.row])) for reject in strict.rejects]
    return Decoded(pl.concat([*(frame for _, frame in parts), strict.frame])[order], rows[order], rejects)


def _decoded_strictly(
    schema: Mapping[str, str],
    required: Sequence[str],
    event_time: str,
    values: Sequence[bytes | None],
    max_bytes: int,
    max_depth: int,
) -> Decoded:
    """As `decode_json`, each record by msgspec."""
    decode = _decoder(tuple(schema.items()), frozenset(required), event_time).decode
    return decode_each(schema, values, decode, lambda texts: beyond_limits(texts, max_bytes, max_depth))


def decode_each(
    schema: Mapping[str, str],
    values: Sequence[bytes | None],
    decode: Callable[[bytes], msgspec.Struct],
    beyond: Callable[[list[bytes]], list[Reject]],
) -> Decoded:
    """Decode record by record, but those that are `beyond` what need be looked at. `decode` makes an `event_type`."""
    values = list(values)
    texts = [value or b"" for value in values]
    rejects = beyond(texts)
    if not all(values):
        rejects += [Reject(row, "tombstone", "the record has no value") for row, v in enumerate(values) if v is None]
    return decode_items(schema, _without(rejects, texts), decode, rejects, len(values))


def decode_items(
    schema: Mapping[str, str],
    items: Iterable[tuple[int, T]],
    decode: Callable[[T], msgspec.Struct],
    rejects: list[Reject],
    count: int,
) -> Decoded:
    """Decode some of `count` records, given with their rows; the others are among the `rejects` already."""
    records: list[msgspec.Struct] = []
    keep = records.append
    for row, item in items:
        try:
            keep(decode(item))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, csv.Error) as error:
            rejects.append(Reject(row, _code(error), str(error)[:MAX_DETAIL]))
    rejects.sort()
    columns = {
        name: pl.Series(values=list(map(attrgetter(_attribute(i)), records)), dtype=TYPES[kind])
        for i, (name, kind) in enumerate(schema.items())
    }
    rows = np.delete(np.arange(count, dtype=np.int64), [reject.row for reject in rejects])
    return Decoded(pl.DataFrame(columns), rows, rejects)


@lru_cache(maxsize=256)
def _decoder(
    schema: tuple[tuple[str, str], ...], required: frozenset[str], event_time: str
) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(event_type(schema, required, event_time))


@lru_cache(maxsize=256)
def event_type(schema: tuple[tuple[str, str], ...], required: frozenset[str], event_time: str) -> Any:  # noqa: ANN401
    """The type of an event: what is asked of each column."""
    fields: list[Any] = []
    for i, (name, kind) in enumerate(schema):
        if name == event_time:
            fields.append((_attribute(i), _EVENT_TIME))
        elif name in required:
            fields.append((_attribute(i), _KEY if kind == "str" else _JSON_TYPES[kind]))
        else:
            fields.append((_attribute(i), _JSON_TYPES[kind] | None, None))
    names = {_attribute(i): name for i, (name, _) in enumerate(schema)}
    # Records hold no references to each other: without the collector's book-keeping they are made twice as fast.
    return msgspec.defstruct("Event", fields, rename=names, kw_only=True, gc=False)


def value_of(kind: str, text: str) -> object:
    """The value that a text stands for; the text itself where it stands for none, which is then refused."""
    if not text:
        return None
    if kind in ("int", "timestamp[ms]") and _INT.fullmatch(text):
        return int(text[:40])
    if kind == "float" and _FLOAT.fullmatch(text):
        return float(text)
    if kind == "bool":
        return {"true": True, "false": False}.get(text, text)
    return text


def _attribute(i: int) -> str:
    """The attribute that holds column `i`: any text may be a column's name, but not an attribute's."""
    return f"f{i}"


def _without(rejects: list[Reject], texts: list[bytes]) -> Iterable[tuple[int, bytes]]:
    """Rows and texts that have not been rejected."""
    if not rejects:
        return enumerate(texts)
    rejected = {reject.row for reject in rejects}
    return [(row, text) for row, text in enumerate(texts) if row not in rejected]


def beyond_limits(texts: list[bytes], max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> list[Reject]:
    """Rejects for values that are too long, too deep or not UTF-8."""
    rejects = []
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    joined = b"\n".join(texts)
    suspects = set(np.flatnonzero((sizes > max_bytes) | (_openings(joined, sizes) > max_depth)).tolist())
    if not _is_utf8(joined):
        suspects.update(row for row, text in enumerate(texts) if not text.isascii())
    for row in suspects:
        text = texts[row]
        if len(text) > max_bytes:
            rejects.append(Reject(row, "oversized", f"{len(text)} bytes, at most {max_bytes} are accepted"))
        elif not _is_utf8(text):
            rejects.append(Reject(row, "encoding", "not UTF-8"))
        elif _depth(text) > max_depth:
            rejects.append(Reject(row, "depth", f"nested deeper than the {max_depth} levels that are accepted"))
    return rejects


def _openings(joined: bytes, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many opening brackets each value holds, those in strings included: no value is nested deeper than that."""
    text = np.frombuffer(joined, np.uint8) | _BRACE_BIT
    openings = np.flatnonzero(np.equal(text, ord("{"), out=text.view(np.bool_)))
    return np.diff(np.searchsorted(openings, np.cumsum(sizes + 1)), prepend=0)


def _depth(text: bytes) -> int:
    """How deep a value is nested, brackets in strings left out."""
    bare = np.frombuffer(_STRING.sub(b"", text), np.uint8)
    return int(np.cumsum(_DEPTH_STEP[bare]).max(initial=0))


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _code(error: Exception) -> str:
    """The error code of what a decoder raised."""
    if isinstance(error, RecursionError):
        return "depth"
    if isinstance(error, UnicodeDecodeError):
        return "encoding"
    if not isinstance(error, msgspec.ValidationError):
        return "malformed"
    problem, at_field, _ = str(error).partition(" - at `$")
    if not at_field:
        return "missing" if problem.startswith("Object missing") else "type"
    return next((code for code, sign in _SIGNS if sign in problem), "type")
