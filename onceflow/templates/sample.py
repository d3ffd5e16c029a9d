"""Made-up transactions of the last two hours, as JSON lines: `python sample.py > transactions.jsonl`."""

import json
import random
import time
from collections.abc import Iterator


def transactions(count: int, until: int, seed: int) -> Iterator[dict[str, object]]:
    """Give `count` events of 200 cards, in order of time, spread over the two hours before `until` (ms)."""
    chance = random.Random(seed)
    span = 2 * 60 * 60 * 1000
    for at in sorted(chance.randrange(until - span, until) for _ in range(count)):
        yield {
            "card_id": f"card-{chance.randrange(200):03}",
            "merchant": chance.choice(["grocer", "garage", "books", "rail", "cafe"]),
            "amount": round(chance.lognormvariate(3, 1), 2),
            "status": "declined" if chance.random() < 0.03 else "approved",
            "at": at,
        }


if __name__ == "__main__":
    for event in transactions(10_000, int(time.time() * 1000), seed=1):
        print(json.dumps(event))
