"""Labels, River models that learn from them as they land, and a store for what was learnt."""

from learner.service import Label, Service

__all__ = ["Label", "Service"]
