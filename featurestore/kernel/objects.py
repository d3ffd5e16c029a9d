"""Plain JSON objects into columns, in compiled code (see `featurestore.parsing`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featurestore.kernel.bare import bared
from featurestore.kernel.layout import ZERO, compiled, entry, inlined
from featurestore.kernel.numerals import number_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int64]
    Words = NDArray[np.uint64]
    Bools = NDArray[np.bool_]

#: Kinds of columns; a time is an integer from 0 to a greatest one, a key is text of a greatest length.
STR, INT, FLOAT, BOOL, TIME, KEY = range(6)

#: Bytes of the longest string that a view holds itself.
INLINE = 12

# No column of that name; none, and the record is not for this parser.
UNKNOWN, _REFUSED = -1, -2
_QUOTE, _BACKSLASH, _COLON, _COMMA, _OPEN, _CLOSE = (ord(c) for c in '"\\:,{}')
_NOUGHT, _NINE, _A, _F, _U = (ord(c) for c in "09afu")
_ESCAPES = np.array([[ord(a), ord(b)] for a, b in zip('"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True)], np.int64)
_SPACE = 0x20  # the first that is no control character; a letter with this bit set is a small one
_BLANKS = 1 << 0x20 | 1 << 0x09 | 1 << 0x0A | 1 << 0x0D
_NULL, _TRUE, _FALSE = (int.from_bytes(word, "little") for word in (b"null", b"true", b"false"))


class Names(NamedTuple):
    """The columns: their names in one text, where each ends, their kinds and what is asked of them."""

    text: Bytes
    ends: Ints
    kinds: Ints
    places: Ints  # of text, among the texts; of others, among the words
    required: Ints  # one word: a bit for each column that must be there
    limits: Ints  # the latest time, and the bytes of the longest value and of the longest key
    powers: Words


class Parsed(NamedTuple):
    """What was found in record `i`, where `taken[i]`; `valid` says whether a column is neither missing nor null.

    `words` [columns that are no text, records]; floats are there as their bits. `texts` [columns of text, records, 2]
    are Arrow's views of the records' buffer and, where it has escapes, of `plain`, of which `used[0]` bytes are taken.
    """

    words: Ints
    texts: Ints
    plain: Bytes
    used: Ints
    valid: Bools
    taken: Bools


@entry
def parse_all(buffer: Bytes, starts: Ints, lengths: Ints, names: Names, out: Parsed, guesses: Ints) -> None:
    """Parse each record of the buffer that is a plain object.

    `guesses` are by place in an object the column found last, UNKNOWN at first; one place more than there are columns.
    """
    text, known, found, guess = bared(buffer), bared(names), bared(out), bared(guesses)
    for row in range(starts.shape[0]):
        if 0 < lengths[row] <= known.limits[1]:
            end = starts[row] + lengths[row]
            found.taken[row] = _object(text, starts[row], end, row, known, found, guess)


@compiled
def _object(text: Bytes, at: int, end: int, row: int, names: Names, out: Parsed, guess: Ints) -> bool:
    """Whether the record from `at` up to `end` is a plain object, whose values are written then."""
    at, seen, nth, required = _blank(text, at, end), ZERO, ZERO, names.required[0]
    if at >= end or text[at] != _OPEN:
        return False
    at = _blank(text, at + 1, end)
    if at < end and text[at] == _CLOSE:
        return required == 0 and _blank(text, at + 1, end) == end
    while True:
        at, seen = _member(text, at, end, row, names, out, guess, nth, seen)
        at = _blank(text, at, end) if at >= 0 else end
        if at >= end or (text[at] != _COMMA and text[at] != _CLOSE):
            return False
        last = text[at] == _CLOSE
        at, nth = _blank(text, at + 1, end), nth + 1
        if last:
            return seen & required == required and at == end


@inlined
def _member(
    text: Bytes, at: int, end: int, row: int, names: Names, out: Parsed, guess: Ints, nth: int, seen: int
) -> tuple[int, int]:
    """Write what the `nth` member of an object says; where it ends, or -1, and the columns `seen` by then."""
    if at >= end or text[at] != _QUOTE:
        return -1, seen
    begin = at + 1
    at = _string_end(text, begin, end)
    column = _column(text, begin, at, names, guess, nth) if at >= 0 else _REFUSED
    at = _blank(text, at + 1, end)
    if column == _REFUSED or at >= end or text[at] != _COLON:
        return -1, seen
    at = _blank(text, at + 1, end)
    if column == UNKNOWN:
        return _skipped(text, at, end, names, out), seen
    if seen >> column & 1:
        return -1, seen
    return _value(text, at, end, row, column, names, out), seen | 1 << column


@inlined
def _blank(text: Bytes, at: int, end: int) -> int:
    """Where the next character is that is no white space."""
    while at < end and text[at] <= _SPACE and _BLANKS >> text[at] & 1:
        at += 1
    return at


@compiled
def _column(text: Bytes, begin: int, end: int, names: Names, guess: Ints, nth: int) -> int:
    """The column of this name; _REFUSED for names that a decoder may read otherwise."""
    place = min(nth, guess.shape[0] - 1)
    if guess[place] >= 0 and _is_name(text, begin, end, names, guess[place]):
        return guess[place]
    for at in range(begin, end):
        if text[at] >= 0x80:  # one byte more or less, and it is a known one to who reads it in another way
            return _REFUSED
    for column in range(names.kinds.shape[0]):
        if _is_name(text, begin, end, names, column):
            guess[place] = column
            return column
    return UNKNOWN


@inlined
def _is_name(text: Bytes, begin: int, end: int, names: Names, column: int) -> bool:
    start = names.ends[column - 1] if column else ZERO
    if end - begin != names.ends[column] - start:
        return False
    for i in range(end - begin):  # noqa: SIM110 - Numba has no generators
        if text[begin + i] != names.text[start + i]:
            return False
    return True


@inlined
def _string_end(text: Bytes, at: int, end: int) -> int:
    """Where the quote is that ends a string; -1 when it has escapes, control characters or no end."""
    while at < end:
        byte = text[at]
        if byte == _QUOTE:
            return at
        if byte == _BACKSLASH or byte < _SPACE:
            return -1
        at += 1
    return -1


@compiled
def _value(text: Bytes, at: int, end: int, row: int, column: int, names: Names, out: Parsed) -> int:
    """Write the value of a column that begins here; where it ends, or -1."""
    kind, place = names.kinds[column], names.places[column]
    if _is_word(text, at, end, _NULL, 4):
        return -1 if names.required[0] >> column & 1 else at + 4
    out.valid[column, row] = True
    if kind in (STR, KEY):
        return _text(text, at, end, row, place, names.limits[2] if kind == KEY else end, out)
    if kind == BOOL:
        if _is_word(text, at, end, _TRUE, 4):
            out.words[place, row] = 1
            return at + 4
        return at + 5 if _is_word(text, at, end, _FALSE, 5) else -1
    at, ok, whole, word = number_at(text, at, end, names.powers, kind == FLOAT)
    if not ok or (kind != FLOAT and not whole) or (kind == TIME and not 0 <= word <= names.limits[0]):
        return -1
    out.words[place, row] = word
    return at


@inlined
def _is_word(text: Bytes, at: int, end: int, word: int, length: int) -> bool:
    """Whether the bytes of `word`, the lowest first, stand here."""
    if at + length > end:
        return False
    for i in range(length):  # noqa: SIM110
        if text[at + i] != word >> 8 * i & 0xFF:
            return False
    return True


@compiled
def _text(text: Bytes, at: int, end: int, row: int, place: int, longest: int, out: Parsed) -> int:
    """Write a string as a view of the buffer; where it ends, or -1."""
    if at >= end or text[at] != _QUOTE:
        return -1
    begin = at + 1
    at = _string_end(text, begin, end)
    if at < 0:
        return _escaped_text(text, begin, end, row, place, longest, out)
    if at - begin > longest or not is_utf8(text, begin, at):
        return -1
    out.texts[place, row, 0], out.texts[place, row, 1] = view(text, begin, at - begin, 0)
    return at + 1


@compiled
def _escaped_text(text: Bytes, begin: int, end: int, row: int, place: int, longest: int, out: Parsed) -> int:
    """As `_text`, of a string that begins at `begin` and has escapes."""
    start = out.used[0]
    at, upto = _unescaped(text, begin, end, out.plain, start)
    if at < 0 or upto - start > longest or not is_utf8(out.plain, start, upto):
        return -1
    out.texts[place, row, 0], out.texts[place, row, 1] = view(out.plain, start, upto - start, 1)
    out.used[0] = upto
    return at + 1


@compiled
def _unescaped(text: Bytes, at: int, end: int, plain: Bytes, to: int) -> tuple[int, int]:
    """Write what a string says; where its quote is, or -1, and where what was written ends.

    Half a surrogate pair becomes what is not UTF-8.
    """
    while at < end:
        byte = ZERO + text[at]
        if byte == _QUOTE:
            return at, to
        if byte < _SPACE:
            return -1, to
        if byte != _BACKSLASH:
            plain[to] = byte
            at, to = at + 1, to + 1
            continue
        if at + 1 < end and text[at + 1] == _U:
            code, at = _code_point(text, at, end)
            if code < 0:
                return -1, to
            to = _write_utf8(plain, to, code)
            continue
        meant = _meaning(text[at + 1]) if at + 1 < end else ZERO
        if meant == 0:
            return -1, to
        plain[to] = meant
        at, to = at + 2, to + 1
    return -1, to


@compiled
def _meaning(letter: int) -> int:
    """The character that a backslash before this one makes of it; 0 for none."""
    for i in range(_ESCAPES.shape[0]):
        if _ESCAPES[i, 0] == letter:
            return _ESCAPES[i, 1]
    return ZERO


@compiled
def _code_point(text: Bytes, at: int, end: int) -> tuple[int, int]:
    """The character that one escape by number stands for, or two of them, and where they end; -1 for no number."""
    code, after = _hexadecimal(text, at + 2, end), at + 6
    if 0xD800 <= code < 0xDC00 and after + 1 < end and text[after] == _BACKSLASH and text[after + 1] == _U:
        low = _hexadecimal(text, after + 2, end)
        if 0xDC00 <= low < 0xE000:
            return 0x10000 + (code - 0xD800 << 10) + (low - 0xDC00), after + 6
    return code, after


@compiled
def _hexadecimal(text: Bytes, at: int, end: int) -> int:
    """Four digits of base 16; -1 when they are not there."""
    number = ZERO
    if at + 4 > end:
        return ZERO - 1
    for i in range(at, at + 4):
        byte = ZERO + text[i]
        letter = byte | _SPACE
        if _NOUGHT <= byte <= _NINE:
            number = number << 4 | byte - _NOUGHT
        elif _A <= letter <= _F:
            number = number << 4 | letter - _A + 10
        else:
            return ZERO - 1
    return number


@compiled
def _write_utf8(plain: Bytes, to: int, code: int) -> int:
    """Write a character; where it ends."""
    more = 0 if code < 0x80 else 1 if code < 0x800 else 2 if code < 0x10000 else 3
    if more == 0:
        plain[to] = code
        return to + 1
    plain[to] = (0xF0 << 3 - more & 0xFF) | code >> 6 * more
    for i in range(1, more + 1):
        plain[to + i] = 0x80 | code >> 6 * (more - i) & 0x3F
    return to + more + 1


@inlined
def view(text: Bytes, begin: int, length: int, buffer: int) -> tuple[int, int]:
    """The two words of Arrow's view of a string in one of the buffers."""
    low, high = ZERO, ZERO
    for i in range(min(length, 4)):
        low |= (ZERO + text[begin + i]) << 8 * i
    if length <= INLINE:
        for i in range(4, length):
            high |= (ZERO + text[begin + i]) << 8 * (i - 4)
    else:
        high = begin << 32 | buffer
    return low << 32 | length, high


@entry
def view_all(buffer: Bytes, starts: Ints, lengths: Ints, out: Ints) -> None:
    """Write Arrow's views of strings in the buffer; of a length below 0 there is none, and nothing is written."""
    text = bared(buffer)
    for i in range(starts.shape[0]):
        if lengths[i] >= 0:
            out[i, 0], out[i, 1] = view(text, starts[i], lengths[i], 0)


@compiled
def is_utf8(text: Bytes, at: int, end: int) -> bool:
    """Whether the bytes are UTF-8: shortest forms, no surrogates, nothing above U+10FFFF (RFC 3629)."""
    while at < end:
        lead = text[at]
        at += 1
        if lead < 0x80:
            continue
        more = 1 if 0xC2 <= lead < 0xE0 else 2 if 0xE0 <= lead < 0xF0 else 3 if 0xF0 <= lead < 0xF5 else 0
        if more == 0 or at + more > end:
            return False
        least = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
        most = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
        if not least <= text[at] <= most:
            return False
        for i in range(1, more):
            if text[at + i] & 0xC0 != 0x80:
                return False
        at += more
    return True


@compiled
def _skipped(text: Bytes, at: int, end: int, names: Names, out: Parsed) -> int:
    """Where a value of no column ends; -1 when it is not one that is plain."""
    if at >= end:
        return -1
    if text[at] == _QUOTE:
        begin = at + 1
        at = _string_end(text, begin, end)
        if at < 0:  # written where it will be written over
            at, upto = _unescaped(text, begin, end, out.plain, out.used[0])
            return at + 1 if at >= 0 and is_utf8(out.plain, out.used[0], upto) else -1
        return at + 1 if is_utf8(text, begin, at) else -1
    if _is_word(text, at, end, _NULL, 4) or _is_word(text, at, end, _TRUE, 4):
        return at + 4
    if _is_word(text, at, end, _FALSE, 5):
        return at + 5
    at, ok, _, _ = number_at(text, at, end, names.powers, True)
    return at if ok else -1
