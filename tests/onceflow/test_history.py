"""check, apply, backfill and verify, as they are typed."""

from __future__ import annotations

import asyncio
import json
import os
import re

import polars as pl
import pytest
from typer.testing import CliRunner

from batch.backfill import after_events, at_rows
from featurestore.online import connect
from onceflow import cli, modules
from onceflow.commands import backfill
from tests.batch import stored
from tests.batch.stored import PARTITIONS, CardPayments, ShopPayments

DEFINITIONS = """
from featurestore import Count, Entity, Last, Source, col, derived, view
events = Source("events", schema={"k": str, "at": int}, event_time="at", key="k")

@view(entity=Entity("key", key="k"), source=events, windows=["1m"], version=VERSION)
class Seen:
    times = Count(where=col("k") != "x")
    DERIVED
"""


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's folder with definitions and an archive."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "features.py").write_text("from tests.batch.stored import CardPayments, ShopPayments\n")
    stored._archive(tmp_path / ".onceflow", stored.history())
    return tmp_path


@pytest.fixture
def redis(redis_url, monkeypatch):
    """Redis without the views of these tests."""
    monkeypatch.setenv("ONCEFLOW_REDIS", redis_url)

    async def clear():
        store = connect(redis_url)
        for made in (CardPayments, ShopPayments):
            for partition in range(PARTITIONS):
                await store.drop(made.key, "payments", partition)
        await store.close()

    asyncio.run(clear())


SERVICE = """
from river import linear_model
from learner import Label, Service
from featurestore import Count, Entity, Source, col, derived, one_hot, view
events = Source("events", schema={"k": str, "x": float, "at": int}, event_time="at", key="k")

@view(entity=Entity("key", key="k"), source=events, windows=["1m"])
class Seen:
    times = Count()
    often = derived(col("times_1m") > 9)

label = Label(events, id="k", value=col("x") > 1, wait="1h")
model = linear_model.LogisticRegression()
share = derived(col("x") / col("seen:times_1m"), name="share")
kind = derived(one_hot(col("k"), ["a"]), name="kind")
risky = Service("risky", on=events, id="k", features=[Seen, share, kind], label=label, model=model)
"""


def backfilled(project, *more, view="shop_payments"):
    archive = project / ".onceflow/events"
    return run("backfill", "-m", "features.py", "--view", view, "--events", archive, "--out", "out", "--json", *more)


def parts(folder):
    return pl.read_parquet(folder / "part-*.parquet")


def test_check_shows_what_derived_features_are_derived_from(tmp_path):
    module = tmp_path / "risky.py"
    module.write_text(SERVICE)
    shown = run("check", "-m", module).stdout
    assert "often                    bool           derived from times_1m" in shown
    assert "share                    float          derived from x, seen:times_1m" in shown
    assert "kind_other               bool           derived from k" in shown
    [service] = json.loads(run("check", "-m", module, "--json").stdout)["services"]
    assert service["inputs"] == ["seen:times_1m", "seen:often", "share", "kind_a", "kind_other"]
    assert service["request"] == ["k", "x"]
    assert service["derived"][0] == {
        "name": "share",
        "type": "float",
        "aggregate": "derived",
        "from": ["x", "seen:times_1m"],
    }


def test_check_shows_all_that_is_defined():
    result = run("check", "-m", "examples.flights.features")
    assert result.exit_code == 0
    for text in ("source departures, keyed by flight_id", "view line_arrivals v1", "carrier, flight from arrivals"):
        assert text in result.stdout
    assert "Mean(delay) over 3h in 91 tiles of 2m" in result.stdout
    assert "labels from arrivals by flight_id, within 36h" in result.stdout
    shown = json.loads(run("check", "-m", "examples.flights.features", "--json").stdout)
    assert len(shown["views"]) == 10
    assert shown["services"][0]["inputs"][0] == "origin_departures:flights_1h"
    assert all(made["state_bytes_per_entity"] > 0 for made in shown["views"])


LISTS = """
from featurestore import CountBy, Distinct, Entity, LastN, Source, session, view

shop = Entity("shop", key="shop")
sales = Source("sales", schema={"shop": str, "card": str, "at": "timestamp[ms]"}, event_time="at", key="shop")

@view(entity=shop, source=sales, windows=["lifetime"])
class Hashes:
    cards = Distinct("card", bound=10)

@view(entity=shop, source=sales, windows=["lifetime"])
class Texts:
    cards = CountBy("card", bound=10)

@view(entity=shop, source=sales, windows=[session("1h")])
class Visits:
    cards = LastN("card", n=2)
"""


def test_check_says_what_states_take_with_bags_texts_and_sessions(project):
    (project / "lists.py").write_text(LISTS)
    text = run("check", "-m", "lists.py").stdout
    registers, categories = (8 * (words + words // 31 + 1) for words in (3 + 1 + 256 * 3, 3 + 1 + (10 + 1) * 3))
    assert f"state of an entity on a partition: at most {registers:,} bytes\n" in text
    assert f"state of an entity on a partition: at most {categories:,} bytes, and its texts\n" in text
    assert "state of an entity on a partition: in proportion to the events in its windows, and its texts\n" in text
    assert re.search(r"cards_session_1h +list\[str\] +LastN\(card\) over the session", text)
    shown = json.loads(run("check", "-m", "lists.py", "--json").stdout)
    assert [made["state_bytes_per_entity"] for made in shown["views"]] == [registers, categories, None]


def test_check_says_which_events_are_repeats(project):
    (project / "told.py").write_text(LISTS.replace('key="shop")\n\n', 'key="shop", id="card", dedup=5_000)\n\n', 1))
    assert "\n  left out where one of 5,000 records before has the same card\n" in run("check", "-m", "told.py").stdout
    [source] = json.loads(run("check", "-m", "told.py", "--json").stdout)["sources"]
    assert source["repeats"] == {"id": "card", "dedup": 5_000}


def define(project, version=1, derived=""):
    text = DEFINITIONS.replace("VERSION", str(version)).replace("DERIVED", derived)
    (project / "defined.py").write_text(text)
    return json.loads(run("apply", "-m", "defined.py", "--json").stdout)["changes"]


def test_apply_registers_and_says_what_it_costs(project):
    (added,) = define(project)
    assert added["kind"] == "added"
    assert "onceflow backfill --view seen" in added["cost"]
    assert [(c["kind"], c["cost"]) for c in define(project)] == [("unchanged", "nothing")]
    (changed,) = define(project, 2, 'twice = derived(col("times_1m") * 2)')
    assert changed["kind"] == "changed"
    assert changed["cost"] == "nothing: the state is the same"
    assert any("derived feature twice added" in reason for reason in changed["reasons"])
    assert (project / ".onceflow/registry").is_dir()


def test_apply_says_what_a_backfill_keeps(project):
    define(project)
    (changed,) = define(project, 2, 'newest = Last("at")')
    assert re.search(
        r"--online, which keeps 1 of 2 features from seen@\w+; only newest_1m needs history$", changed["cost"]
    )
    (back,) = define(project, 3)
    assert re.search(r"keeps 1 of 1 features from seen@\w+, and none needs history$", back["cost"])
    text = (project / "defined.py").read_text()
    (project / "defined.py").write_text(text.replace('key="k")\n', 'key="k", lateness="1h")\n', 1))
    (moved,) = json.loads(run("apply", "-m", "defined.py", "--json").stdout)["changes"]
    assert "all of it from history: seen@" in moved["cost"]


def test_apply_lets_go_of_a_view_that_is_no_longer_defined(project):
    define(project)
    text = run("apply", "-m", "features.py").stdout
    assert "removed    seen" in text
    assert "added      card_payments" in text
    assert "removed" not in run("apply", "-m", "features.py").stdout


def test_backfill_writes_features_after_every_event(project):
    result = json.loads(backfilled(project).stdout)
    assert (result["events"], result["rows"], result["parts"], result["kept"]) == (400, 400, 1, 0)
    assert parts(project / "out").equals(after_events(ShopPayments, stored.history()["payments"]))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_backfill_writes_features_at_rows(project, kind):
    rows = pl.DataFrame({"shop": ["y", "x", "nowhere"], "at": [90_000, 30_000, 5_000], "note": ["a", "b", "c"]})
    rows.write_csv(project / "at.csv")
    rows.write_parquet(project / "at.parquet")
    assert backfilled(project, "--at", f"at.{kind}", "--mode", "arrival").exit_code == 0
    wanted = at_rows(ShopPayments, stored.history()["payments"], rows, "arrival")
    assert parts(project / "out").equals(wanted)


@pytest.mark.parametrize("at", [False, True])
def test_an_interrupted_backfill_goes_on_with_the_parts_that_lack(project, monkeypatch, at):
    monkeypatch.setattr(backfill, "EVENTS", 60)
    monkeypatch.setattr(backfill, "ROWS", 60)
    stored.history()["requests"].select("shop", "at").write_parquet("at.parquet")
    more = ["--at", "at.parquet"] if at else []
    whole = json.loads(backfilled(project, *more).stdout)
    before = parts(project / "out")
    again = backfilled(project, *more)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    for lost in (1, 3):
        (project / "out" / f"part-0000{lost}.parquet").unlink()
    kept = (project / "out" / "part-00000.parquet").stat().st_mtime_ns
    result = json.loads(backfilled(project, *more, "--resume").stdout)
    assert (result["parts"], result["kept"]) == (whole["parts"], whole["parts"] - 2)
    assert parts(project / "out").equals(before)
    assert (project / "out" / "part-00000.parquet").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--engine", "spark"], "--engine local does the same work"),
        (["--view", "nothing"], "has no view 'nothing'; its views are card_payments, shop_payments"),
        (["--at", "nothing.parquet"], "nothing.parquet cannot be read as Parquet"),
        (["--events", "nowhere"], "no Parquet files of 'payments' under nowhere"),
    ],
)
def test_backfill_says_what_is_wrong(project, options, text):
    result = backfilled(project, *options)
    assert result.exit_code == 2
    assert text in result.stderr


def test_online_needs_to_know_where_events_lie(project, redis):
    frame = stored.history()["payments"]
    frame.drop("_partition", "_offset").write_parquet("plain.parquet")
    result = backfilled(project, "--events", "plain.parquet", "--online")
    assert result.exit_code == 2
    assert "_partition and _offset" in result.stderr


def test_backfill_online_then_verify(project, redis):
    for made in ("card_payments", "shop_payments"):
        result = json.loads(backfilled(project, "--online", "--out", made, view=made).stdout)
        assert result["online"]["states"] > 0
    (project / "onceflow.toml").write_text('mode = "replay"\nmirror = false\n')
    verified = run("verify", "-m", "features.py", "--json")
    shown = json.loads(verified.stdout)
    assert verified.exit_code == 0
    assert shown["good"]
    assert shown["parity_compared"] > 15
    assert (shown["parity_mismatched"], shown["missing"]) == (0, [])
    text = run("verify", "-m", "features.py").stdout
    assert "All equals a replay of the archive, bit for bit" in text


GROWN = """
from featurestore import Count, Last, Max, Mean, Sum, col, derived, view
from tests.batch.stored import payments, shop

@view(entity=shop, source=payments, windows=["30s"], version=2)
class ShopPayments:
    n = Count()
    big = Count(where=col("amount") > 0.5)
    mean = Mean("amount")
    share = derived(col("big_30s") / col("n_30s"))
    biggest = Max("amount", windows=["5m"])
"""


@pytest.fixture
def grown(project):
    """The project with one more feature, which has been applied; another one has been backfilled before."""
    run("apply", "-m", "features.py")
    backfilled(project, "--online")
    (project / "features.py").write_text(GROWN)
    run("apply", "-m", "features.py")
    made = modules.load("features.py").views["shop_payments"]
    yield made

    async def clear():
        store = connect(os.environ["ONCEFLOW_REDIS"])
        for partition in range(PARTITIONS):
            await store.drop(made.key, "payments", partition)
        await store.close()

    asyncio.run(clear())


def online(project, *more):
    return run(
        "backfill", "-m", "features.py", "--view", "shop_payments", "--events", ".onceflow/events", "--online", *more
    )


def test_a_new_feature_alone_is_folded_from_history(project, redis, grown):
    text = online(project).stdout
    assert f"kept 3 of 4 features from {ShopPayments.key}" in text
    assert "folded anew: biggest_5m" in text
    (project / "onceflow.toml").write_text('mode = "replay"\nmirror = false\n')
    shown = json.loads(run("verify", "-m", "features.py", "--json").stdout)
    assert (shown["good"], shown["parity_mismatched"], shown["missing"]) == (True, 0, [])
    again = json.loads(online(project, "--json").stdout)["online"]
    assert (again["states"], again["kept"]) == (0, None)
    assert again["reason"] == "it has states of its own, which go on"


def test_a_source_that_changed_keeps_nothing_and_says_why(project, redis, grown):
    text = GROWN.replace("stored import payments, shop", "stored import payments as was, shop\nimport dataclasses")
    text = text.replace("@view", 'payments = dataclasses.replace(was, lateness="1h")\ndel was\n\n@view')
    (project / "features.py").write_text(text)
    text = online(project).stdout
    assert f"nothing taken from an older definition: {ShopPayments.key} is of another source" in text
    assert "states written to Redis" in text


def test_backfill_without_a_folder_needs_online(project):
    result = run("backfill", "-m", "features.py", "--view", "shop_payments", "--events", ".onceflow/events")
    assert result.exit_code == 2
    assert "Give --out a folder" in result.stderr


def test_verify_fails_on_what_is_not_stored(project, redis):
    result = run("verify", "-m", "features.py")
    assert result.exit_code == 1
    assert "Missing:" in result.stdout
    assert "nothing is stored, though events up to" in result.stdout


def test_verify_without_an_archive_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("verify", "-m", "examples.flights.features")
    assert result.exit_code == 2
    assert "there is no archive under" in result.stderr
