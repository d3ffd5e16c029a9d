"""The registry: what was applied stays, what changes is said in words."""

from __future__ import annotations

import pytest

from featurestore import Count, Entity, Source, Sum, col, derived, view
from featurestore.errors import DefinitionError, FormatError
from featurestore.registry import Change, Registry, compare


def feature(name, **changes):
    made = {
        "name": name,
        "type": "float",
        "aggregate": "Sum",
        "column": "amount",
        "where": None,
        "window": {"label": "5m", "length": 300_000, "hop": 5000},
    }
    return {**made, **changes}


def spec(name="card_activity", fingerprint="c0ffee", **changes):
    made = {
        "view": name,
        "version": 1,
        "fingerprint": fingerprint,
        "source": "payments",
        "entity": {"name": "card", "key": ["card_id"]},
        "features": [feature("spend_5m")],
        "derived": [{"name": "share", "type": "float", "expression": "{}"}],
    }
    return {**made, **changes}


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "data" / "registry")


def test_an_empty_registry_knows_nothing_and_makes_no_folder(registry, tmp_path):
    assert registry.entries() == []
    assert registry.current("card_activity") is None
    assert registry.diff([]) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_registered_is_found_by_another_registry_with_its_time_and_lineage(registry, tmp_path):
    where = '{"BinaryExpr":{"left":{"Column":"sta\\"tus"},"right":{"Literal":"\\"Column\\":\\"no\\""}}}'
    made = spec(features=[feature("spend_5m"), feature("n", column="", where=where)])
    assert registry.register(made, 1700) == Change("card_activity", "added", ("3 features of payments",))
    entry = Registry(tmp_path / "data" / "registry").current("card_activity")
    assert (entry.registered, entry.version, entry.fingerprint, entry.spec) == (1700, 1, "c0ffee", made)
    assert (entry.source, entry.columns) == ("payments", ("amount", "card_id", 'sta"tus'))


def test_registering_the_same_again_changes_no_file(registry, tmp_path):
    registry.register(spec(), 1700)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert registry.register(spec(), 1800) == Change("card_activity", "unchanged")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == before


def test_every_version_is_kept_and_an_old_one_can_be_current_again(registry):
    old, new = spec(), spec(fingerprint="beef", version=2)
    for at, made in enumerate([old, new, old]):
        registry.register(made, at)
    assert [(entry.fingerprint, entry.registered) for entry in registry.entries()] == [("beef", 1), ("c0ffee", 2)]
    assert registry.current("card_activity").spec == old


def test_a_diff_sorts_all_views_and_changes_nothing(registry):
    for name in ["kept", "changed", "gone"]:
        registry.register(spec(name), 1)
    before = registry.entries()
    changes = registry.diff([spec("kept"), spec("new"), spec("changed", source="refunds")])
    assert [(change.view, change.kind) for change in changes] == [
        ("changed", "changed"),
        ("gone", "removed"),
        ("kept", "unchanged"),
        ("new", "added"),
    ]
    assert registry.entries() == before


def test_a_removed_view_is_reported_once_and_its_history_stays(registry):
    registry.register(spec("gone"), 1)
    registry.remove("gone")
    registry.remove("gone")
    assert registry.current("gone") is None
    assert registry.diff([]) == []
    assert len(registry.entries()) == 1
    assert registry.register(spec("gone"), 2).kind == "added"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": [feature("spend_5m"), feature("spend_1h")]}, "feature spend_1h added"),
        ({"features": []}, "feature spend_5m removed"),
        ({"features": [feature("spend_5m", aggregate="Mean")]}, "feature spend_5m: aggregate Sum -> Mean"),
        ({"features": [feature("spend_5m", column="fee")]}, "feature spend_5m: column amount -> fee"),
        ({"features": [feature("spend_5m", where='{"Column":"x"}')]}, "feature spend_5m: its filter changed"),
        (
            {"derived": [{"name": "share", "type": "float", "expression": "[]"}]},
            "derived feature share: its expression",
        ),
        ({"derived": []}, "derived feature share removed"),
        ({"source": "refunds"}, "source payments -> refunds"),
        ({"entity": {"name": "card", "key": ["pan"]}}, 'entity {"name": "card", "key": ["card_id"]} -> '),
        ({"version": 2}, "version 1 -> 2"),
        ({"fingerprint": "beef"}, "id or derived columns of the source changed"),
    ],
)
def test_a_change_is_said_in_words(changes, reason):
    change = compare(spec(), spec(**changes))
    assert change.kind == "changed"
    assert reason in "; ".join(change.reasons)


def test_another_state_under_the_same_version_is_reported_and_not_refused(registry):
    registry.register(spec(), 1)
    change = registry.register(spec(fingerprint="beef", features=[feature("spend_5m", column="fee")]), 2)
    assert change.reasons == (
        "feature spend_5m: column amount -> fee",
        "its state begins anew under fingerprint beef",
        "version is still 1: raise it, so that models can tell the two apart",
    )
    assert len(registry.entries()) == 2


def test_a_derived_feature_alone_changes_no_state(registry):
    registry.register(spec(), 1)
    change = registry.register(spec(derived=[]), 2)
    assert change.reasons == ("derived feature share removed",)
    assert [entry.spec["derived"] for entry in registry.entries()] == [[]]


@pytest.mark.parametrize(
    "name", ["../evil", "a/b", "/etc/passwd", "a\\b", "A", "", "a\x00", ".hidden", "x" * 65, "a\n"]
)
def test_names_that_could_leave_the_folder_are_refused(registry, tmp_path, name):
    with pytest.raises(DefinitionError):
        registry.register(spec(name), 1)
    with pytest.raises(DefinitionError):
        registry.current(name)
    with pytest.raises(DefinitionError):
        registry.register(spec(fingerprint=name), 1)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"format": 1}', b'{"format": 9, "view": "x"}'])
def test_a_file_that_cannot_be_read_is_named(registry, tmp_path, damage):
    registry.register(spec(), 1)
    [path] = tmp_path.rglob("*@*.json")
    path.write_bytes(damage)
    for read in (registry.entries, lambda: registry.current("card_activity")):
        with pytest.raises(FormatError, match=r"card_activity@c0ffee\.v1\.json"):
            read()
    [pointer] = tmp_path.rglob("*.current.json")
    pointer.write_bytes(damage)
    with pytest.raises(FormatError, match=r"card_activity\.current\.json"):
        registry.current("card_activity")


def test_a_real_view_is_registered_with_all_the_columns_it_reads(registry):
    schema = {"card_id": str, "amount": float, "status": str, "at": "timestamp[ms]"}
    payments = Source("payments", schema=schema, event_time="at", key="card_id", lateness="10m")

    @view(entity=Entity("card", key="card_id"), source=payments, windows=["5m"])
    class CardActivity:
        spend = Sum("amount")
        declined = Count(where=col("status") == "declined")
        share = derived(col("spend_5m") / col("declined_5m"))

    registry.register(CardActivity.spec(), 5)
    entry = registry.current("card_activity")
    assert entry.spec == CardActivity.spec()
    assert entry.columns == ("amount", "card_id", "status")
    assert registry.diff([CardActivity.spec()]) == [Change("card_activity", "unchanged")]
