import threading
from concurrent.futures import wait

import polars as pl
import pytest

from serving.punctual import Punctual

ROWS = pl.DataFrame({"x": range(1_000)})
NULLS = [None] * len(ROWS)


def answered(rows):
    chances = pl.col("x").cast(pl.Float64) / 1_000
    version = pl.lit(7, pl.Int64).alias("model_version")
    return rows.select(chances.alias("probability"), (chances >= 0.5).alias("prediction"), version)


def ask(model):
    return model.answers(ROWS)["probability"].to_list()


def ended(model):
    """Wait until what was asked last has come to an end."""
    wait([model._call.ended])


def test_a_model_that_answers_in_time_says_what_it_says_without_a_limit():
    assert Punctual(answered, 60).answers(ROWS).equals(answered(ROWS))


def test_a_slow_model_is_asked_again_once_it_is_free_and_what_it_said_too_late_is_gone():
    gate, asked = threading.Event(), []

    def slow(rows):
        asked.append(len(rows))
        gate.wait()
        return answered(rows)

    model = Punctual(slow, 0.02)
    assert ask(model) == NULLS
    assert ask(model) == NULLS  # at once
    assert asked == [256]
    gate.set()
    ended(model)
    assert asked == [256]  # the other rows need no answer any more
    model._seconds = 60
    assert ask(model) == answered(ROWS)["probability"].to_list()


def test_rows_that_were_answered_in_time_keep_their_answers():
    gate, pieces = threading.Event(), []

    def slower(rows):
        pieces.append(rows)
        if len(pieces) == 3:
            gate.wait()
        return answered(rows)

    model = Punctual(slower, 1)
    assert ask(model) == answered(ROWS)["probability"].to_list()[:512] + [None] * 488
    gate.set()


def test_a_model_that_is_stuck_from_the_beginning_is_not_waited_for_either(monkeypatch):
    monkeypatch.setattr("serving.punctual._FIRST_SECONDS", 0.02)
    gate = threading.Event()
    model = Punctual(lambda rows: gate.wait() and answered(rows), 60)
    model.warm(ROWS[:1])
    assert ask(model) == NULLS
    gate.set()
    ended(model)
    assert ask(model) == answered(ROWS)["probability"].to_list()


def test_types_are_the_same_with_and_without_answers():
    gate = threading.Event()
    model = Punctual(lambda _: gate.wait(), 0)
    assert model.answers(ROWS).schema == answered(ROWS).schema
    gate.set()


@pytest.mark.parametrize("late", [False, True])
def test_a_model_that_fails_is_told_of_even_when_it_fails_too_late(late):
    gate = threading.Event()

    def failing(_):
        gate.wait()
        raise ZeroDivisionError

    model = Punctual(failing, 0 if late else 60)
    if late:
        assert ask(model) == NULLS
    gate.set()
    if late:
        ended(model)
    with pytest.raises(ZeroDivisionError):
        model.answers(ROWS)
