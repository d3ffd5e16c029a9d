"""What comes with a request for features: columns of the event that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import polars as pl

from featurestore.decoding import decode_json
from featurestore.errors import DataError
from featurestore.featureset import FeatureSet
from featurestore.frames import with_derived
from serving.messages import Scalar


def requested_events(features: FeatureSet, given: Mapping[str, Sequence[Scalar]], size: int) -> pl.DataFrame:
    """`size` events with the columns that the derived features need; the others are null.

    Values are read as those of events from Kafka are. Raises DataError for a column that is needed and not given, has
    another number of values, or values of another type.
    """
    for column in features.requested:
        if column not in given:
            raise DataError(
                f"derived features need {column!r}, a column of {features.on.name!r}; give its values in request"
            )
        if len(given[column]) != size:
            raise DataError(f"request column {column!r} has {len(given[column])} values for {size} entities")
    rows = [{column: given[column][i] for column in features.requested} for i in range(size)]
    # No column is required here, not even the event's time: it is asked for if it is needed.
    decoded = decode_json(features.on.schema, (), "", [msgspec.json.encode(row) for row in rows])
    for reject in decoded.rejects:
        raise DataError(f"request, entity {reject.row}: {reject.detail}")
    return with_derived(features.on, decoded.frame)
