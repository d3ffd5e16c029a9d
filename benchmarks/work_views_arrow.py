"""Work W of payments in Arrow."""

from benchmarks.work_views import card_spend

CardSpend = card_spend("arrow")
