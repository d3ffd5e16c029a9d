"""Texts in states: codes that never change, each text once, and nothing that lacks one is taken."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import CountBy, Distinct, FirstN, Histogram, Last, LastN, last, session
from featurestore.engine import words_of
from featurestore.errors import FormatError
from featurestore.kernel import lexicon
from featurestore.texts import MAX_TEXT, Texts, code_of, read_texts
from tests.featurestore.helpers import (
    NOON,
    bits,
    callable_part,
    do,
    event,
    made,
    numbered,
    read,
    restored,
    state_of,
    stored,
    within,
)

number_of = callable_part(lexicon.number_of)

VIEW = {"by": CountBy("s", bound=2), "first": FirstN("s", n=2), "last": Last("s")}


def texts_of(blob, runs):
    """The texts behind a state's runs, which end `runs` words before its end."""
    return read_texts(words_of(blob)[-runs:])


@pytest.fixture(scope="module")
def state():
    made_of = state_of(made(VIEW, windows=["lifetime"]))
    do(made_of, numbered(event(NOON + n, s=s) for n, s in enumerate(["grocery", "\u20ac", "grocery", "books"])))
    return made_of


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 6_510_301_506_637_419_378),
        ("grocery", 8_136_703_029_914_259_941),
        ("\u20ac", 4_800_917_392_699_360_738),
        ("a\0b", 5_898_916_173_540_024_575),
    ],
)
def test_codes_are_the_same_for_ever(text, code):
    assert code_of(text) == code


@given(st.lists(st.text(max_size=MAX_TEXT), max_size=30))
def test_a_text_is_known_by_its_code_and_an_unknown_code_has_none(texts):
    known = Texts()
    codes = known.codes(texts)
    assert codes.tolist() == [code_of(text) for text in texts]
    assert known.codes(reversed(texts)).tolist() == codes.tolist()[::-1]
    assert known.texts(codes).to_pylist() == texts
    assert known.texts(np.array([0, 1, -1])).to_pylist() == [None, None, None]


def test_a_lexicon_grows_and_keeps_the_numbers_of_its_texts():
    known, texts = Texts(), [f"{'x' * (n % 99)}{n}" for n in range(5_000)]
    codes = known.codes(texts)
    assert len(known.lexicon.codes) > 5_000
    assert [number_of(known.lexicon, code) for code in codes.tolist()] == list(range(5_000))
    assert number_of(known.lexicon, 12_345) == -1
    for text, (begin, end) in zip(texts, pairwise(known.lexicon.ends[:5_001].tolist()), strict=True):
        assert known.lexicon.text[begin:end].tobytes() == text.encode()


def test_a_state_holds_each_of_its_texts_once_and_no_other(state):
    (blob,) = state.blobs(0).values()
    runs = sum(2 for _ in ("grocery", "\u20ac", "books"))  # a length and a word each
    assert sorted(texts_of(blob, runs)) == ["books", "grocery", "\u20ac"]
    assert all(blob.count(text.encode()) == 1 for text in ("books", "grocery", "\u20ac"))


def test_a_text_that_was_let_go_is_not_stored_any_more():
    state = state_of(made({"by": CountBy("s")}, windows=["5s"]))
    do(state, numbered([event(NOON, s="long ago"), event(NOON + 60_000, s="now")]))
    (blob,) = state.blobs(0).values()
    assert b"now" in blob
    assert b"long ago" not in blob


def test_a_long_run_forgets_the_texts_that_no_state_names(monkeypatch):
    monkeypatch.setattr("featurestore.texts.CROWD", 50)
    state = state_of(made({"who": LastN("s", n=2), "by": CountBy("s", bound=3)}, windows=["5s", last(2)]))
    for n in range(400):
        do(state, [event(NOON + 1_000 * n, offset=n, s=f"visitor {n}")])
        state.take_changes()
    assert np.count_nonzero(state.texts.lexicon.codes) < 100
    assert read(state)["who_5s"] == ["visitor 398", "visitor 399"]
    assert stored(restored(state)) == stored(state)


def test_two_processes_read_the_same_texts_and_store_the_same_bytes(state):
    one, other = restored(state), restored(state)
    assert read(one) == read(other) == read(state)
    work = [event(NOON + 9, s=s, offset=9 + n) for n, s in enumerate(["books", "new", "new"])]
    other.texts.codes(["known to one of them", "only"])
    assert bits(one, work) == bits(other, work)
    assert stored(one) == stored(other)
    assert read(one)["last_lifetime"] == "new"


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: blob[:-16],  # a text is missing
        lambda blob: blob[:-8],  # or half of one
        lambda blob: blob.replace(b"grocery", b"grocerx"),
        lambda blob: blob.replace(b"books", b"bo\xffks"),
        lambda blob: blob + (-1).to_bytes(8, "little", signed=True),
        lambda blob: blob + (10**9).to_bytes(8, "little"),
    ],
)
def test_a_state_whose_texts_are_missing_or_damaged_is_refused(state, damage):
    (blob,) = state.blobs(0).values()
    fresh = state_of(state.plan.view)
    fresh.number([b"sa"])
    with pytest.raises(FormatError, match="rebuild"):
        fresh.load(0, 0, within(blob, damage))
    assert fresh.blobs(0) == {}
    fresh.load(0, 0, blob)
    assert fresh.blobs(0) == {b"sa": blob}


MIXED = {**VIEW, "n": Distinct("s", bound=2), "edges": Histogram("x", edges=[0.0, 1.0])}


@pytest.fixture(scope="module")
def mixed():
    made_of = state_of(made(MIXED, windows=["5s", "lifetime", session("2s")]))
    rows = enumerate(["p", "q", "r", "s", "t", "p"])
    do(made_of, numbered(event(NOON + 400 * n, s=s, x=n / 3) for n, s in rows))
    (blob,) = made_of.blobs(0).values()
    return made_of.plan, words_of(blob)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**4), st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 300) | st.just(-(2**63) + 5)
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 3),
)
def test_no_change_to_a_state_with_texts_breaks_loading_or_reading(mixed, changes, cut):
    plan, good = mixed
    words = good.copy()
    for place, word in changes:
        words[place % len(words)] = word
    state = state_of(plan.view)
    state.number([b"sa"])
    try:
        state.load(0, 0, words[: len(words) - cut].tobytes())
    except FormatError:
        assert state.blobs(0) == {}
        return
    do(state, [(("a",), NOON + 3_000), event(NOON + 2_900, s="p", x=0.5, offset=2**40)])
    for blob in state.blobs(0).values():
        again = state_of(plan.view)
        again.number([b"sa"])
        again.load(0, 0, blob)
        assert again.blobs(0) == {b"sa": blob}
