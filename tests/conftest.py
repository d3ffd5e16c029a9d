"""Servers for integration tests: started once a session, gone with the process, told apart by unique names.

`embedded_pair` is the broker and the Redis that ship with onceflow; `real_pair` is Apache Kafka and a redis-server of
this machine; `pair` runs a test on both. `kafka` is the address of the more real broker, `redis_url` a Redis.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from benchmarks.kafka_server import apache_kafka, docker_kafka, docker_runs, why_no_kafka
from featurestore.files import locked
from onceflow import embedded

# What DuckDB reports of itself when the interpreter ends would stand below pytest's summary.
atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))

# Compiling takes its time, and machines are shared: how long an example takes is no finding.
hypothesis.settings.register_profile("onceflow", deadline=None)
hypothesis.settings.load_profile("onceflow")

GIVEN_KAFKA = os.environ.get("ONCEFLOW_TEST_KAFKA")
GIVEN_REDIS = os.environ.get("ONCEFLOW_TEST_REDIS")
SERVERS = {"embedded_pair", "real_pair", "pair", "kafka", "redis_url"}


@dataclass(frozen=True)
class Pair:
    """A Kafka and a Redis: "host:port" and "redis://host:port/0"."""

    name: str
    kafka: str
    redis_url: str


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Where processes take files in turn (`make test`), begin with the longest, so that none is left alone with one."""
    if hasattr(config, "workerinput"):
        weights = Counter()
        for item in items:
            served = 2 if SERVERS & set(item.fixturenames) else 0.1
            weights[item.path] += 20 if item.get_closest_marker("slow") else served
        items.sort(key=lambda item: -weights[item.path])


def pytest_collection_finish(session):
    """Fetch the broker's jars and compile the kernels before the first test, whose time limit is meant for neither."""
    if session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if {"real_pair", "pair", "kafka"} & wanted:
        why_no_real_kafka()
    if SERVERS & wanted:
        compile_kernels()


def compile_kernels():
    """Have a worker do all that workers do, so that others find what it has compiled."""
    from tests.faults.kills import Case, undisturbed  # noqa: PLC0415 - tests that need no server need not wait for it

    with locked(Path(tempfile.gettempdir(), f"onceflow-tests-{os.getuid()}")), tempfile.TemporaryDirectory() as folder:
        undisturbed(Case("compiled", orders=20), Path(folder))


def why_no_real_kafka():
    return None if GIVEN_KAFKA or docker_runs() else why_no_kafka()


@pytest.fixture(scope="session")
def embedded_pair():
    with embedded.kafka() as broker, embedded.redis() as store:
        yield Pair("embedded", broker.address, f"redis://{store.address}/0")


@pytest.fixture(scope="session")
def real_pair():
    if reason := why_no_real_kafka():
        pytest.skip(f"Apache Kafka {reason}")
    binary = shutil.which("redis-server")
    if binary is None and GIVEN_REDIS is None:
        pytest.skip("needs redis-server on PATH")
    with ExitStack() as stack:
        if GIVEN_KAFKA:
            address = GIVEN_KAFKA
        elif docker_runs():
            address = stack.enter_context(docker_kafka())
        else:
            address = stack.enter_context(apache_kafka()).address
        url = GIVEN_REDIS or f"redis://{stack.enter_context(embedded.redis(binary=binary)).address}/0"
        yield Pair("real", address, url)


@pytest.fixture(scope="session", params=["embedded", pytest.param("real", marks=pytest.mark.real)])
def pair(request):
    return request.getfixturevalue(f"{request.param}_pair")


@pytest.fixture(scope="session")
def kafka(request):
    name = "embedded_pair" if why_no_real_kafka() else "real_pair"
    return request.getfixturevalue(name).kafka


@pytest.fixture(scope="session")
def redis_url(request):
    if GIVEN_REDIS:
        return GIVEN_REDIS
    return request.getfixturevalue("embedded_pair").redis_url


@pytest.fixture
def prefix():
    """A prefix for topics, groups and keys that no other test has."""
    return f"t{uuid.uuid4().hex[:10]}-"
