"""What a message of `predictions.<service>` says: shared by those who send, mirror and learn from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
import pyarrow as pa

from featurestore.errors import DataError

_Int = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Chance = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Probabilities(msgspec.Struct, gc=False):
    """What the model gave to each answer."""

    false: _Chance
    true: _Chance


class Prediction(msgspec.Struct):
    """One prediction, made on the event at `offset` of the message's partition of the service's source.

    Times are ms since the epoch. A feature that is null or left out was missing when the model was asked. Where it gave
    no answer, prediction, probabilities and model version are null, and `error` says why.
    """

    id: str | None
    event_time: _Int
    prediction: bool | None
    probabilities: Probabilities | None
    model_version: _Int | None
    variant: str
    features: dict[str, float | None]
    effective_time: _Int
    offset: _Int
    error: str | None = None


#: The `error` of an event that the model did not answer in time.
TIMEOUT = "timeout"

_DECODER = msgspec.json.Decoder(Prediction)


def prediction_topic(service: str) -> str:
    """The topic of a service's predictions."""
    return f"predictions.{service}"


def decode_prediction(value: bytes) -> Prediction:
    """The prediction in a message; DataError when there is none."""
    try:
        return _DECODER.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"no prediction of onceflow: {error}") from error


def prediction_table(rows: Sequence[Prediction], partition: int, features: Sequence[str]) -> pa.Table:
    """Predictions of one partition as columns, with the event's place, and one column an input of the model.

    Where there was no answer, its columns are null.
    """
    columns = {
        "_partition": pa.array(np.full(len(rows), partition, np.int32)),
        "_offset": pa.array([row.offset for row in rows], pa.int64()),
        "_time": pa.array([row.event_time for row in rows], pa.int64()),
        "_effective": pa.array([row.effective_time for row in rows], pa.int64()),
        "id": pa.array([row.id for row in rows], pa.string()),
        "prediction": pa.array([row.prediction for row in rows], pa.bool_()),
        "probability": pa.array([row.probabilities and row.probabilities.true for row in rows], pa.float64()),
        "model_version": pa.array([row.model_version for row in rows], pa.int64()),
        "variant": pa.array([row.variant for row in rows], pa.string()),
    }
    inputs = {name: pa.array([row.features.get(name) for row in rows], pa.float64()) for name in features}
    return pa.table(columns | inputs)
