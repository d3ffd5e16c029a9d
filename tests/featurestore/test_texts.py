"""Texts as codes: known once, told apart, forgotten when no state names them."""

from __future__ import annotations

import numpy as np
import pytest

from featurestore import CountBy, LastN, last
from featurestore.texts import Texts, code_of
from tests.featurestore.helpers import NOON, do, event, made, numbered, read, restored, state_of, stored


def test_texts_come_back_from_their_codes_in_any_order():
    texts = Texts()
    words = [f"text {n}" * (n % 5) for n in range(3_000)]
    codes = texts.codes(words)
    assert texts.texts(codes[::-1]).to_pylist() == words[::-1]
    assert texts.codes(words).tolist() == codes.tolist()
    assert texts.texts(np.array([0, 12345, codes[7]])).to_pylist() == [None, None, words[7]]


def test_codes_are_the_same_everywhere_and_for_ever():
    assert [code_of(text) for text in ("", "grocery", "€")] == [
        6510301506637419378,
        8136703029914259941,
        4800917392699360738,
    ]


def test_a_long_run_forgets_the_texts_that_no_state_names(monkeypatch):
    monkeypatch.setattr("featurestore.texts.CROWD", 50)
    state = state_of(made({"who": LastN("s", n=2), "by": CountBy("s", bound=3)}, windows=["5s", last(2)]))
    for n in range(400):
        do(state, [event(NOON + 1_000 * n, offset=n, s=f"visitor {n}")])
        state.take_changes()
    assert len(state.texts.texts(state.texts.lexicon.codes[:1])) == 1
    assert int(np.count_nonzero(state.texts.lexicon.codes)) < 300
    assert read(state)["who_5s"] == ["visitor 398", "visitor 399"]
    assert stored(restored(state)) == stored(state)


@pytest.mark.parametrize("text", ["", "a", "x" * 255 + "€", "€" * 300])
def test_any_text_survives_being_stored(text):
    state = state_of(made({"who": LastN("s", n=1)}, windows=["5s"]))
    do(state, numbered([event(NOON, s=text)]))
    assert read(restored(state)) == {"who_5s": [text[:256]]}
