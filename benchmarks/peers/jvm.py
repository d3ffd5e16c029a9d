"""Peers in Java: a folder with a Peer.java, and a pom.xml for its jars."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.kafka_server import jars, why_no_kafka
from benchmarks.peers import HOPS_S, TOPIC, arguments, check

_JAVA = ("java", "-Xmx2g", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error")


def main(name: str, requirement: str, own: Callable[[int, Path], str]) -> None:
    """Compile and run the peer in the folder `name`, and print its report.

    Its arguments are broker, topic, number of events, what `own` makes of that number and of an empty folder, and
    length,slide of each window in seconds. It prints a JSON object with the seconds `wall` and `cpu`, and perhaps the
    events `counted` in windows.
    """
    given, home = arguments(name), Path(__file__).parent / name
    if reason := why_no_kafka():
        sys.exit(f"{name} {reason}")
    windows = [f"{length},{slide}" for length, slide in HOPS_S]
    with TemporaryDirectory(prefix="onceflow-peer-") as classes, TemporaryDirectory(prefix="onceflow-peer-") as folder:
        classpath = f"{jars(home / 'pom.xml')}/*{os.pathsep}{classes}"
        subprocess.run(["javac", "-d", classes, "-cp", classpath, home / "Peer.java"], check=True)
        told = [given.kafka, TOPIC, str(given.events), own(given.events, Path(folder)), *windows]
        done = subprocess.run([*_JAVA, "-cp", classpath, "Peer", *told], stdout=subprocess.PIPE, text=True, check=True)
    spent = json.loads(done.stdout.splitlines()[-1])
    if "counted" in spent:
        check(given.events, spent["counted"])
    rates = {f"events_per_{unit}": round(given.events / spent[of]) for unit, of in (("s", "wall"), ("cpu_s", "cpu"))}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    what = {"peer": name, "requirements": [requirement], "events": given.events}
    print(json.dumps(what | rates | {"peak_mb": peak}))
