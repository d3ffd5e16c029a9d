import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import compose, ensemble, forest, linear_model, naive_bayes, neighbors, optim, preprocessing, tree

from featurestore import DefinitionError, FormatError
from learner.models import CompiledLogistic, RiverModel, check_model, compile_model, load_model

INPUTS = ("a", "b", "c", "d")


def logistic(optimizer=None, **parameters):
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optimizer, **parameters)


def stream(rows, seed=1, missing=0.2):
    """Rows [n, 4] of very different scales, one constant, some values missing, and labels that depend on them."""
    rng = np.random.default_rng(seed)
    X = rng.normal([0, 1e6, -5, 3], [1, 10, 1e-3, 0], (rows, 4))
    y = (X[:, 0] + (X[:, 2] + 5) * 1000 + rng.normal(size=rows) > 0.3).astype(float)
    X[rng.random(X.shape) < missing] = np.nan
    return X, y


ZOO = {
    "logistic": lambda: logistic(optim.SGD(0.05)),
    "adam": lambda: logistic(optim.Adam(0.01)),
    "window": lambda: preprocessing.StandardScaler(window_size=20) | linear_model.LogisticRegression(),
    "bayes": naive_bayes.GaussianNB,
    "tree": lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=1, grace_period=50),
    "forest": lambda: forest.ARFClassifier(n_models=3, seed=1),
    "mondrian": lambda: forest.AMFClassifier(n_estimators=2, seed=1),
    "bagging": lambda: ensemble.LeveragingBaggingClassifier(logistic(), n_models=3, seed=1),
    "boosting": lambda: ensemble.AdaBoostClassifier(tree.HoeffdingTreeClassifier(), n_models=3, seed=1),
    "neighbours": lambda: neighbors.KNNClassifier(engine=neighbors.LazySearch(window_size=50)),
}
# Mondrian trees need every input in every row; the others take what there is.
COMPLETE = {"mondrian", "neighbours", "boosting", "forest"}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"optimizer": optim.SGD(0.5)},
        {"l2": 0.05, "intercept_lr": 0.2},
        {"clip_gradient": 0.1, "intercept_init": -1.5},
        {"loss": optim.losses.Log(weight_pos=3.0, weight_neg=0.5)},
        {"intercept_init": 25.0, "intercept_lr": 0.1},  # beyond the branches of the loss, on either side
        {"intercept_init": -50.0, "intercept_lr": 0.1},
    ],
)
def test_compiled_twin_gives_the_probabilities_of_river(parameters):
    river, X, y = logistic(**parameters), *stream(3000)
    twin = compile_model(river, INPUTS)
    assert isinstance(twin, CompiledLogistic)
    for row, label in zip(X, y, strict=True):
        x = {name: value for name, value in zip(INPUTS, row.tolist(), strict=True) if np.isfinite(value)}
        expected = river.predict_proba_one(x)[True]
        assert twin.predict(row[None])[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        river.learn_one(x, bool(label))
        twin.learn(row[None], np.array([label]))
    weights = river["LogisticRegression"].weights
    assert twin.table[3] == pytest.approx([weights[name] for name in INPUTS], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ZOO)
def test_only_the_plain_pipeline_is_compiled(name):
    assert isinstance(compile_model(ZOO[name](), INPUTS), CompiledLogistic if name == "logistic" else RiverModel)


@pytest.mark.parametrize(
    "pipeline",
    [
        linear_model.LogisticRegression(),
        preprocessing.StandardScaler(with_std=False) | linear_model.LogisticRegression(),
        logistic(l1=0.1),
        logistic(optim.SGD(optim.schedulers.InverseScaling(0.1))),
        logistic(initializer=optim.initializers.Constant(0.5)),
        compose.Select("a") | logistic(),
    ],
)
def test_what_the_twin_cannot_represent_stays_with_river(pipeline):
    assert isinstance(compile_model(pipeline, INPUTS), RiverModel)


def test_model_starts_from_nothing_and_leaves_its_pattern_alone():
    for pattern in (logistic(), naive_bayes.GaussianNB()):
        before = RiverModel(INPUTS, pattern).digest()
        model = compile_model(pattern, INPUTS)
        fresh = model.digest()
        model.learn(*stream(50))
        assert RiverModel(INPUTS, pattern).digest() == before
        assert model.digest() != fresh == model.fresh().digest()


@pytest.mark.parametrize("name", ["logistic", "adam", "bayes", "tree"])
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_cutting_rows_into_batches_changes_no_bit(name, cuts):
    X, y = stream(200)
    whole, pieces = compile_model(ZOO[name](), INPUTS), compile_model(ZOO[name](), INPUTS)
    whole.learn(X, y)
    edges = [0, *sorted(cuts), 200]
    for low, high in itertools.pairwise(edges):
        pieces.learn(X[low:high], y[low:high])
    assert pieces.digest() == whole.digest()
    predictions = [pieces.predict(X[low:high]) for low, high in itertools.pairwise(edges)]
    assert np.concatenate(predictions).tobytes() == whole.predict(X).tobytes()


@pytest.mark.parametrize("name", ZOO)
def test_restored_model_goes_on_to_the_bit(name):
    X, y = stream(600, missing=0.0 if name in COMPLETE else 0.2)
    model = compile_model(ZOO[name](), INPUTS)
    model.learn(X[:400], y[:400])
    restored = load_model(model.dump())
    assert type(restored) is type(model)
    assert restored.inputs == model.inputs
    assert restored.digest() == model.digest()
    for each in (model, restored):
        each.learn(X[400:500], y[400:500])
    assert restored.digest() == model.digest()
    assert restored.predict(X[500:]).tobytes() == model.predict(X[500:]).tobytes()


@pytest.mark.parametrize("name", ZOO)
def test_digest_tells_one_more_row_and_nothing_else(name):
    X, y = stream(300, missing=0.0 if name in COMPLETE else 0.2)
    one, two = compile_model(ZOO[name](), INPUTS), compile_model(ZOO[name](), INPUTS)
    one.learn(X, y)
    two.learn(X, y)
    one.predict(X)
    assert one.digest() == two.digest()
    two.learn(X[:1] + 1.0, y[:1])
    assert one.digest() != two.digest()


def test_digest_tells_inputs_and_parameters_apart():
    digests = {
        compile_model(pattern, inputs).digest()
        for pattern in (logistic(), logistic(optim.SGD(0.5)), logistic(optim.Adam()), naive_bayes.GaussianNB())
        for inputs in (("a", "b"), ("b", "a"))
    }
    assert len(digests) == 8


def test_dump_does_not_change_when_the_model_learns_on():
    model, (X, y) = compile_model(logistic(), INPUTS), stream(20)
    model.learn(X[:10], y[:10])
    state, digest = model.dump(), model.digest()
    model.learn(X[10:], y[10:])
    assert load_model(state).digest() == digest


def test_huge_and_infinite_inputs_count_as_missing_and_poison_nothing():
    X, y = stream(400, missing=0.0)
    hostile = X.copy()
    hostile[::7, 0], hostile[::5, 1], hostile[::3, 2] = np.inf, -1e308, 1e200
    for pattern in (logistic(), naive_bayes.GaussianNB()):
        missing = np.where(np.abs(hostile) <= 1e150, hostile, np.nan)
        poisoned, clean = compile_model(pattern, INPUTS), compile_model(pattern, INPUTS)
        poisoned.learn(hostile, y)
        clean.learn(missing, y)
        assert poisoned.digest() == clean.digest()
        assert np.isfinite(poisoned.predict(hostile)).all()


@given(rows=st.lists(st.lists(st.floats(width=64), min_size=2, max_size=2), min_size=1, max_size=30), data=st.data())
@settings(max_examples=100, deadline=None)
def test_probabilities_stay_probabilities_whatever_the_inputs(rows, data):
    y = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(rows), max_size=len(rows)))
    model = compile_model(logistic(optim.SGD(1.0)), ("a", "b"))
    model.learn(np.array(rows), np.array(y))
    p = model.predict(np.array(rows))
    assert ((p >= 0) & (p <= 1)).all()
    assert np.isfinite(model.table).all()


def test_without_inputs_a_model_learns_the_base_rate():
    model = compile_model(logistic(intercept_lr=0.1), ())
    model.learn(np.empty((2000, 0)), (np.arange(2000) % 4 == 0).astype(float))
    assert model.predict(np.empty((1, 0)))[0] == pytest.approx(0.25, abs=0.05)


def test_river_model_that_knows_nothing_says_one_half():
    assert RiverModel(("a",), tree.HoeffdingTreeClassifier()).predict(np.zeros((2, 1))).tolist() == [0.5, 0.5]


def test_unknown_kind_of_model_is_refused():
    with pytest.raises(FormatError, match="no model of kind 'oracle'"):
        load_model({"kind": "oracle"})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (object(), "object cannot be its model; use a River classifier"),
        (linear_model.LinearRegression(), "only binary classification"),
        (preprocessing.StandardScaler() | linear_model.LinearRegression(), "LinearRegression cannot be its model"),
        (forest.ARFClassifier(), "ARFClassifier has no seed"),
        (preprocessing.StandardScaler() | ensemble.SRPClassifier(), "SRPClassifier has no seed"),
        (neighbors.KNNClassifier(engine=neighbors.SWINN(seed=1)), "SWINN keeps .* use engine=LazySearch()"),
        (ensemble.VotingClassifier([naive_bayes.GaussianNB(), logistic()]), "gives no probabilities"),
        (compose.FuncTransformer(lambda x: x) | linear_model.LogisticRegression(), "cannot be run and stored"),
        (compose.FuncTransformer(stream) | linear_model.LogisticRegression(), "cannot be run and stored"),
    ],
)
def test_model_that_cannot_be_run_stored_or_replayed_is_refused(model, message):
    with pytest.raises(DefinitionError, match=message):
        check_model(model, INPUTS)


@pytest.mark.parametrize("name", ["logistic", "adam", "bayes", "tree", "forest", "bagging"])
def test_usual_models_pass_the_check(name):
    check_model(ZOO[name](), INPUTS)
