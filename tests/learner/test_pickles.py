import hashlib
import pickle
import random

import numpy as np
import pytest
from river import compose, linear_model, preprocessing, stats

from featurestore import FormatError
from learner import pickles


def state_of(data):
    return {
        "river": pickles.river_version(),
        "length": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "pickle": data,
    }


class Runs:
    """Pickles to a call of `function`, as malicious pickles do."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __str__(self):
        return getattr(self.call[0], "__qualname__", "attrgetter")

    def __reduce__(self):
        return self.call


def scaled():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


@pytest.mark.parametrize(
    "part",
    [
        Runs(eval, "open('/dev/null')"),
        Runs(exec, "raise SystemExit"),
        Runs(__import__("os").system, "true"),
        Runs(__import__("subprocess").check_output, ["true"]),
        Runs(__import__("importlib").import_module, "antigravity"),
        Runs(open, "/dev/null"),
        Runs(getattr, "text", "format"),
        Runs(getattr, stats.Mean(), "__class__"),
        Runs(getattr, stats.Mean, "__subclasses__"),
        Runs(__import__("operator").attrgetter("__globals__"), stats.Mean),
        Runs(bytearray, 10),
        Runs(pickle.loads, b"N."),
        Runs(np.load, "/dev/null"),
        Runs(random.seed, 1),
        pytest,  # refused by pickle itself, or by name
    ],
    ids=str,
)
def test_malicious_pickles_are_refused(part, monkeypatch, tmp_path):
    model = scaled()
    model["StandardScaler"].means["x"] = part
    try:
        data = pickle.dumps(model)
    except TypeError:
        return
    with pytest.raises(FormatError, match="cannot be read"):
        pickles.load_model(state_of(data))


@pytest.mark.parametrize(
    "text",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x0criver.compose\x8c\x0bbase.typing\x93.",  # a dotted name that walks out of River
        b"\x80\x04\x8c\x0criver.utils.\x8c\x03foo\x93.",
        b"criver.stream.cache\nCache\n.",
        b"criver.datasets.base\nRemoteDataset\n.",
        b"criver.drift.datasets.airline_passengers\nAirlinePassengers\n.",
        b"criver.compose.pipeline\ntyping\n.",
        b"criver.utils.pretty\nprint_table\n.",
        b"cnumpy\nload\n.",
        b"Pnumber\n.",
        b"",
        b"\x80",
        b"garbage",
        b"(((((",
    ],
)
def test_hand_written_pickles_are_refused(text):
    with pytest.raises(FormatError, match="cannot be read"):
        pickles.load_model(state_of(text))


@pytest.mark.parametrize("thing", [{"a": 1}, 3.5, [stats.Mean()], None])
def test_what_is_no_river_model_is_refused(thing):
    with pytest.raises(FormatError, match="not a River model"):
        pickles.load_model(state_of(pickle.dumps(thing)))


def test_damaged_bytes_are_refused_before_they_are_parsed():
    state = pickles.dump_model(scaled())
    bomb = pickle.dumps(Runs(eval, "1 / 0"))
    for broken in ({"pickle": bomb}, {"pickle": state["pickle"][:-1]}, {"sha256": "0" * 64}, {"length": 1}):
        with pytest.raises(FormatError, match="do not match their checksum"):
            pickles.load_model(state | broken)


def test_other_river_version_is_refused_with_the_way_out():
    state = pickles.dump_model(scaled()) | {"river": "0.21.2"}
    with pytest.raises(FormatError, match=r"written by River 0\.21\.2 .* install river==0\.21\.2, or train"):
        pickles.load_model(state)


def test_model_with_arrays_generators_and_containers_comes_back():
    model = compose.Select("a", "b") | scaled()
    model["Select"].kept = [
        np.arange(6.0).reshape(2, 3),
        np.float64(1.5),
        random.Random(3),
        np.random.RandomState(4),
        {frozenset({1, 2}): (True, None, b"x")},
    ]
    back = pickles.load_model(pickles.dump_model(model))
    assert pickles.digest(back) == pickles.digest(model)
    kept = back["Select"].kept
    assert kept[2].random() == random.Random(3).random()
    assert kept[3].random() == np.random.RandomState(4).random()


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (0.0, -0.0),
        (1, 1.0),
        (1, True),
        ([1, 2], (1, 2)),
        ([[1], 2], [[1, 2]]),
        ({"a": 1}, {"a": 2}),
        ("1", 1),
        (np.zeros(2), np.zeros(2, np.float32)),
        (np.zeros((1, 2)), np.zeros((2, 1))),
        (stats.Mean(), stats.Var()),
        (random.Random(1), random.Random(2)),
        (0.1 + 0.2, 0.3),
    ],
)
def test_digest_tells_unequal_parts_apart(one, two):
    assert pickles.digest(one) != pickles.digest(two)


def test_digest_sees_sets_without_their_order_and_cycles_without_end():
    names = [f"name{i}" for i in range(50)]
    assert pickles.digest(set(names)) == pickles.digest(dict.fromkeys(reversed(names)).keys() | set())
    ring = [1]
    ring.append(ring)
    assert pickles.digest(ring) == pickles.digest(pickle.loads(pickle.dumps(ring)))
