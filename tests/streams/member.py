"""A member of a consumer group, to be killed or told to stop: member.py KAFKA GROUP TOPIC."""

from __future__ import annotations

import asyncio
import sys

from streams.app import build_app, run
from streams.transport import Delivery


async def main(app):
    await asyncio.Event().wait()


async def assigned(starts):
    print("assigned", len(starts), flush=True)


async def revoked(tps):
    print("revoked", len(tps), flush=True)


async def receive(batch):
    print("received", len(batch), flush=True)


if __name__ == "__main__":
    kafka, group, topic = sys.argv[1:]
    delivery = Delivery(assigned=assigned, revoked=revoked)
    run(build_app(group, kafka, [topic], receive, delivery=delivery, session_timeout_ms=1_500), main)
