"""What a feature is: definitions, the window engine, the online and the offline store."""

from polars import col

from featurestore import deferred
from featurestore.aggregates import Aggregate, Count, First, Last, Max, Mean, Min, Std, Sum, Window, window
from featurestore.definitions import Derived, Feature, View, derived, view
from featurestore.errors import (
    ConfigError,
    DataError,
    DefinitionError,
    FencedError,
    FormatError,
    GapError,
    OnceflowError,
    StateError,
    UnavailableError,
)
from featurestore.sources import Entity, Source

__all__ = [
    "Aggregate",
    "ConfigError",
    "Count",
    "DataError",
    "DefinitionError",
    "Derived",
    "Entity",
    "Feature",
    "FencedError",
    "First",
    "FormatError",
    "GapError",
    "Last",
    "Max",
    "Mean",
    "Min",
    "OnceflowError",
    "Source",
    "StateError",
    "Std",
    "Sum",
    "UnavailableError",
    "View",
    "Window",
    "col",
    "derived",
    "view",
    "window",
]

# No kernel multiplies matrices.
deferred.defer("numba.np.linalg", "scipy.linalg.cython_blas", "scipy.linalg.cython_lapack")
