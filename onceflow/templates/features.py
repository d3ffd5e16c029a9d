"""What this project knows about cards, from the stream of their transactions."""

from featurestore import Count, Entity, Last, Max, Mean, Source, Std, Sum, col, derived, view

transactions = Source(
    "transactions",  # the Kafka topic
    schema={"card_id": str, "merchant": str, "amount": float, "status": str, "at": "timestamp[ms]"},
    event_time="at",
    key="card_id",
    lateness="10m",
)
card = Entity("card", key="card_id")


@view(entity=card, source=transactions, windows=["5m", "1h", "1d"], version=1)
class CardActivity:
    """What a card has done lately."""

    payments = Count()  # gives payments_5m, payments_1h and payments_1d
    spend = Sum("amount")
    typical = Mean("amount", windows=["1d"])
    spread = Std("amount", windows=["1d"])
    declined = Count(where=col("status") == "declined", windows=["10m"])
    biggest = Max("amount", windows=["1d", "lifetime"])
    latest = Last("amount", windows=["lifetime"])
    share = derived(col("spend_5m") / col("spend_1d"))  # how much of the day's spending is of the last minutes
