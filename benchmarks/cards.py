"""Six aggregates of a card's payments over three windows: the views of the standard work."""

from featurestore import Count, Entity, Max, Mean, Min, Source, Std, Sum, View, view

SCHEMA = {"card_id": str, "amount": float, "merchant": str, "country": str, "ts": "timestamp[ms]"}


def card_view(form: str) -> View:
    """The view over payments in a format."""
    payments = Source("payments", schema=SCHEMA, event_time="ts", key="card_id", format=form)
    amount = {"sum": Sum("amount"), "least": Min("amount"), "most": Max("amount"), "mean": Mean("amount")}
    members = {"payments": Count(), **amount, "spread": Std("amount")}
    card = Entity("card", key="card_id")
    return view(entity=card, source=payments, windows=["5m", "1h", "1d"])(type("Card", (), members))
