"""Kafka Streams: hopping windows in memory, without changelog topics, which favours it; needs Java 17 and Maven."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.kafka_server import jars, why_no_kafka
from benchmarks.peers import HOPS_S, TOPIC, arguments

_HERE = Path(__file__).parent


def main() -> None:
    given = arguments("kafka_streams")
    if reason := why_no_kafka():
        sys.exit(f"Kafka Streams {reason}")
    java = ["java", "-Xmx2g", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]
    windows = [f"{length},{slide}" for length, slide in HOPS_S]
    with TemporaryDirectory(prefix="onceflow-peer-") as folder:
        program = [*java, "-cp", f"{jars(_HERE / 'pom.xml')}/*", str(_HERE / "Peer.java")]
        command = [*program, given.kafka, TOPIC, str(given.events), folder, *windows]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    spent = json.loads(done.stdout.splitlines()[-1])
    rates = {f"events_per_{unit}": round(given.events / spent[of]) for unit, of in (("s", "wall"), ("cpu_s", "cpu"))}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    what = {"peer": "kafka_streams", "requirements": ["org.apache.kafka:kafka-streams:4.1.0"], "events": given.events}
    print(json.dumps(what | rates | {"peak_mb": peak}))


if __name__ == "__main__":
    main()
