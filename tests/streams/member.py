"""A member of a consumer group, to be killed or told to stop: member.py KAFKA GROUP TOPIC [SESSION_MS INSTANCE]."""

from __future__ import annotations

import asyncio
import sys

from streams.app import build_app, run
from streams.transport import Delivery


async def main(app):
    await asyncio.Event().wait()


async def assigned(starts):
    say(f"assigned {len(starts)}")


async def revoked(tps):
    say(f"revoked {len(tps)}")


async def receive(batch):
    say(f"received {len(batch)}")


def say(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    kafka, group, topic, *rest = sys.argv[1:]
    session_ms, instance = rest or (1_500, None)
    delivery = Delivery(assigned=assigned, revoked=revoked)
    options = {"delivery": delivery, "session_timeout_ms": int(session_ms), "instance": instance}
    run(build_app(group, kafka, [topic], receive, **options), main)
