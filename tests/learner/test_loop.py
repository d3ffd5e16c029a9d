import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import naive_bayes, tree

from featurestore import DataError, FormatError, Source, col, derived
from learner import Label, snapshot
from learner.loop import ServiceLoop
from learner.metrics import Scores
from learner.models import compile_model
from tests.learner.late_arrivals import HOUR, OriginDelays, cut, plain, service, streams

MADE = service()
ROWS = streams(300, MADE)


def bits(loop):
    return snapshot.encode(loop.dump())


def run(loop, steps):
    return pl.concat([loop.step(*each) for each in steps])


def naively(made, predictions, labels):
    """The loop one row at a time, by its definition: probabilities, versions, counts, log loss."""
    model = compile_model(made.model, made.inputs)
    rows = [("p", r) for r in predictions.rows(named=True)] + [("l", r) for r in labels.rows(named=True)]
    waiting, batch, version, out, scores, clock = {}, [], 0, [], Scores(), 0
    for kind, row in sorted(rows, key=lambda each: each[1]["_step"]):
        clock = max(clock, row["_time"])
        waiting = {key: held for key, held in waiting.items() if held[0] + made.label.wait_ms >= clock}
        if kind == "p":
            x = np.array([[np.nan if row[name] is None else row[name] for name in made.inputs]])
            p = float(model.predict(x)[0])
            out.append((p, version))
            waiting.setdefault(row["id"], (row["_time"], x, p))
        elif row["value"] is not None and row["id"] in waiting and row["_time"] >= waiting[row["id"]][0]:
            _, x, p = waiting.pop(row["id"])
            scores.update(np.array([p]), np.array([row["value"]]))
            batch.append((x, row["value"]))
            if len(batch) == made.batch:
                model.learn(np.concatenate([x for x, _ in batch]), np.array([y for _, y in batch]))
                batch, version = [], version + 1
    return out, scores, model.digest()


def test_derived_features_of_the_event_alone_are_without_windows():
    far = derived(col("distance") > 500, name="distant")
    share = derived(col("distance") / col("origin_delays:delay_1h"), name="share")
    loop = ServiceLoop(service(features=[OriginDelays.delay_1h, share, far, "far"]))
    assert loop.without_windows.inputs == ("distant", "far")


def test_snapshot_of_another_derived_feature_of_the_same_name_is_refused():
    def made(limit):
        return service(features=["distance", derived(col("distance") > limit, name="distant")])

    kept = ServiceLoop(made(500)).dump()
    assert ServiceLoop.load(made(500), kept).model.inputs == ("distance", "distant")
    with pytest.raises(FormatError, match="another derived"):
        ServiceLoop.load(made(600), kept)


@pytest.mark.parametrize("model", [plain(), naive_bayes.GaussianNB(), tree.HoeffdingTreeClassifier(grace_period=20)])
@pytest.mark.parametrize("batch", [1, 16, 500])
def test_loop_equals_its_definition_row_by_row(model, batch):
    made = service(model=model, batch=batch)
    loop = ServiceLoop(made)
    answers, (expected, scores, digest) = loop.step(*ROWS), naively(made, *ROWS)
    assert list(zip(answers["probability"], answers["model_version"], strict=True)) == expected
    summary = loop.summary()
    assert (summary["log_loss"], summary["auc"], summary["labels_joined"]) == (
        scores.log_loss,
        scores.auc,
        scores.count,
    )
    assert summary["model_digest"] == digest


@settings(max_examples=30, deadline=None)
@given(edges=st.lists(st.integers(0, 560), max_size=8), restart=st.integers(0, 8))
def test_cutting_the_stream_and_restarting_changes_no_bit(edges, restart):
    whole, pieces = ServiceLoop(MADE), ServiceLoop(MADE)
    expected, answers = whole.step(*ROWS), []
    for at, each in enumerate(cut(*ROWS, edges)):
        if at == restart:
            pieces = ServiceLoop.load(MADE, snapshot.decode(bits(pieces), "memory"))
        answers.append(pieces.step(*each))
    assert pl.concat(answers).equals(expected)
    assert bits(pieces) == bits(whole)
    assert pieces.summary() == whole.summary()


def test_every_row_on_its_own_gives_the_same_bits():
    whole, single = ServiceLoop(MADE), ServiceLoop(MADE)
    expected = whole.step(*ROWS)
    assert run(single, cut(*ROWS, range(len(ROWS[0]) + len(ROWS[1])))).equals(expected)
    assert bits(single) == bits(whole)


def test_order_of_rows_in_the_frames_does_not_matter():
    one, two = ServiceLoop(MADE), ServiceLoop(MADE)
    one.step(*ROWS)
    answers = two.step(*(frame.sample(fraction=1.0, shuffle=True, seed=1) for frame in ROWS))
    assert bits(one) == bits(two)
    assert answers.select("_partition", "_offset").equals(ROWS[0].select("_partition", "_offset"))


def test_summary_accounts_for_every_prediction_and_label():
    loop = ServiceLoop(MADE)
    loop.step(*ROWS)
    s = loop.summary()
    assert s["predictions"] == s["labels_joined"] + s["labels_expired"] + s["labels_pending"]
    assert s["predictions"] + s["predictions_duplicate"] + s["predictions_without_id"] == len(ROWS[0])
    assert s["labels_joined"] + s["labels_unmatched"] + s["labels_null"] == len(ROWS[1])
    assert s["labels_held"] == 0
    assert all(s[name] > 0 for name in ("labels_expired", "labels_unmatched", "labels_null", "predictions_duplicate"))
    assert s["labels_learnt"] == s["model_version"] * MADE.batch > 0


def test_learning_beats_the_prior_and_windows_beat_their_absence():
    made = service(batch=64)
    loop = ServiceLoop(made)
    loop.step(*streams(6000, made))
    s = loop.summary()
    assert s["log_loss"] < s["log_loss_without_windows"] < s["log_loss_prior"]
    assert s["auc"] > s["auc_without_windows"]
    assert s["accuracy"] > s["accuracy_prior"]


def test_answers_have_the_columns_and_types_promised():
    answers = ServiceLoop(MADE).step(*ROWS)
    assert dict(answers.schema) == {
        "id": pl.String,
        "_partition": pl.Int32,
        "_offset": pl.Int64,
        "_time": pl.Int64,
        "probability": pl.Float64,
        "prediction": pl.Boolean,
        "prior": pl.Float64,
        "without_windows": pl.Float64,
        "model_version": pl.Int64,
    }
    first = answers.row(0, named=True)
    assert (first["probability"], first["prediction"], first["prior"], first["model_version"]) == (0.5, True, 0.5, 0)


def test_prior_is_the_smoothed_mean_of_the_labels_learnt():
    loop = ServiceLoop(service(batch=2))
    predictions, labels = frames([(i, f"f{i}", i, 1.0) for i in range(4)], [(4, "f0", 5, 1.0), (5, "f1", 5, 1.0)])
    loop.step(predictions, labels)
    answers = loop.step(*frames([(6, "f9", 9, 1.0)], []))
    assert answers["prior"].to_list() == [0.75]
    assert answers["model_version"].to_list() == [1]


def test_full_batch_is_learnt_before_the_next_prediction_and_not_after():
    loop = ServiceLoop(service(batch=1))
    asked = [(0, "a", 0, 1.0), (2, "b", 2, 1.0), (4, "c", 4, 1.0)]
    answers = loop.step(*frames(asked, [(1, "a", 1, 1.0), (3, "b", 3, 0.0)]))
    assert answers["model_version"].to_list() == [0, 1, 2]


def test_on_a_tie_the_prediction_goes_first():
    loop = ServiceLoop(MADE)
    loop.step(*frames([(0, "a", 0, 1.0)], [(0, "a", 0, 1.0)]))
    assert loop.summary()["labels_joined"] == 1


def test_null_and_odd_labels_and_rows_without_id_teach_nothing():
    loop = ServiceLoop(MADE)
    odd = [(9 + i, "a", 9, value) for i, value in enumerate([None, float("nan"), 0.5, 1e308, -1.0])]
    answers = loop.step(*frames([(0, "a", 0, 1.0), (1, None, 0, 1.0)], [*odd, (20, None, 9, 1.0)]))
    assert len(answers) == 2
    s = loop.summary()
    assert (s["labels_null"], s["labels_unmatched"], s["predictions_without_id"]) == (5, 1, 1)
    assert (s["labels_joined"], s["labels_pending"]) == (0, 1)


def test_service_without_event_columns_has_a_rival_that_knows_the_base_rate_only():
    made = service(features=[OriginDelays])
    loop = ServiceLoop(made)
    predictions, labels = ROWS
    loop.step(predictions, labels)
    assert loop.step(*frames([(9000, "z", 90 * HOUR, 1.0)], []))["without_windows"][0] != 0.5


def test_rows_below_the_positions_are_ignored():
    loop, again = ServiceLoop(MADE), ServiceLoop(MADE)
    for each in cut(*ROWS, [200]):
        loop.step(*each)
        loop.advance(ends(*each))
    for low, high in ((0, 200), (100, 300), (0, 1000)):  # each step delivers rows that are done with once more
        done = again.positions.copy()
        parts = [f.filter(pl.col("_step").is_between(low, high - 1)) for f in ROWS]
        answers = again.step(*parts)
        assert all(
            offset >= done.get(("departures", p), 0) for p, offset in answers.select("_partition", "_offset").rows()
        )
        again.advance(ends(*parts))
    assert bits(again) == bits(loop)


def test_positions_never_move_back():
    loop = ServiceLoop(MADE)
    loop.advance({("departures", 0): 7, ("arrivals", 1): 3})
    loop.advance({("departures", 0): 5})
    assert loop.positions == {("departures", 0): 7, ("arrivals", 1): 3}
    assert ServiceLoop.load(MADE, loop.dump()).positions == loop.positions


def test_empty_steps_do_nothing():
    loop = ServiceLoop(MADE)
    before = bits(loop)
    answers = loop.step(ROWS[0].clear(), ROWS[1].clear())
    assert answers.is_empty()
    assert bits(loop) == before


def test_what_was_served_is_what_is_scored():
    predictions, labels = ROWS
    rng = np.random.default_rng(3)
    served = predictions.with_columns(probability=pl.Series(rng.random(len(predictions))))
    own, told, pieces = ServiceLoop(MADE), ServiceLoop(MADE), ServiceLoop(MADE)
    expected, answers = own.step(*ROWS), told.step(served, labels)
    assert answers["probability"].equals(served.sort("_step")["probability"])
    assert answers["prediction"].equals(answers["probability"] >= 0.5)
    assert answers.drop("probability", "prediction").equals(expected.drop("probability", "prediction"))
    assert told.scores["model"].log_loss != own.scores["model"].log_loss
    for name in ("prior", "without_windows"):
        assert told.scores[name].log_loss == own.scores[name].log_loss
    assert told.model.digest() == own.model.digest()
    assert run(pieces, cut(served, labels, [90, 91, 400])).equals(answers)
    assert bits(pieces) == bits(told)


def test_what_the_model_would_have_said_can_be_served_and_changes_nothing():
    predictions, labels = ROWS
    own, told = ServiceLoop(MADE), ServiceLoop(MADE)
    answers = own.step(*ROWS)
    told.step(predictions.sort("_step").with_columns(answers["probability"]), labels)
    assert bits(told) == bits(own)


def test_what_was_not_answered_is_learnt_and_not_scored():
    predictions, labels = ROWS
    chances = pl.Series(np.random.default_rng(3).random(len(predictions)))
    served = predictions.with_columns(probability=pl.when(pl.col("_step") % 3 > 0).then(chances))
    all_answered, whole, pieces = ServiceLoop(MADE), ServiceLoop(MADE), ServiceLoop(MADE)
    all_answered.step(served.with_columns(pl.col("probability").fill_null(0.5)), labels)
    expected, answers = whole.step(served, labels), []
    for each in cut(served, labels, [90, 91, 400]):
        answers.append(pieces.step(*each))
        pieces = ServiceLoop.load(MADE, snapshot.decode(bits(pieces), "memory"))
    assert pl.concat(answers).equals(expected)
    assert bits(pieces) == bits(whole)
    assert expected["probability"].equals(served.sort("_step")["probability"])
    assert expected["prediction"].is_null().equals(expected["probability"].is_null())
    assert whole.model.digest() == all_answered.model.digest()
    summary, counts = whole.summary(), {scores.count for scores in whole.scores.values()}
    assert 0 < summary["labels_unscored"] < summary["labels_joined"]
    assert counts == {summary["labels_joined"] - summary["labels_unscored"]}


@pytest.mark.parametrize("odd", [float("nan"), -0.1, 1.1])
def test_served_probability_that_is_none_is_refused(odd):
    with pytest.raises(DataError, match="'probability' must hold numbers from 0 to 1"):
        ServiceLoop(MADE).step(ROWS[0].with_columns(probability=pl.lit(odd, pl.Float64)), ROWS[1])


def test_input_named_probability_is_an_input():
    source = Source("bets", {"id": str, "probability": float, "at": "timestamp[ms]"}, event_time="at", key="id")
    loop = ServiceLoop(service(on=source, id="id", features=["probability"]))
    row = {"_step": 0, "_partition": 0, "_offset": 0, "_time": 1, "id": "a", "probability": 3.0}
    assert loop.step(pl.DataFrame([row]), ROWS[1].clear())["probability"].to_list() == [0.5]


@settings(max_examples=20, deadline=None)
@given(edges=st.lists(st.integers(0, 560), max_size=6), restart=st.integers(0, 6))
def test_labels_held_for_their_predictions_teach_when_those_come(edges, restart):
    predictions, labels = ROWS  # every label comes before its prediction
    predictions = predictions.with_columns(pl.col("_step") + 1_000_000)
    whole, pieces = ServiceLoop(MADE, hold=True), ServiceLoop(MADE, hold=True)
    answers = whole.step(predictions, labels)
    s = whole.summary()
    assert s["labels_joined"] > 0
    assert s["model_version"] == s["labels_joined"] // MADE.batch == answers["model_version"].max()
    assert s["labels_joined"] + s["labels_unmatched"] + s["labels_held"] + s["labels_null"] == len(labels)
    assert s["predictions"] == s["labels_joined"] + s["labels_expired"] + s["labels_pending"]
    edges = [edge if edge < 280 else edge + 1_000_000 for edge in edges]
    for at, each in enumerate([*cut(predictions, labels, edges), (predictions, labels.clear())]):
        if at == restart:
            pieces = ServiceLoop.load(MADE, snapshot.decode(bits(pieces), "memory"), hold=True)
        pieces.step(*(frame.filter(pl.col("_step") > last_step(pieces)) for frame in each))
        pieces.advance({("seen", 0): max([last_step(pieces), *each[0]["_step"], *each[1]["_step"]])})
    assert pieces.summary() == s


def last_step(loop):
    return loop.positions.get(("seen", 0), -1)


def test_rows_that_lack_a_column_are_refused():
    with pytest.raises(DataError, match=r"late_arrival.*'departures' lack distance, far"):
        ServiceLoop(MADE).step(ROWS[0].drop("distance", "far"), ROWS[1])
    with pytest.raises(DataError, match="'arrivals' lack value"):
        ServiceLoop(MADE).step(ROWS[0], ROWS[1].drop("value"))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"batch": 17}, "another batch"),
        ({"features": ["distance"]}, "another features, inputs"),
        ({"label": Label(MADE.label.source, "flight", col("delay") > 30, "36h")}, "another label"),
        ({"label": Label(MADE.label.source, "flight", col("delay") > 15, "35h")}, "another wait"),
        ({"model": plain(l2=0.1)}, "another model"),
        ({"model": naive_bayes.GaussianNB()}, "another model"),
    ],
)
def test_snapshot_of_another_definition_is_refused(changes, what):
    loop = ServiceLoop(MADE)
    loop.step(*ROWS)
    with pytest.raises(FormatError, match=f"was made with {what}: restore"):
        ServiceLoop.load(service(**changes), loop.dump())


def test_models_of_river_are_restored_too():
    made = service(model=naive_bayes.GaussianNB(), batch=8)
    whole, pieces = ServiceLoop(made), ServiceLoop(made)
    expected = whole.step(*ROWS)
    first, second = cut(*ROWS, [250])
    answers = [pieces.step(*first)]
    pieces = ServiceLoop.load(made, snapshot.decode(bits(pieces), "memory"))
    answers.append(pieces.step(*second))
    assert pl.concat(answers).equals(expected)
    assert pieces.summary() == whole.summary()


def ends(predictions, labels):
    """Next offsets after these rows."""
    return {
        (topic, partition): offset + 1
        for topic, frame in (("departures", predictions), ("arrivals", labels))
        for partition, offset in frame.group_by("_partition").agg(pl.col("_offset").max()).rows()
    }


def frames(predictions, labels):
    """Frames of (step, id, time, every input) and (step, id, time, value)."""
    common = {"_step": pl.Int64, "id": pl.String, "_time": pl.Int64}
    asked = pl.DataFrame(predictions, schema=common | {"x": pl.Float64}, orient="row")
    told = pl.DataFrame(labels, schema=common | {"value": pl.Float64}, orient="row")
    asked = asked.select(pl.exclude("x"), *(pl.col("x").alias(name) for name in MADE.inputs))
    place = (pl.lit(0, pl.Int32).alias("_partition"), pl.col("_step").alias("_offset"))
    return asked.with_columns(*place), told.with_columns(*place)
