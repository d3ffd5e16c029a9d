"""The compiled kernel: events fold into tiles, tiles merge into windows, windows finish into features.

One kernel serves stream and batch. It works on plain arrays, in the order it is given, and never subtracts a value to
expire it: a tile out of every window is dropped whole.
"""

from featurestore.kernel.blobs import encode, end_of_runs, knows_all, load, sizes_of, take_dirty
from featurestore.kernel.compacting import compact
from featurestore.kernel.layout import FOLDED, FORMAT, HEAD, KEYLESS, LATE, OVERFLOW, Inputs, Results, Steps
from featurestore.kernel.ordering import ascends, next_steps, number_values, places_by_group, put, take, until_last
from featurestore.kernel.run import run, sort_out
from featurestore.kernel.squeezing import expanded, room_for, squeezed

__all__ = [
    "FOLDED",
    "FORMAT",
    "HEAD",
    "KEYLESS",
    "LATE",
    "OVERFLOW",
    "Inputs",
    "Results",
    "Steps",
    "ascends",
    "compact",
    "encode",
    "end_of_runs",
    "expanded",
    "knows_all",
    "load",
    "next_steps",
    "number_values",
    "places_by_group",
    "put",
    "room_for",
    "run",
    "sizes_of",
    "sort_out",
    "squeezed",
    "take",
    "take_dirty",
    "until_last",
]
