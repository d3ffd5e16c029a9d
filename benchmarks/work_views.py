"""What work W asks for: six aggregates of a card's payments, over 5 minutes, an hour and a day."""

from benchmarks.work import KEY, TOPIC
from featurestore import Count, Entity, Max, Mean, Min, Source, Std, Sum, View, view

SCHEMA = {KEY: str, "amount": float, "merchant": str, "country": str, "ts": "timestamp[ms]"}


def card_spend(form: str) -> View:
    """What a card has spent lately, by payments in a format."""
    source = Source(TOPIC, schema=SCHEMA, event_time="ts", key=KEY, partitioner="crc32", format=form)
    members = {"n": Count(), "total": Sum("amount"), "low": Min("amount"), "high": Max("amount")}
    members |= {"mean": Mean("amount"), "std": Std("amount")}
    card = Entity("card", key=KEY)
    return view(entity=card, source=source, windows=["5m", "1h", "1d"])(type("CardSpend", (), members))


CardSpend = card_spend("json")
payments = CardSpend.source
