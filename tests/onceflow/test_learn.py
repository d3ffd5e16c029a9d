import re
import signal
import time
import urllib.request

import pytest

from featurestore.errors import ConfigError, FormatError
from learner import snapshot
from learner.live import alone
from learner.store import ModelStore
from onceflow.children import free_port
from onceflow.commands import learn
from tests.learner.live_logs import label_records, logs, made, make_topics, prediction_records, send, topics_of
from tests.onceflow.processes import onceflow, told_to_stop


@pytest.fixture
def project(tmp_path, prefix, monkeypatch):
    """A project with one service, in the current directory."""
    (tmp_path / "definitions.py").write_text(f"from tests.learner.live_logs import made\n\nlate = made({prefix!r})\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stopped(process, number):
    """Exit code, what is left of standard error, and how long it took (s)."""
    begun = time.monotonic()
    return *told_to_stop(process, number), time.monotonic() - begun


def test_learn_without_kafka_says_so_in_one_line_and_stops_when_told(project):
    with onceflow("learn", module="definitions.py", kafka="127.0.0.1:9") as process:
        line = process.stderr.readline()
        assert "cannot reach Kafka, trying again; `onceflow up` starts one  kafka=127.0.0.1:9  error=" in line
        time.sleep(3)  # it tries again, silently
        assert process.poll() is None
        code, error, seconds = stopped(process, signal.SIGTERM)
    assert (code, error) == (0, "")
    assert seconds < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_learn_leaves_a_snapshot_and_a_model_when_told_to_stop(project, prefix, embedded_pair, number):
    service, port = made(prefix), free_port()
    predictions, labels = logs(400, service)
    make_topics(embedded_pair.kafka, service)
    asked, told = topics_of(service)
    send(embedded_pair.kafka, asked, prediction_records(service, predictions))
    send(embedded_pair.kafka, told, label_records(labels))
    with onceflow("learn", module="definitions.py", kafka=embedded_pair.kafka, metrics_port=port) as process:
        assert process.stderr.readline().endswith(f"info    learning  services={service.name}\n")
        shown = metrics(
            port, lambda shown: shown.get(f'onceflow_service_predictions{{service="{service.name}"}}', 0) > 200
        )
        code, error, seconds = stopped(process, number)
    assert (code, error) == (0, "")
    assert seconds < 5
    assert shown[f'onceflow_learner_records_total{{service="{service.name}",topic="{asked}"}}'] == 400
    assert f'onceflow_learner_lag{{service="{service.name}",topic="{told}"}}' in shown
    kept = snapshot.read(project / ".onceflow" / "snapshots" / f"{service.name}.learner")
    assert kept["learner"]["model_version"] > 0
    assert ModelStore(project / ".onceflow" / "models").load(service.name)[1]["inputs"] == list(service.inputs)


def metrics(port, enough, seconds=20):
    """The metrics, by name and labels, as soon as they are enough."""
    deadline = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            lines = re.findall(r"^([^# ].*) (\S+)$", answer.read().decode(), re.MULTILINE)
        shown = {name: float(value) for name, value in lines}
        if enough(shown):
            return shown
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


def test_learn_refuses_a_module_without_a_service(tmp_path, monkeypatch):
    (tmp_path / "definitions.py").write_text("from tests.learner.late_arrivals import OriginDelays\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'definitions.py' has no service to learn for"):
        learn.run(module="definitions.py")


def test_learn_refuses_to_run_beside_another(project):
    with alone(project / ".onceflow" / "snapshots"), pytest.raises(ConfigError, match="another learner runs"):
        learn.run(module="definitions.py")


def test_learn_leaves_a_snapshot_alone_that_it_cannot_read(project, prefix):
    file = project / ".onceflow" / "snapshots" / f"{prefix}late.learner"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not a snapshot")
    with pytest.raises(FormatError, match="was not written by onceflow's learner"):
        learn.run(module="definitions.py")
    assert file.read_bytes() == b"not a snapshot"
