"""The standard work, its payments in Arrow."""

from benchmarks.cards import card_view

Card = card_view("arrow")
