"""A worker, a changed view, a backfill, and a worker again: as if the view had always been so."""

from __future__ import annotations

import secrets

from typer.testing import CliRunner

from featurestore import Count, Entity, Last, Max, Mean, Sum, TopK, session, view
from onceflow import cli
from onceflow.modules import Definitions
from tests.streams.shop import PARTITIONS, history, logs, produce, shop
from tests.streams.working import blobs, in_memory, settings_of, stored, work

MODULE = """
from tests.onceflow.test_changed_view import definitions_of
made = definitions_of("TAG", new=NEW).views["sellers_TAG"]
"""


def definitions_of(tag, *, new):
    """One view of orders, as it was or as it is."""
    source = shop(tag).sources[f"orders-{tag}"]
    members = {"n": Count(windows=["5m", session("1m")]), "spent": Sum("amount"), "gone": Max("items")}
    if new:
        del members["gone"]
        members |= {"mean": Mean("items"), "last": Last("user", windows=["10m"]), "top": TopK("user", k=2)}
    made = view(entity=Entity("shop", key="shop"), source=source, windows=["5m"], version=1 + new)
    chosen = made(type(f"sellers_{tag}", (), members))
    return Definitions({source.name: source}, {chosen.name: chosen}, {})


def test_a_worker_goes_on_with_a_changed_view(embedded_pair, tmp_path, monkeypatch):
    pair, tag = embedded_pair, secrets.token_hex(4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONCEFLOW_REDIS", pair.redis_url)
    records = [record for record in history(tag, 400) if record.topic.startswith("orders")]
    old, new = definitions_of(tag, new=False), definitions_of(tag, new=True)
    settings = settings_of(pair, tag, tmp_path / ".onceflow")

    def command(name, *more, version):
        (tmp_path / "made.py").write_text(MODULE.replace("TAG", tag).replace("NEW", str(version)))
        result = CliRunner().invoke(cli.app, [name, "-m", "made.py", *more])
        assert result.exit_code == 0, result.output
        return result.stdout

    command("apply", version=False)
    produce(pair.kafka, tag, records[:250])
    work(old, settings)
    command("apply", version=True)
    text = command("backfill", "--view", f"sellers_{tag}", "--events", ".onceflow/events", "--online", version=True)
    assert "kept 3 of 6 features" in text
    produce(pair.kafka, tag, records[250:])
    work(new, settings)
    flow, _, _ = in_memory(new, logs(new, records)[0])
    found, (made,) = stored(pair.redis_url, tag), new.views.values()
    for partition in range(PARTITIONS):
        assert blobs(found, made, partition) == flow.states[made.key].blobs(partition)
