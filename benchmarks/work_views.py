"""What work W asks for: six aggregates of a card's payments, over 5 minutes, an hour and a day."""

from benchmarks.work import KEY, TOPIC
from featurestore import Count, Entity, Max, Mean, Min, Source, Std, Sum, view

payments = Source(
    TOPIC,
    schema={KEY: str, "amount": float, "merchant": str, "country": str, "ts": "timestamp[ms]"},
    event_time="ts",
    key=KEY,
    partitioner="crc32",
)


@view(entity=Entity("card", key=KEY), source=payments, windows=["5m", "1h", "1d"])
class CardSpend:
    """What a card has spent lately."""

    n = Count()
    total = Sum("amount")
    low = Min("amount")
    high = Max("amount")
    mean = Mean("amount")
    std = Std("amount")
