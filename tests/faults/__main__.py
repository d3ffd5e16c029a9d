"""The long form of the kill tests: `python -m tests.faults --kills 200` prints what was done and what differs.

Workers are killed on the embedded servers, ten to a history, and Redis under a worker, with the end of its log cut off.
Then groups of workers meet storms of faults, on Apache Kafka where that runs; there it is killed, too, and a history
lies in transactions and compacted topics.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from rich.console import Console
from rich.table import Table

from benchmarks.kafka_server import why_no_kafka
from onceflow import embedded
from tests.faults.broker import Broker
from tests.faults.kills import Case, Killer, RedisKiller, differences, outcome, produce, undisturbed
from tests.faults.storms import ENDED, FAULTS, OF_THE_BROKER, Storm
from tests.faults.transactions import TRANSACTIONS, transacted
from tests.featurestore.redis_server import RedisServer
from tests.streams.working import own_servers

KILLS_A_RUN = 10
FAULTS_A_STORM = 26
OUTAGE_SECONDS = 60.0
AOF = ("--appendonly", "yes", "--appendfsync", "everysec")


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description="Kill workers and Redis, count differences."
    )
    parser.add_argument("--kills", type=int, default=100, help="of workers, and a third as many of Redis")
    parser.add_argument("--orders", type=int, default=2_400, help="about nine events come with each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments, different = Counter(), Counter()
    with TemporaryDirectory() as folder:
        for number in range(-(-options.kills // KILLS_A_RUN)):
            case = Case(f"long{number}", options.orders, seed=options.seed + number)
            expected = undisturbed(case, Path(folder) / f"{number}")
            kills = min(KILLS_A_RUN, options.kills - number * KILLS_A_RUN)
            for kind in (Killer, RedisKiller):
                found, killed = _disturbed(kind, case, Path(folder) / f"{number}-{kind.__name__}", kills)
                moments.update(killed)
                different.update(differences(expected, found))
        storms, wrong = _storms(options, Path(folder))
    different.update(wrong)
    _print({**moments, **storms}, different)
    return 1 if any(different.values()) else 0


def _storms(options, folder):
    """As many faults as kills of workers; how many there were of each kind, and what differs in the end."""
    done, wrong = Counter(), Counter()
    with embedded.kafka() if why_no_kafka() else Broker(folder / "kafka") as kafka:
        broker = None if why_no_kafka() else kafka
        for number in range(-(-options.kills // FAULTS_A_STORM)):
            place = folder / f"storm{number}"
            seed, how = options.seed + number, {"broker": broker, "outage": OUTAGE_SECONDS}
            with Storm(kafka.address, place, seed, options.orders, files=bool(number % 2), **how) as storm:
                storm.run(min(FAULTS_A_STORM, options.kills - number * FAULTS_A_STORM))
                done.update(storm.done)
                wrong["states after storms"] += storm.differences()[0]
                wrong["files after storms"] += len(storm.different_files()) if number % 2 else 0
        if broker is not None:
            with embedded.redis() as store:
                pair = SimpleNamespace(kafka=kafka.address, redis_url=f"redis://{store.address}/0")
                found, wrong["transactional topics"] = transacted(pair, folder / "data", options.seed, options.orders)
                done.update(found)
    return done, wrong


def _disturbed(kind, case, folder, kills):
    """What a history leaves where workers, or Redis under them, were killed; and the moments of the kills."""
    folder.mkdir(parents=True)
    with RedisServer("bundled", folder, *AOF) as server, own_servers() as servers:
        if kind is Killer:
            killer = Killer(case, servers, folder / "data")
        else:
            killer = RedisKiller(
                case, SimpleNamespace(kafka=servers.kafka, redis_url=server.url), folder / "data", server=server
            )
            kills = -(-kills // 3)
        produce(killer.pair.kafka, case.tag, case.records)
        killer.run(kills, case.seed)
        return outcome(case, killer.pair, folder / "data"), killer.moments


def _print(moments, different):
    table = Table("", "count")
    names = {"starting": "workers killed at their start", "working": "workers killed at work"}
    names |= {"ending": "workers killed when all was stored", "rolled back": "Redis killed, its last writes cut off"}
    names |= {"stopped": "workers that stopped by themselves, as they should", "failed": "... of these in the last run"}
    for key, text in (names | FAULTS | OF_THE_BROKER | ENDED | TRANSACTIONS).items():
        table.add_row(text, str(moments.get(key, 0)))
    table.add_section()
    for name, count in different.items():
        table.add_row(f"differences in {name}", str(count))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
