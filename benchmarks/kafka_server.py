"""A real Apache Kafka for tests and benchmarks: one KRaft node from Maven's jars, or one in Docker."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from onceflow.children import HOST, Program, Server, free_port, run
from onceflow.embedded import kafka_answers

_HERE = Path(__file__).parent
_POM = _HERE / "kafka" / "pom.xml"
_CACHE = _HERE.parent / ".cache"
_JVM = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={directory}/log
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
auto.create.topics.enable=false
controlled.shutdown.enable=false
message.max.bytes=16777216
log.retention.ms=-1
"""


@contextmanager
def apache_kafka(port: int = 0, directory: Path | None = None, *, again: bool = False) -> Iterator[Server]:
    """Run one broker until the block ends; needs `why_no_kafka()` to be None.

    With `again` one that ran on this port with this directory, and what it has kept.
    """
    classpath = f"{jars(_POM)}/*"

    def command(port: int, directory: Path) -> list[str]:
        properties, java = directory / "server.properties", ["java", *_JVM, "-cp", classpath]
        if again:
            return [*java, "kafka.Kafka", str(properties)]
        shutil.rmtree(directory / "log", ignore_errors=True)
        names = {"host": HOST, "port": port, "controller": free_port(), "directory": directory}
        properties.write_text(_PROPERTIES.format(**names))
        storage = [*java, "kafka.tools.StorageTool", "format", "-t", "A" * 22, "-c", str(properties)]
        subprocess.run(storage, check=True, capture_output=True)
        return [*java, "kafka.Kafka", str(properties)]

    program = Program("apache-kafka", command, kafka_answers, ready_seconds=60.0, stop_seconds=0.0)
    with run(program, port, directory) as server:
        yield server


@contextmanager
def docker_kafka() -> Iterator[str]:
    """Run a broker in Docker until the block ends, and give its address; needs `docker_runs()`."""
    from testcontainers.community.kafka import KafkaContainer  # noqa: PLC0415 - only where Docker runs

    with KafkaContainer().with_kraft() as container:
        yield container.get_bootstrap_server()


@cache
def docker_runs() -> bool:
    """Whether a Docker engine answers and testcontainers can use it."""
    if shutil.which("docker") is None or find_spec("testcontainers") is None:
        return False
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=10, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@cache
def why_no_kafka() -> str | None:
    """Why Apache Kafka cannot run here as a process; None when it can."""
    if shutil.which("java") is None or shutil.which("mvn") is None:
        return "needs java 17 or newer and mvn on PATH"
    version = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', version)
    if found is None or int(found[1]) < 17:
        return "needs java 17 or newer"
    try:
        jars(_POM)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return f"needs its jars, which Maven could not fetch: {error}"
    return None


@cache
def jars(pom: Path) -> Path:
    """The directory with a pom's jars, fetched once for its content, also where several processes ask for them."""
    place = _CACHE / f"{pom.parent.name}-{sha256(pom.read_bytes()).hexdigest()[:12]}"
    _CACHE.mkdir(exist_ok=True)
    with (_CACHE / f"{pom.parent.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            _fetch(pom, place)
    return place


def _fetch(pom: Path, place: Path) -> None:
    with TemporaryDirectory(dir=_CACHE) as temporary:
        fetched = Path(temporary) / "jars"
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={fetched}"]
        maven = ["mvn", "-q", "-B", "-Dstyle.color=never", "-f", str(pom)]
        subprocess.run([*maven, *goal], check=True, capture_output=True, timeout=900)
        fetched.rename(place)
