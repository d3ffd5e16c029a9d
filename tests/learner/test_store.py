import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from river import linear_model, naive_bayes, preprocessing

from featurestore import ConfigError, FormatError
from learner.models import compile_model
from learner.store import ModelStore


def model_of(rows=50, pattern=None):
    model = compile_model(pattern or preprocessing.StandardScaler() | linear_model.LogisticRegression(), ("a", "b"))
    rng = np.random.default_rng(rows)
    model.learn(rng.normal(size=(rows, 2)), (rng.random(rows) < 0.5).astype(float))
    return model


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models")


@pytest.mark.parametrize("pattern", [None, naive_bayes.GaussianNB()])
def test_published_model_comes_back_to_the_bit(store, pattern):
    model = model_of(pattern=pattern)
    lineage = {"views": ["origin@abc"], "positions": [["departures", 0, 7]]}
    assert store.publish("late", model, lineage, {"auc": 0.7}) == 1
    back, meta = store.load("late", 1)
    assert back.digest() == model.digest() == meta["digest"]
    assert (meta["service"], meta["version"], meta["inputs"]) == ("late", 1, ["a", "b"])
    assert (meta["lineage"], meta["metrics"], meta["river"]) == (lineage, {"auc": 0.7}, "0.26.1")
    assert store.meta("late", 1) == meta


def test_versions_count_up_for_each_service(store):
    assert store.versions("late") == []
    assert [store.publish("late", model_of(n), {}) for n in (1, 2, 3)] == [1, 2, 3]
    assert store.publish("fraud", model_of(), {}) == 1
    assert store.versions("late") == [1, 2, 3]
    assert store.load("late", 2)[0].digest() == model_of(2).digest()


def test_aliases_move_and_roll_back(store):
    for n in (1, 2, 3):
        store.publish("late", model_of(n), {})
        assert store.alias("late", "champion", n) == n
    assert store.load("late")[1]["version"] == 3
    assert store.rollback("late") == 2
    assert store.rollback("late") == 1
    assert store.alias("late", "champion") == 1
    with pytest.raises(ConfigError, match="nothing to go back to"):
        store.rollback("late")
    store.alias("late", "challenger", 3)
    assert store.load("late", "challenger")[0].digest() == model_of(3).digest()


def test_pointing_an_alias_where_it_points_adds_no_history(store):
    for n in (1, 2):
        store.publish("late", model_of(n), {})
        store.alias("late", "champion", n)
        store.alias("late", "champion", n)
    assert store.rollback("late") == 1


def test_unknown_versions_and_aliases_are_refused(store):
    with pytest.raises(ConfigError, match="'late' has no alias 'champion'; publish one first"):
        store.load("late")
    store.publish("late", model_of(), {})
    for attempt in (
        lambda: store.load("late", 2),
        lambda: store.alias("late", "champion", 2),
        lambda: store.meta("late", 0),
    ):
        with pytest.raises(ConfigError, match=r"there is no version . of 'late'; there are 1 to 1"):
            attempt()
    with pytest.raises(ConfigError, match="has no alias"):
        store.rollback("late")


NAMES = [
    "..",
    ".",
    "",
    "../late",
    "a/b",
    "/etc",
    "a\\b",
    "Late",
    "%2e%2e",
    "a\x00",
    "a\n",
    "-a",
    "é",
    "a" * 65,
    None,
    3,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_cannot_lead_out_of_the_store(store, name, tmp_path):
    store.publish("late", model_of(), {})
    before = sorted(tmp_path.rglob("*"))
    for attempt in (
        lambda: store.publish(name, model_of(), {}),
        lambda: store.load(name, 1),
        lambda: store.versions(name),
        lambda: store.alias("late", name, 1),
        lambda: store.rollback("late", name),
    ):
        with pytest.raises(ConfigError, match="name: 1 to 64 of"):
            attempt()
    assert sorted(tmp_path.rglob("*")) == before


def test_links_cannot_lead_out_of_the_store(store, tmp_path):
    store.publish("late", model_of(), {})
    (store.root / "away").symlink_to(tmp_path)
    (store.root / "late" / "aliases").symlink_to(tmp_path)
    for attempt in (lambda: store.publish("away", model_of(), {}), lambda: store.alias("late", "champion", 1)):
        with pytest.raises(ConfigError, match="leads out of the model store"):
            attempt()


def test_half_written_versions_are_ignored(store):
    store.publish("late", model_of(), {})
    for name in ("v000002", ".v000003.77.tmp", "v9", "vx"):
        (store.root / "late" / name).mkdir()
    (store.root / "late" / "v000002" / "model.bin").write_bytes(b"half")
    assert store.versions("late") == [1]
    assert store.publish("late", model_of(2), {}) == 3  # a number that is taken, even by half, is passed over
    assert store.versions("late") == [1, 3]


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: b"", lambda d: d[:60] + b"!" + d[61:], lambda d: d + b"x"]
)
def test_changed_model_files_are_refused(store, damage):
    store.publish("late", model_of(), {})
    path = store.root / "late" / "v000001" / "model.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FormatError, match=r"model\.bin is not what was published: restore a copy, or roll back"):
        store.load("late", 1)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"version": 1'])
def test_torn_meta_data_and_aliases_are_refused(store, content):
    store.publish("late", model_of(), {})
    store.alias("late", "champion", 1)
    (store.root / "late" / "aliases" / "champion").write_bytes(content)
    with pytest.raises(FormatError, match=r"champion (is not JSON|does not hold)"):
        store.load("late")
    (store.root / "late" / "v000001" / "meta.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"meta\.json (is not JSON|does not hold)"):
        store.load("late", 1)


def test_no_file_but_the_documented_ones_is_left(store):
    store.publish("late", model_of(), {})
    store.alias("late", "champion", 1)
    found = sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())
    assert found == ["late/aliases/champion", "late/v000001/meta.json", "late/v000001/model.bin"]
    assert json.loads((store.root / "late" / "aliases" / "champion").read_text()) == {"version": 1, "history": []}


def test_two_publishers_never_share_a_version(store):
    with ThreadPoolExecutor(2) as pool:
        taken = list(pool.map(lambda _: ModelStore(store.root).publish("late", model_of(), {}), range(20)))
    assert sorted(taken) == store.versions("late") == list(range(1, 21))
    assert [store.meta("late", version)["version"] for version in range(1, 21)] == list(range(1, 21))
