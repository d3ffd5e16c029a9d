"""Labels, River models that learn from them as they land, and a store for what was learnt."""

from featurestore.deferred import defer
from learner.service import Label, Service

__all__ = ["Label", "Service"]

_RARE = ("integrate", "io.arff", "io.arff._arffread", "ndimage", "sparse", "special", "stats")
defer("river", *(f"scipy.{name}" for name in _RARE))
