"""Every command of the README, run as a newcomer runs them: three shells, in the order of the page."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onceflow.children import free_port

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

#: These two are what runs this test, and the demo has a test of its own.
MAKE = {"make demo"}
LONG = ("onceflow up", "onceflow run -m examples.flights.features")


def commands():
    """The README's shell commands: what stands indented outside code fences, continued while a quote is open."""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    found, open_ = [], []
    for line in lines:
        open_.append(line)
        if "\n".join(open_).replace('\\"', "").count('"') % 2 == 0:
            found.append("\n".join(open_))
            open_ = []
    return [command for command in found if command not in MAKE and not command.startswith("source ")]


class Shell:
    """Runs commands in one folder, with the servers' addresses in the place of the usual ones."""

    def __init__(self, folder, kafka, redis_url):
        self.folder, self.kafka = folder, kafka
        self.port = free_port()
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "ONCEFLOW_KAFKA": kafka,
            "ONCEFLOW_REDIS": redis_url,
            "ONCEFLOW_HTTP_PORT": str(self.port),
            "ONCEFLOW_ALONE": "true",
        }

    def run(self, command, seconds=60):
        done = self._done(command, seconds)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def until(self, command, wanted, seconds=60):
        """Run the command until its output has what is wanted: servers start, and events take a moment to arrive."""
        deadline = time.monotonic() + seconds
        while True:
            done = self._done(command, seconds)
            if done.returncode == 0 and re.search(wanted, done.stdout):
                return done.stdout
            assert time.monotonic() < deadline, f"{command}\n{done.stdout}\n{done.stderr}"
            time.sleep(0.2)

    def _done(self, command, seconds):
        command = command.replace("localhost:6566", f"127.0.0.1:{self.port}").replace("127.0.0.1:9092", self.kafka)
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_command_of_the_readme_works(tmp_path, embedded_pair):
    shell = Shell(tmp_path, embedded_pair.kafka, embedded_pair.redis_url)
    listed = [command for command in commands() if not command.startswith("make ")]
    assert set(LONG) <= set(listed)
    steps = iter(command for command in listed if command not in LONG)
    assert "origin_departures" in shell.run(next(steps))  # check
    with subprocess.Popen(
        [BIN / "onceflow", *LONG[1].split()[1:]], cwd=tmp_path, env=shell.environment, stdout=subprocess.DEVNULL
    ) as running:
        try:
            shell.run(next(steps))  # the flights, to files
            produced = [shell.run(next(steps)) for _ in range(4)]
            assert all(re.search(r"\d events to ", out) for out in produced)
            shell.until(next(steps), r"delay_3h\W+\d")  # get
            # curl: both airports are found; their values are null, for no flight of 2013 left in the last three hours
            shell.until(next(steps), '^(?!.*NOT_FOUND).*"PRESENT"')
            shell.until(next(steps), '"probabilities"')  # kafka-python
            time.sleep(1)  # the archive and the mirror write what they hold at the latest when the worker stops
        finally:
            running.terminate()
            running.wait(30)
    assert "EWR" in shell.run(next(steps))  # DuckDB
    assert "origin_departures" in shell.run(next(steps))  # backfill
    assert "0" in shell.run(next(steps))  # verify: its exit code is what counts
    assert next(steps, None) is None, "a command of the README is not run here"


def test_up_runs_as_the_readme_says(tmp_path):
    command = [BIN / "onceflow", "up", "--kafka-port", "0", "--redis-port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as up:
        try:
            assert up.stdout.readline().startswith("export ONCEFLOW_KAFKA=127.0.0.1:")
        finally:
            up.terminate()
            up.wait(15)
