"""The standard work, its payments in JSON."""

from benchmarks.cards import card_view

Card = card_view("json")
