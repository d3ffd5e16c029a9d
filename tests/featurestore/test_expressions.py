"""Expressions in definitions: row-wise, typed, and told apart by a text."""

from __future__ import annotations

import polars as pl
import pytest

from featurestore import DefinitionError, col
from featurestore.expressions import TYPES, canonical_text, checked_type, closest, evaluated

COLUMNS = {"amount": "float", "card": "str", "n": "int", "ok": "bool", "at": "timestamp[ms]"}


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        (col("amount") * 2, "float"),
        (col("amount").round(2), "float"),
        (col("n") + 1, "int"),
        (col("at") - 1_000, "int"),
        (col("card").str.len_chars(), "int"),
        (col("card") == "x", "bool"),
        (col("card").is_in(["x", "y"]), "bool"),
        (col("amount").is_between(1, 2), "bool"),
        (col("card") + "-" + col("n").cast(pl.String), "str"),
        (pl.when(col("n") > 1).then(col("amount")).otherwise(None), "float"),
        (pl.max_horizontal("n", "amount"), "float"),
        (col("at").cast(pl.Datetime("ms")).dt.hour(), "int"),
        (pl.lit(value=True), "bool"),
        (pl.lit(1.5), "float"),
    ],
)
def test_row_wise_expressions_have_a_type(expression, kind):
    assert checked_type(expression, COLUMNS, "View V") == kind


@pytest.mark.parametrize(
    "expression",
    [
        col("amount").mean(),
        col("amount") - col("amount").mean(),
        col("amount").shift(),
        col("amount").diff(),
        col("amount").cum_sum(),
        col("amount").rolling_mean(2),
        col("amount").rank(),
        col("amount").sort(),
        col("amount").forward_fill(),
        col("amount").fill_null(strategy="backward"),
        col("amount").interpolate(),
        col("amount").drop_nulls(),
        col("amount").sum().over("card"),
        col("amount").mean().over("card"),
        col("card").is_duplicated(),
        col("card").is_unique(),
        col("card").is_first_distinct(),
        col("ok").any(),
        col("card").first(),
        pl.len(),
        pl.int_range(pl.len()),
    ],
    ids=str,
)
def test_an_expression_that_looks_at_other_rows_is_refused(expression):
    with pytest.raises(
        DefinitionError, match=r"^View V, feature 'x': the expression .* more than its own row; use row-wise"
    ):
        checked_type(expression, COLUMNS, "View V, feature 'x'")


def test_an_unknown_column_is_named_with_the_nearest_one():
    with pytest.raises(DefinitionError, match="View V: there is no column 'amout'; did you mean 'amount'"):
        checked_type(col("amout") > 1, COLUMNS, "View V")


def test_an_expression_that_cannot_run_says_why():
    with pytest.raises(DefinitionError, match=r"View V: the expression .* does not work: "):
        checked_type(col("card").str.to_integer(), COLUMNS, "View V")


@pytest.mark.parametrize(
    "expression", [col("at").cast(pl.Datetime), pl.concat_list("n"), col("card").hash(), pl.lit(None)]
)
def test_a_type_that_no_column_can_have_is_refused(expression):
    with pytest.raises(DefinitionError, match=r"gives .*; cast it to a number, a bool or a string"):
        checked_type(expression, COLUMNS, "View V")


@pytest.mark.parametrize("other", ["amount > 1", 1, None, True])
def test_what_is_no_expression_is_refused(other):
    with pytest.raises(DefinitionError, match=r"View V: .* is no expression; write one such as col"):
        checked_type(other, COLUMNS, "View V")


@pytest.mark.parametrize(
    "expression", [col("n").map_elements(hash, return_dtype=pl.Int64), col("n").map_batches(lambda n: n)]
)
def test_an_expression_that_calls_python_is_refused(expression):
    with pytest.raises(DefinitionError, match=r"View V: the expression .* calls Python; use Polars' own functions"):
        checked_type(expression, COLUMNS, "View V")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (col("amount").round(2), col("amount").round(3)),
        (col("n").is_in(list(range(100))), col("n").is_in([*range(50), *range(51, 101)])),
        (col("n") == 1, col("card") == "1"),
        (col("n") == 1, col("n") == 1.0),
        (col("card").str.contains("a"), col("card").str.contains("b")),
        (col("card").str.slice(0, 2), col("card").str.slice(0, 3)),
        (col("n").cast(pl.Int32), col("n").cast(pl.Int64)),
    ],
    ids=str,
)
def test_expressions_that_differ_anywhere_have_different_texts(one, other):
    assert canonical_text(one) != canonical_text(other)


def test_the_same_expression_written_twice_has_one_text():
    assert canonical_text(col("card").is_in(["x", "y"])) == canonical_text(col("card").is_in(["x", "y"]))
    assert canonical_text(None) is None


def test_columns_are_evaluated_in_order_and_cast_to_their_types():
    frame = pl.DataFrame({"n": [1, 2, None]})
    made = evaluated(frame, {"m": (col("n").cast(pl.Int8) * 2, "int"), "r": (col("m") / 4, "float")})
    assert made.rows() == [(1, 2, 0.5), (2, 4, 1.0), (None, None, None)]
    assert made.schema["m"] == TYPES["int"]


def test_a_hint_names_the_nearest_or_all():
    assert closest("amout", ["amount", "card"]) == "did you mean 'amount'?"
    assert closest("zzz", ["b", "a"]) == "there are a, b"
    assert closest("zzz", []) == "there are none"
