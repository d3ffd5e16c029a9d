"""What a feature is: definitions, the window engine, the online and the offline store."""

from polars import col

from featurestore import deferred
from featurestore.aggregates import (
    Aggregate,
    All,
    Any,
    Corr,
    Count,
    ExpDecay,
    First,
    Kurtosis,
    Last,
    Max,
    Mean,
    Min,
    Rate,
    Skew,
    Slope,
    Std,
    Sum,
    TimeSince,
    Var,
    Window,
    last,
    session,
    window,
)
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
    "All",
    "Any",
    "ConfigError",
    "Corr",
    "Count",
    "DataError",
    "DefinitionError",
    "Derived",
    "Entity",
    "ExpDecay",
    "Feature",
    "FencedError",
    "First",
    "FormatError",
    "GapError",
    "Kurtosis",
    "Last",
    "Max",
    "Mean",
    "Min",
    "OnceflowError",
    "Rate",
    "Skew",
    "Slope",
    "Source",
    "StateError",
    "Std",
    "Sum",
    "TimeSince",
    "UnavailableError",
    "Var",
    "View",
    "Window",
    "col",
    "derived",
    "last",
    "session",
    "view",
    "window",
]

# No kernel multiplies matrices.
deferred.defer("numba.np.linalg", "scipy.linalg.cython_blas", "scipy.linalg.cython_lapack")
