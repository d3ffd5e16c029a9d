"""Commands as Redis takes them off the wire (RESP), made of few loose parts and of many strings at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hiredis
import numpy as np

from featurestore.kernel.packing import pack, packed_size
from featurestore.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Part = str | bytes | int
    Group = tuple[int, bytes]  # how many parts, and all of them packed

# The stub of hiredis allows one argument only.
_packed: Callable[[Any], bytes] = hiredis.pack_command


def command(*parts: Part) -> bytes:
    """A command of these parts."""
    return _packed(parts)


def command_of(*groups: Group) -> bytes:
    """A command of groups of parts."""
    return b"".join([b"*%d\r\n" % sum(count for count, _ in groups), *(packed for _, packed in groups)])


def loose(*parts: Part) -> Group:
    """A group of a few parts."""
    packed = _packed(parts)
    return len(parts), packed[packed.index(b"\n") + 1 :]


def strings(values: Sequence[bytes | None], prefix: bytes = b"") -> Group:
    """A group of byte strings, each after the prefix."""
    values, first = Values.of(values), np.frombuffer(prefix, np.uint8)
    out = np.empty(packed_size(first, values.lengths), np.uint8)
    pack(first, values.buffer, values.starts, values.lengths, out)
    return len(values), out.tobytes()
