"""Event frames: polars frames of one topic's events, and the way from them to the kernel's arrays and back.

An event frame has the source's columns (derived ones too) and four of its own: `_partition`, `_offset`, `_timestamp`
(Kafka's, ms) and `_time` (event time, ms).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from featurestore import kernel
from featurestore.columns import coded, column_of, present
from featurestore.definitions import View
from featurestore.errors import DataError
from featurestore.expressions import TYPES, evaluated
from featurestore.growing import flagged, vector
from featurestore.kernel import Inputs, Results
from featurestore.keys import encode_entity, encode_strings
from featurestore.planned import Lane, Plan
from featurestore.sources import Source
from featurestore.texts import Texts
from featurestore.values import frozen

_INT_MAX = np.iinfo(np.int64).max
# What stands for null while keys are told apart.
_STAND_INS: dict[pl.DataType, object] = {pl.String(): "", pl.Boolean(): False}

META = {"_partition": pl.Int32(), "_offset": pl.Int64(), "_timestamp": pl.Int64(), "_time": pl.Int64()}


def event_frame(
    source: Source,
    columns: pl.DataFrame,
    partition: int | NDArray[np.int32],
    offsets: NDArray[np.int64],
    timestamps: NDArray[np.int64],
) -> pl.DataFrame:
    """An event frame from a topic's decoded columns, of one partition or each of its own."""
    meta = [
        pl.Series("_partition", np.full(len(columns), partition, np.int32)),
        pl.Series("_offset", offsets, dtype=pl.Int64),
        pl.Series("_timestamp", timestamps, dtype=pl.Int64),
        columns[source.event_time].alias("_time"),
    ]
    return with_derived(source, columns.hstack(meta))


def with_derived(source: Source, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with the source's derived columns."""
    if not source.derived:
        return frame
    return evaluated(frame, {name: (e, source.types[name]) for name, e in source.derived.items()})


def empty_frame(source: Source) -> pl.DataFrame:
    """An event frame without events."""
    return pl.DataFrame(schema={**{name: TYPES[kind] for name, kind in source.types.items()}, **META})


def lane_inputs(plan: Plan, frame: pl.DataFrame, texts: Texts) -> Inputs:
    """The inputs of each lane of the plan, a column an event of the frame. NaN and null are marked invalid.

    Texts that the view keeps are known to `texts` from then on.
    """
    return inputs_of(plan, len(frame), (lane_values(lane, frame, texts) for lane in plan.lanes))


def inputs_of(plan: Plan, count: int, lanes: Iterable[Sequence[Any]]) -> Inputs:
    """The inputs of `count` events, given by lane as `lane_values` does."""
    words, valid = flagged(len(plan.lanes), count)
    reals = words.view(np.float64)
    for i, (lane, (values, there)) in enumerate(zip(plan.lanes, lanes, strict=True)):
        (reals if lane.is_real else words)[i], valid[i] = values, there
    return Inputs(words, reals, valid)


def lane_values(lane: Lane, frame: pl.DataFrame, texts: Texts) -> tuple[NDArray[Any] | int, NDArray[np.bool_] | bool]:
    """A lane's value of each event, and where there is one; a single one where all are alike."""
    values: NDArray[Any] | int = 0
    valid: NDArray[np.bool_] | bool = True
    if lane.coding:
        values, valid = coded(frame[lane.column], lane.coding, texts)
    elif lane.is_float:
        values = _floats(frame[lane.column])
        valid = ~np.isnan(values)
    elif lane.column:
        valid = frame[lane.column].is_not_null().to_numpy()
        if frame.schema[lane.column] != pl.String:
            values = frame[lane.column].cast(pl.Int64).fill_null(0).to_numpy()
    else:
        values = 1
    if lane.other:
        valid = valid & present(frame[lane.other])
    if lane.where is not None:
        valid = valid & frame.select(lane.where.fill_null(False).alias("_")).to_series().to_numpy()
    return values, True if np.all(valid) else valid


def _floats(column: pl.Series) -> NDArray[np.float64]:
    """The column's values, NaN for null."""
    if column.dtype == pl.Float64 and not column.null_count():  # an expression would cost more than the values
        return column.to_numpy()
    return column.cast(pl.Float64).fill_null(np.nan).to_numpy()


def entity_codes(frame: pl.DataFrame, keys: Sequence[str]) -> tuple[NDArray[np.int64], list[bytes]]:
    """For each row the position of its entity in the list of distinct encoded keys; -1 where a key column is null."""
    codes, entities = numbered(frame, keys)
    return codes, _encoded(entities)


def numbered(frame: pl.DataFrame, keys: Sequence[str]) -> tuple[NDArray[np.int64], pl.DataFrame]:
    """For each row the position of its entity among the distinct ones, in a frame; -1 where a key column is null."""
    if len(keys) == 1 and not frame[keys[0]].null_count():
        codes, entities = _numbered_values(frame[keys[0]])
        return codes, pl.DataFrame([entities.alias(keys[0])])
    codes, width = np.zeros(len(frame), np.int64), 1  # codes lie below the width
    null = np.zeros(len(frame), np.bool_)
    for key in keys:
        column = frame[key]
        null |= column.is_null().to_numpy()
        part = column.fill_null(_STAND_INS.get(column.dtype, 0)).to_arrow().dictionary_encode()
        indices = part.indices.to_numpy().astype(np.int64)
        if width * len(part.dictionary) > _INT_MAX:
            codes, width = np.unique(codes, return_inverse=True)[1].reshape(-1), len(frame)
        codes = codes * len(part.dictionary) + indices
        width *= len(part.dictionary)
    codes[null] = -1
    distinct, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    skip = int(len(distinct) > 0 and distinct[0] < 0)
    return inverse.reshape(-1) - skip, frame.select(keys)[first[skip:]]


def _numbered_values(column: pl.Series) -> tuple[NDArray[np.int64], pl.Series]:
    """For each value, none of them null, its position among the distinct ones."""
    if column.dtype == pl.Int64 and len(column):
        values = column.to_numpy()
        low, high = int(values.min()), int(values.max())
        if high - low < 2 * len(values):  # a table by value takes a fourth of the time of hashing
            numbers = np.zeros(high - low + 1, np.int64)
            codes = vector(len(values), np.int64)
            kernel.number_values(frozen(values), low, numbers, codes)
            return codes, pl.Series(np.flatnonzero(numbers) + low)
    part = column.to_arrow().dictionary_encode()
    return part.indices.to_numpy().astype(np.int64), pl.Series(part.dictionary)


def _encoded(entities: pl.DataFrame) -> list[bytes]:
    if entities.dtypes == [pl.String]:
        return encode_strings(entities.to_series().to_list())
    if entities.dtypes == [pl.Int64]:
        return [b"i%d" % value for value in entities.to_series().to_list()]
    return [encode_entity(row) for row in entities.rows()]


def feature_columns(
    plan: Plan, results: Results, texts: Texts, rows: NDArray[np.int64] | slice = slice(None)
) -> dict[str, pa.Array]:
    """Stored features of the steps in `rows`, as columns by short name."""
    out = {}
    for j, feature in enumerate(plan.outputs):
        valid, words = results.valid[j, rows], results.words[j, rows]
        out[feature.name] = column_of(feature, words, valid, results.items, texts)
    return out


def feature_frame(plan: Plan, results: Results, rows: NDArray[np.int64] | slice, texts: Texts) -> pl.DataFrame:
    """All features of the view for the steps in `rows`: stored ones and, computed from them, derived ones."""
    stored = feature_columns(plan, results, texts, rows)
    frame = pl.DataFrame(pa.table({name: stored[name] for name in plan.view.outputs if name in stored}))
    return with_derived_features(plan.view, frame)


def with_derived_features(view: View, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame of stored features with the view's derived ones."""
    made = {f.name: (f.expression, f.type) for f in view.features.values() if f.expression is not None}
    return evaluated(frame, made, nan_is_null=True)


def checked_events(source: Source, frame: pl.DataFrame, masked: Collection[str] = ()) -> pl.DataFrame:
    """Events from a file as an event frame, in offset order.

    Raises DataError, which names the column, when one is missing, of another type, or null where no event may lack it;
    those that are `masked` may be null.
    Without a `_partition` column the rows are one partition; without `_offset` they come in offset order. Dates and
    times of any unit and zone become milliseconds.
    """
    kinds: Mapping[str, str] = source.schema
    for column, kind in kinds.items():
        if column not in frame.columns:
            raise DataError(
                f"the events of {source.name!r} have no column {column!r}; they have {', '.join(frame.columns)}"
            )
        try:
            frame = frame.with_columns(_exactly(frame[column], kind))
        except pl.exceptions.PolarsError as error:
            raise DataError(f"column {column!r} of {source.name!r} should be {kind}: {error}") from error
    if "_partition" not in frame.columns:
        frame = frame.with_columns(pl.lit(0, pl.Int32).alias("_partition"))
    if "_offset" not in frame.columns:
        frame = frame.with_columns(pl.int_range(pl.len()).alias("_offset"))
    time = frame[source.event_time].alias("_time")
    arrival = _exactly(frame["_timestamp"], "timestamp[ms]") if "_timestamp" in frame.columns else time
    frame = frame.with_columns(time, arrival.alias("_timestamp"))
    for column in source.required:
        if frame[column].null_count() and column not in masked:
            raise DataError(
                f"column {column!r} of {source.name!r} has nulls, and no event may lack it; drop those rows"
            )
    frame = frame.select([*kinds, *META]).cast(pl.Schema(META))
    return with_derived(source, frame.sort("_partition", "_offset"))


def _exactly(series: pl.Series, kind: str) -> pl.Series:
    """The series in the type of the kind; raises PolarsError when a value would change."""
    if kind == "timestamp[ms]" and series.dtype in (pl.Datetime, pl.Date):
        return series.dt.epoch("ms")
    exact = series.cast(TYPES[kind], strict=True)
    if series.dtype.is_float() and exact.dtype == pl.Int64 and not exact.cast(series.dtype).equals(series):
        raise pl.exceptions.InvalidOperationError("a number is not whole")
    return exact
