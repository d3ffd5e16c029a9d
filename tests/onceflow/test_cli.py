from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest
from typer.testing import CliRunner

from benchmarks import memory, stream
from featurestore.errors import ConfigError, DefinitionError, GapError, UnavailableError
from onceflow import cli
from onceflow.children import free_port
from onceflow.commands.init import NAMES
from tests.onceflow.test_embedded import gone, is_alive

COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
ONCEFLOW = [sys.executable, "-m", "onceflow"]


def run(*arguments: str):
    return CliRunner().invoke(cli.app, arguments)


def test_all_commands_of_the_design_are_there():
    wanted = "demo init up check apply produce worker learn serve run get backfill verify"
    assert set(wanted.split()) <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_of_itself(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Example: onceflow {command}\b", result.output.replace("\n", ""))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_argument_says_what_it_is(command):
    registered = next(c for c in cli.app.registered_commands if (c.name or c.callback.__name__) == command)
    for name, annotation in registered.callback.__annotations__.items():
        if name != "return":
            assert "help=" in annotation or annotation in ("Module", "Json"), name


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from onceflow.cli import app; app(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    for heavy in ("polars", "numpy", "pydantic", "confluent_kafka", "redis", "faust", "river", "featurestore"):
        assert f"'{heavy}'" not in loaded


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no such thing"), 2),
        (DefinitionError("cannot work"), 2),
        (UnavailableError("Kafka is away"), 1),
        (GapError("a gap"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(monkeypatch, error, code):
    def fail(command, **_):
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    result = run("check", "-m", "x")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == (f"onceflow: {error}\n" if str(error) else "")


def test_check_says_what_to_install_to_read_a_format(monkeypatch, tmp_path):
    (tmp_path / "clicks.py").write_text("""
from featurestore import Count, Entity, Source, view

@view(
    entity=Entity("user", key="user"),
    source=Source("clicks", schema={"user": str, "at": int}, event_time="at", key="user", format="protobuf"),
    windows=["5m"],
)
class Clicks:
    clicks = Count()
""")
    module = str(tmp_path / "clicks.py")
    assert run("check", "-m", module).exit_code == 0
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("check", "-m", module)
    assert result.exit_code == 2
    assert "pip install 'onceflow[protobuf]'" in result.stderr


def test_an_error_nobody_expected_keeps_its_traceback(monkeypatch):
    def fail(command, **_):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_run", fail)
    assert isinstance(run("check", "-m", "x").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["check"], ["produce", "t"], ["worker", "-m", "x", "--mode", "fast"]]
)
def test_misuse_exits_with_2(arguments):
    assert run(*arguments).exit_code == 2


def test_without_a_command_the_help_is_shown():
    assert "Commands:" in run().output


def test_a_commands_exit_code_is_passed_on(monkeypatch):
    seen = {}

    class Command:
        @staticmethod
        def run(**options):
            seen.update(options)
            return 1

    monkeypatch.setitem(sys.modules, "onceflow.commands.verify", Command)
    assert run("verify", "-m", "x", "--json").exit_code == 1
    assert seen == {"module": "x", "json": True}


@pytest.fixture
def project(tmp_path):
    assert run("init", str(tmp_path / "new")).exit_code == 0
    return tmp_path / "new"


def test_init_writes_a_project_whose_definitions_load(project):
    assert {path.name for path in project.iterdir()} == set(NAMES)
    script = "from onceflow.modules import load; d = load('features'); print(*d.sources, *d.views, *d.services)"
    found = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True)
    assert found.stdout == "transactions card_activity\n"


def test_init_overwrites_nothing(project):
    (project / "features.py").write_text("mine")
    result = run("init", str(project))
    assert result.exit_code == 2
    assert "features.py" in result.stderr
    assert (project / "features.py").read_text() == "mine"


def test_the_sample_events_are_produced_by_the_projects_own_definitions(project, embedded_pair):
    events = subprocess.run([sys.executable, "sample.py"], cwd=project, capture_output=True, check=True).stdout
    (project / "events.jsonl").write_bytes(events)
    command = [*ONCEFLOW, "produce", "transactions", "--from", "events.jsonl", "-m", "features", "--json"]
    environ = os.environ | {"ONCEFLOW_KAFKA": embedded_pair.kafka}
    done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"] == 10_000 == events.count(b"\n")
    assert done.stderr == ""


def test_produce_says_what_is_wrong(project, monkeypatch):
    monkeypatch.chdir(project)
    assert "no module 'nothing'" in run("produce", "t", "--from", "x.csv", "-m", "nothing").stderr
    assert "no file no.py" in run("produce", "t", "--from", "x.csv", "-m", "no.py").stderr
    assert "its sources are transactions" in run("produce", "t", "--from", "x.csv", "-m", "features.py").stderr


def test_bench_names_its_benchmarks_and_says_where_they_are(project, monkeypatch):
    assert "there are engine, stream, start" in run("bench", "nothing").stderr
    monkeypatch.chdir(project)
    assert "run this in a checkout" in run("bench", "engine").stderr


def test_the_benchmark_of_memory_counts_every_event(capsys):
    memory.main(300)
    out = capsys.readouterr().out
    assert "300 entities, 3 events each" in out
    assert "peak of process" in out


@pytest.mark.slow
def test_the_benchmark_of_the_stream_tells_rates_scale_freshness_and_memory(capsys):
    stream.main(events=60_000, runs=1, probes=5, calm_seconds=0.2, long=300_000, share=0.005)
    out = capsys.readouterr().out
    assert out.count(": 60,000 events, ") == 5
    for line in ("rate with a hot card", "two workers in a group", "p99", "CPU at 1,000 events/s", "memory after"):
        assert line in out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_runs_until_interrupted_and_leaves_no_process(how):
    command = [*ONCEFLOW, "up", "--kafka-port", "0", "--redis-port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        assert set(json.loads(up.stdout.readline())) == {"kafka", "redis"}
        children = descendants(up.pid)
        assert len(children) == 4  # two servers, each with its guard
        up.send_signal(how)
        errors = up.communicate(timeout=20)[1]
    assert gone(children)
    assert (up.returncode, errors) == ((-9, "") if how == signal.SIGKILL else (0, ""))


def test_up_tells_when_a_server_dies():
    command = [*ONCEFLOW, "up", "--kafka-port", "0", "--redis-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        assert up.stdout.readline().startswith("export ONCEFLOW_KAFKA=127.0.0.1:")
        children = descendants(up.pid)
        store = next(pid for pid in children if psutil.Process(pid).name() == "redis-server")
        os.kill(store, signal.SIGKILL)
        errors = up.communicate(timeout=20)[1]
    assert up.returncode == 1
    assert "the embedded redis has died" in errors
    assert not any(map(is_alive, children))


def test_up_refuses_a_port_in_use(embedded_pair):
    port = embedded_pair.kafka.split(":")[1]
    result = run("up", "--kafka-port", port, "--redis-port", str(free_port()))
    assert result.exit_code == 2
    assert f"port {port} for kafka is in use" in result.stderr


def descendants(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
