"""Numbers as JSON has them, in compiled code: integers within int64, and the nearest floats."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from featurestore.kernel.layout import ZERO, compiled, inlined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Words = NDArray[np.uint64]

_MINUS, _PLUS, _DOT, _NOUGHT, _NINE, _BIG_E = (ord(c) for c in "-+.09E")
_LOWER = 0x20  # a letter with this bit set is a small one
_DIGITS = 18  # as many fit into an int64, whichever they are

_FIRST_POWER, _LAST_POWER = -342, 308  # of ten, in the table
_ONE, _32 = np.uint64(1), np.uint64(32)
_LOW_HALF, _LOW_9 = np.uint64(0xFFFFFFFF), np.uint64(0x1FF)
_MANTISSA = np.uint64((1 << 52) - 1)


@lru_cache(maxsize=1)
def powers_of_five() -> NDArray[np.uint64]:
    """The first 128 bits of 5^q, as Lemire's method wants them rounded; high and low halves."""
    out = []
    for q in range(_FIRST_POWER, _LAST_POWER + 1):
        power = 5 ** abs(q)
        if q < 0:
            bits = (power - 1).bit_length()
            power = (1 << (bits + 127 if q >= -27 else 2 * bits + 128)) // power + 1
        shift = power.bit_length() - 128
        power = power >> shift if shift > 0 else power << -shift
        out.append((power >> 64, power & (2**64 - 1)))
    return np.array(out, np.uint64)


@compiled
def number_at(text: Bytes, at: int, end: int, powers: Words, as_float: bool) -> tuple[int, bool, bool, int]:
    """Where a number ends, whether it is understood, whether it is written as an integer, and its word."""
    negative = at < end and text[at] == _MINUS
    at += negative
    begin, exponent, whole = at, ZERO, True
    at, digits, significant = _digits(text, at, end, ZERO, ZERO)
    ok = at - begin == 1 or (at > begin and text[begin] != _NOUGHT)
    if at < end and text[at] == _DOT:
        point, whole = at + 1, False
        at, digits, significant = _digits(text, point, end, digits, significant)
        ok, exponent = ok and at > point, point - at
    if at < end and text[at] | _LOWER == _BIG_E | _LOWER:
        at, power, complete = _exponent(text, at + 1, end)
        ok, whole, exponent = ok and complete, False, exponent + power
    # Of a negative nought some make the integer 0, and some the float -0.0.
    if not ok or significant > _DIGITS or (negative and whole and digits == 0):
        return at, False, whole, ZERO
    if not as_float:
        return at, True, whole, -digits if negative else digits
    ok, bits = _float_bits(digits, exponent, powers)
    return at, ok, whole, bits | np.int64(-(2**63)) if negative else bits


@inlined
def _digits(text: Bytes, at: int, end: int, digits: int, significant: int) -> tuple[int, int, int]:
    """Where the digits end that begin here, the number that they make with those before, and how many of them count."""
    while at < end and _NOUGHT <= text[at] <= _NINE:
        digits = 10 * digits + (text[at] - _NOUGHT)
        significant += digits != 0 or significant > 0
        at += 1
    return at, digits, significant


@compiled
def _exponent(text: Bytes, at: int, end: int) -> tuple[int, int, bool]:
    negative = at < end and text[at] == _MINUS
    at += negative or (at < end and text[at] == _PLUS)
    begin, power = at, ZERO
    while at < end and _NOUGHT <= text[at] <= _NINE and at - begin < 4:
        power = 10 * power + (text[at] - _NOUGHT)
        at += 1
    return at, -power if negative else power, 0 < at - begin < 4


@compiled
def _float_bits(digits: int, exponent: int, powers: Words) -> tuple[bool, int]:
    """Whether the nearest float of digits * 10^exponent was found, and its bits.

    Lemire, "Number parsing at a gigabyte per second" (2021); that one product of 128 bits suffices is shown by Mushtak
    and Lemire, "Fast number parsing without fallback" (2023).
    """
    if digits == 0:
        return True, ZERO
    if exponent < -290 or exponent > 280:  # where it could be subnormal or infinite, somebody else may look
        return False, ZERO
    zeros = _leading_zeros(digits)
    scaled, at = np.uint64(digits) << np.uint64(zeros), exponent - _FIRST_POWER
    high, low = _product(scaled, powers[at, 0])
    if high & _LOW_9 == _LOW_9:
        more, _ = _product(scaled, powers[at, 1])
        low += more
        if more > low:
            high += _ONE
    upper = high >> np.uint64(63)
    shift = upper + np.uint64(9)
    mantissa = high >> shift
    power = (exponent * 217706 >> 16) + 1086 + np.int64(upper) - zeros
    if low <= _ONE and -4 <= exponent <= 23 and mantissa & np.uint64(3) == _ONE and mantissa << shift == high:
        mantissa ^= _ONE  # half way between two floats: to the even one
    mantissa = (mantissa + (mantissa & _ONE)) >> _ONE
    if mantissa >> np.uint64(53):
        mantissa, power = mantissa >> _ONE, power + 1
    return True, np.int64(mantissa & _MANTISSA) | power << 52


@inlined
def _leading_zeros(digits: int) -> int:
    zeros = ZERO
    for step in (32, 16, 8, 4, 2, 1):
        if digits >> (64 - step) == 0:
            digits <<= step
            zeros += step
    return zeros


@inlined
def _product(one: np.uint64, other: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Both halves of the product of two words without sign."""
    a, b, c, d = one >> _32, one & _LOW_HALF, other >> _32, other & _LOW_HALF
    low, middle = b * d, a * d
    middle += low >> _32
    other_middle = b * c + (middle & _LOW_HALF)
    return a * c + (middle >> _32) + (other_middle >> _32), other_middle << _32 | low & _LOW_HALF
