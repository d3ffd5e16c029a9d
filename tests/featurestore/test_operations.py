"""Operations against plain Python, and over what is known of the past."""

from __future__ import annotations

import math
import subprocess
import sys
from operator import itemgetter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.backfill import at_rows
from featurestore import (
    DefinitionError,
    Entity,
    Last,
    Max,
    Mean,
    Min,
    Source,
    Std,
    Sum,
    bucketize,
    col,
    cross,
    derived,
    feature_hash,
    impute,
    min_max_scale,
    one_hot,
    oracle,
    standard_scale,
    target_encode,
    view,
)
from featurestore.expressions import TYPES, canonical_text, checked_type
from featurestore.frames import checked_events

NUMBERS = st.none() | st.floats(width=64) | st.integers(-1000, 1000).map(float)
WHOLE = st.none() | st.integers(-(2**63), 2**63 - 1)
TEXTS = st.none() | st.text() | st.sampled_from(["web", "shop", "|", "\\", "\\|", ""])
COLUMNS = {"x": "float", "y": "float", "z": "float", "i": "int", "b": "bool", "s": "str", "t": "str"}


def column(kind, values):
    return pl.Series("v", values, TYPES[kind])


def computed(expression, **columns):
    """The expression over columns of (kind, values), as a list."""
    frame = pl.DataFrame({name: column(*given).alias(name) for name, given in columns.items()})
    return frame.select(expression.alias("value"))["value"].to_list()


def known(value):
    """A number as a float; None for null and NaN."""
    return None if value is None or math.isnan(value) else float(value)


def same(got, wanted):
    """Equal to the bit, where NaN is NaN."""
    return [*map(repr, got)] == [*map(repr, wanted)]


# --- numbers ----------------------------------------------------------------------------------------------------------

ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1)


def asked(expression, rows):
    x, y, z = zip(*rows, strict=True)
    return computed(expression, x=("float", x), y=("float", y), z=("float", z))


@given(ROWS)
def test_impute_takes_the_first_that_is_there_and_says_what_was_missing(rows):
    made = impute(col("x"), col("y"), 7)
    assert list(made) == ["", "missing"]
    firsts = [next((v for v in map(known, (x, y)) if v is not None), 7.0) for x, y, _ in rows]
    assert same(asked(made[""], rows), firsts)
    assert asked(made["missing"], rows) == [known(x) is None for x, _, _ in rows]


def over(number, divisor):
    return None if number is None or divisor is None or not divisor > 0 else known(number / divisor)


def less(x, y):
    return None if known(x) is None or known(y) is None else x - y


@given(ROWS)
def test_scaling_is_what_its_formula_says_and_null_without_a_spread(rows):
    wanted = [over(less(x, y), less(z, y)) for x, y, z in rows]
    assert same(asked(min_max_scale(col("x"), col("y"), col("z")), rows), wanted)
    wanted = [over(less(x, y), known(z)) for x, y, z in rows]
    assert same(asked(standard_scale(col("x"), col("y"), col("z")), rows), wanted)


def test_without_a_spread_or_before_there_is_one_nothing_is_scaled():
    rows = [(5.0, 5.0, 5.0), (5.0, 7.0, 5.0), (5.0, None, None)]
    assert asked(min_max_scale(col("x"), col("y"), col("z")), rows) == [None, None, None]
    assert computed(standard_scale(col("x"), 1, col("y")), x=("float", [5.0] * 3), y=("float", [0.0, None, 2.0])) == [
        None,
        None,
        2.0,
    ]


@given(st.lists(NUMBERS, min_size=1), st.lists(st.floats(-1e9, 1e9), min_size=1, unique=True).map(sorted))
def test_a_bucket_is_how_many_edges_are_not_above_the_number(values, edges):
    wanted = [None if known(v) is None else sum(edge <= v for edge in edges) for v in values]
    assert computed(bucketize(col("x"), edges), x=("float", values)) == wanted


def test_an_edge_begins_its_bucket():
    assert computed(bucketize(col("i"), [10, 100]), i=("int", [9, 10, 99, 100, None])) == [0, 1, 1, 2, None]
    assert computed(bucketize(col("b"), [1]), b=("bool", [False, True, None])) == [0, 1, None]


@given(ROWS, st.floats(0.001, 1e6))
def test_target_encoding_is_what_its_formula_says(rows, weight):
    encoded = target_encode(col("x"), col("y"), prior=col("z"), weight=weight)
    totals = [(known(x) or 0.0, known(y) or 0.0, known(z)) for x, y, z in rows]
    wanted = [None if z is None else over(x + weight * z, y + weight) for x, y, z in totals]
    assert same(asked(encoded, rows), wanted)


# --- categories -------------------------------------------------------------------------------------------------------


@given(st.lists(TEXTS, min_size=1))
def test_one_hot_is_true_for_the_one_category(values):
    made = one_hot(col("s"), {"web": "web", "pipe": "|", "none": ""})
    assert list(made) == ["web", "pipe", "none", "other"]
    for part, category in (("web", "web"), ("pipe", "|"), ("none", "")):
        assert computed(made[part], s=("str", values)) == [value == category for value in values]
    others = [value is not None and value not in ("web", "|", "") for value in values]
    assert computed(made["other"], s=("str", values)) == others


def test_one_hot_of_whole_numbers_and_of_bools_is_named_after_them():
    numbers, bools = one_hot(col("i"), [1, 20]), one_hot(col("b"), [True, False])
    assert (list(numbers), list(bools)) == (["1", "20", "other"], ["true", "false", "other"])
    assert computed(numbers["20"], i=("int", [1, 20, 3, None])) == [False, True, False, False]
    assert computed(numbers["other"], i=("int", [1, 20, 3, None])) == [False, False, True, False]
    assert computed(bools["false"], b=("bool", [True, False, None])) == [False, True, False]


def escaped(text):
    return text.replace("\\", "\\\\").replace("|", "\\|")


@given(st.lists(st.tuples(TEXTS, TEXTS, WHOLE), min_size=1))
def test_a_cross_is_the_texts_together_and_null_where_one_is(rows):
    s, t, i = zip(*rows, strict=True)
    wanted = [None if None in row else "|".join([escaped(row[0]), escaped(row[1]), str(row[2])]) for row in rows]
    crossed = cross(col("s"), col("t"), col("i"))
    assert computed(crossed, s=("str", s), t=("str", t), i=("int", i)) == wanted


@given(st.lists(st.tuples(st.text("a|\\", max_size=4), st.text("a|\\", max_size=4)), min_size=2))
def test_two_crosses_are_equal_only_where_all_parts_are(rows):
    s, t = zip(*rows, strict=True)
    crossed = computed(cross(col("s"), col("t")), s=("str", s), t=("str", t))
    assert len(set(crossed)) == len(set(rows))


def hashed(text, buckets):
    """feature_hash in plain Python."""
    code = sum(pow(256 * i + byte, 5, 2**31 - 1) for i, byte in enumerate(text.encode(), 1))
    return code % buckets


@given(st.lists(TEXTS, min_size=1), st.integers(2, 1 << 24))
def test_a_hash_is_what_its_formula_says(values, buckets):
    wanted = [None if value is None else hashed(value, buckets) for value in values]
    assert computed(feature_hash(col("s"), buckets), s=("str", values)) == wanted


@given(st.lists(WHOLE, min_size=1))
def test_whole_numbers_and_bools_are_hashed_as_text(values):
    wanted = [None if value is None else hashed(str(value), 97) for value in values]
    assert computed(feature_hash(col("i"), 97), i=("int", values)) == wanted
    wanted = [hashed("true", 97), hashed("false", 97), None]
    assert computed(feature_hash(col("b"), 97), b=("bool", [True, False, None])) == wanted


def test_a_hash_is_what_it_always_was():
    """Models have learnt these: whatever changes one of them breaks every model that hashes."""
    texts = ["", "a", "web", "shop", "merchant-1", "merchant-2", "héllo", "2147483647", "true", "x" * 300]
    golden = [0, 129241, 266739, 800314, 134191, 214039, 530459, 55444, 380113, 894880]
    assert computed(feature_hash(col("s"), 1 << 20), s=("str", texts)) == golden


def test_hashes_spread_over_the_buckets():
    count, buckets = 20_000, 100
    texts = [f"merchant-{i}" for i in range(count)]
    found = pl.Series(computed(feature_hash(col("s"), buckets), s=("str", texts))).value_counts()["count"]
    assert len(found) == buckets
    assert 0.5 * count / buckets < found.min() <= found.max() < 1.5 * count / buckets


PRINT = """
import polars as pl
from featurestore import col, feature_hash, one_hot
from featurestore.expressions import canonical_text
made = [feature_hash(col("s"), 1000), one_hot(col("s"), ["web", "shop"])["other"]]
print([canonical_text(each) for each in made], pl.DataFrame({"s": ["web"]}).select(made[0]).item())
"""


def test_other_processes_have_the_same_hashes_and_the_same_definitions():
    command = [sys.executable, "-c", PRINT]
    one, two = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    made = [feature_hash(col("s"), 1000), one_hot(col("s"), ["web", "shop"])["other"]]
    assert one == two == f"{[canonical_text(each) for each in made]} {hashed('web', 1000)}\n"


# --- definitions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (impute(col("i"), col("x"), 0)[""], "float"),
        (impute(col("b"), 0)["missing"], "bool"),
        (min_max_scale(col("i"), 0, col("x")), "float"),
        (standard_scale(col("b"), col("i"), col("x")), "float"),
        (bucketize(col("i"), [1, 2]), "int"),
        (one_hot(col("s"), ["a"])["a"], "bool"),
        (one_hot(bucketize(col("x"), [0]), [0, 1])["other"], "bool"),
        (cross(col("s"), col("i"), col("b")), "str"),
        (feature_hash(cross(col("s"), col("i")), 8), "int"),
        (target_encode(col("i"), col("i"), prior=col("x"), weight=1), "float"),
    ],
)
def test_operations_are_row_wise_and_say_their_type(made, kind):
    assert checked_type(made, COLUMNS, "here") == kind


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: impute(col("x")), "impute: say what stands for a missing value"),
        (lambda: impute(col("x"), math.nan), "must be a finite number, not nan"),
        (lambda: impute("x", 0), r"such as col\(...\), must be a finite number, not 'x'"),
        (lambda: impute(col("x"), "none"), "must be a finite number, not 'none'"),
        (lambda: min_max_scale(col("x"), 0, math.inf), "min_max_scale: .* not inf"),
        (lambda: standard_scale(col("x"), 0, True), "standard_scale: .* not True"),
        (lambda: bucketize(col("x"), []), "bucketize: edges is a list of at least one number"),
        (lambda: bucketize(col("x"), 5), "bucketize: edges is a list"),
        (lambda: bucketize(col("x"), [2, 1]), r"bucketize: the edges \[2, 1\] must ascend"),
        (lambda: bucketize(col("x"), [1, 1]), "must ascend"),
        (lambda: bucketize(col("x"), [1, math.nan]), "an edge must be a finite number, not nan"),
        (lambda: one_hot(col("s"), []), "one_hot: categories is a list of at least one"),
        (lambda: one_hot(col("s"), "web"), "one_hot: categories is a list"),
        (lambda: one_hot(col("s"), 5), "one_hot: categories is a list"),
        (lambda: one_hot(col("s"), ["web", "web"]), "more than once"),
        (lambda: one_hot(col("s"), {"a": "web", "b": "web"}), "more than once"),
        (lambda: one_hot(col("s"), ["web", 1]), "of several types"),
        (lambda: one_hot(col("s"), [1, True]), "of several types"),
        (lambda: one_hot(col("x"), [0.5]), "0.5 is no category"),
        (lambda: one_hot(col("s"), ["New York"]), "'New York' cannot be part of a name; .* mapping"),
        (lambda: one_hot(col("s"), ["other"]), "'other' cannot be part of a name"),
        (lambda: one_hot(col("i"), [-1]), "'-1' cannot be part of a name"),
        (lambda: one_hot("s", ["web"]), r"one_hot: 's' is no expression; a column is written col\('s'\)"),
        (lambda: cross(col("s"), "t"), "cross: 't' is no expression"),
        (lambda: feature_hash("s", 8), "feature_hash: 's' is no expression"),
        (lambda: feature_hash(col("s"), 1), "feature_hash: buckets is a whole number from 2 to 16,777,216, not 1"),
        (lambda: feature_hash(col("s"), 8.0), "not 8.0"),
        (lambda: feature_hash(col("s"), True), "not True"),
        (lambda: target_encode(col("i"), col("i"), prior=0.5, weight=0), "weight .* above 0, not 0"),
        (lambda: target_encode(col("i"), col("i"), prior="x", weight=1), "must be a finite number, not 'x'"),
    ],
)
def test_an_operation_that_cannot_work_says_why(make, message):
    with pytest.raises(DefinitionError, match=message):
        make()


@pytest.mark.parametrize(
    "made",
    [
        impute(col("s"), 0)[""],
        impute(col("x"), col("s"))[""],
        min_max_scale(col("s"), 0, 1),
        standard_scale(col("x"), 0, col("s")),
        bucketize(col("s"), [1]),
        one_hot(col("s"), [1])["1"],
        one_hot(col("b"), ["true"])["true"],
        one_hot(col("i"), [True])["other"],
        one_hot(col("x"), [1])["1"],
        target_encode(col("s"), col("i"), prior=0, weight=1),
    ],
)
def test_a_column_of_the_wrong_type_is_told_when_the_definition_is_loaded(made):
    with pytest.raises(DefinitionError, match=r"^here: the expression .* does not work: "):
        checked_type(made, COLUMNS, "here")


SECOND = 1_000
sales = Source(
    "sales",
    schema={"shop": str, "channel": str, "amount": float, "at": "timestamp[ms]"},
    event_time="at",
    key="shop",
    derive={
        "all": pl.lit(1),
        "channel_is": one_hot(col("channel"), ["web", "till"]),
        "place": cross(col("shop"), col("channel")),
        "place_hash": feature_hash(col("place"), 64),
    },
)


@view(entity=Entity("shop", key="shop"), source=sales, windows=["lifetime"])
class Shops:
    web = Sum("channel_is_web")
    least, most = Min("amount"), Max("amount")
    mean, std = Mean("amount"), Std("amount")
    last = Last("amount")
    recent = Mean("amount", windows=["2s"])
    level = derived(impute(col("recent_2s"), col("last_lifetime"), 0))
    size = derived(one_hot(bucketize(col("level"), [10, 20]), {"small": 0, "large": 2}))
    scaled = derived(min_max_scale(col("level"), col("least_lifetime"), col("most_lifetime")))
    standard = derived(standard_scale(col("level"), col("mean_lifetime"), col("std_lifetime")))


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 20),
        st.sampled_from(["a", "b"]),
        st.sampled_from([None, "web", "till", "kiosk"]),
        st.none() | st.sampled_from([0.125, 5.0, 15.0, 25.0, 25.5]),  # of which sums are exact
    ),
    max_size=12,
).map(lambda events: sorted(events, key=itemgetter(0)))


def log_of(events):
    columns = ("at", "shop", "channel", "amount")
    rows = [dict(zip(columns, (event[0] * SECOND, *event[1:]), strict=True)) for event in events]
    return checked_events(sales, pl.DataFrame(rows, schema={name: TYPES[sales.types[name]] for name in columns}))


def test_operations_expand_into_columns_of_a_source_and_features_of_a_view():
    assert list(sales.types)[4:] == [
        "all",
        *(f"channel_is_{part}" for part in ("web", "till", "other")),
        "place",
        "place_hash",
    ]
    names = ["level", "level_missing", "size_small", "size_large", "size_other", "scaled", "standard"]
    assert list(Shops.outputs)[-7:] == names
    assert [Shops.outputs[name] for name in names] == ["float", "bool", "bool", "bool", "bool", "float", "float"]
    log = log_of([(1, "a", "web", 5.0)])
    assert log.row(0, named=True)["place_hash"] == hashed("a|web", 64)


@given(EVENTS, st.integers(0, 25))
def test_features_of_a_view_are_imputed_and_scaled_by_what_was_so_far(events, second):
    log = log_of(events)
    row = at_rows(Shops, log, pl.DataFrame({"shop": ["a"], "at": [second * SECOND]})).row(0, named=True)
    past = [{**event, "_time": event["at"]} for event in log.to_dicts() if event["at"] <= second * SECOND]
    _, stored = oracle.features(Shops, past, ("a",), second * SECOND)
    recent, last = stored["recent_2s"], stored["last_lifetime"]
    level = next(value for value in (recent, last, 0.0) if value is not None)
    assert (row["level"], row["level_missing"]) == (level, recent is None)
    assert (row["size_small"], row["size_large"], row["size_other"]) == (level < 10, level >= 20, 10 <= level < 20)
    amounts = [event["amount"] for event in past if event["shop"] == "a" and event["amount"] is not None]
    low, high = min(amounts, default=0.0), max(amounts, default=0.0)
    assert row["scaled"] == ((level - low) / (high - low) if high > low else None)
    spread = stored["std_lifetime"]
    wanted = (level - stored["mean_lifetime"]) / spread if spread else None
    assert row["standard"] == (wanted if wanted is None else pytest.approx(wanted, rel=1e-12))
