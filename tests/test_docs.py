"""The pages on features, formats and joins: examples give what they show, tables say what is, nothing is left out."""

from __future__ import annotations

import ast
import inspect
import re
from itertools import takewhile
from pathlib import Path

import polars as pl
import pytest

import featurestore
from batch.backfill import at_rows
from featurestore import Aggregate, Entity, Source, sources, view
from featurestore.aggregates import NUMBERS, ORDERED
from featurestore.bags import CATEGORIES, BagAggregate
from featurestore.frames import empty_frame
from featurestore.kernel import layout
from featurestore.plan import compiled

PAGE = (Path(__file__).parents[1] / "docs" / "features.md").read_text()
PREAMBLE, *EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
JOINS = (Path(__file__).parents[1] / "docs" / "joins.md").read_text()
FORMATS = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()
ROWS = {
    name: cells
    for name, *cells in re.findall(
        r"^\| `(\w+)` \| .* \| (.+?) \| (.+?) \| (0|null|zeros|empty) \| (\d) \|( .+ \|)?$", PAGE, re.MULTILINE
    )
}
PUBLIC = {name: getattr(featurestore, name) for name in featurestore.__all__}
AGGREGATES = {
    name: each
    for name, each in PUBLIC.items()
    if inspect.isclass(each) and issubclass(each, Aggregate) and each not in (Aggregate, BagAggregate)
}
MAKERS = [
    name
    for name, each in PUBLIC.items()
    if inspect.isfunction(each) and inspect.signature(each).return_annotation == "Window"
]
OPERATIONS = [name for name, each in PUBLIC.items() if inspect.getmodule(each) is featurestore.operations]
TAKES = {"numbers": NUMBERS, "numbers, times": ORDERED, "anything": (*ORDERED, "str"), "bool": ("bool",)}
TAKES |= {"categories": CATEGORIES}
GIVES = {
    "int": lambda _: "int",
    "float": lambda _: "float",
    "bool": lambda _: "bool",
    "the column's": lambda kind: kind,
    "int; of floats float": lambda kind: "float" if kind == "float" else "int",
    "list[int]": lambda _: "list[int]",
    "list of the column's": lambda kind: f"list[{kind}]",
    "counts of the column's": lambda kind: f"counts[{kind}]",
    "map[int]": lambda _: "map[int]",
    "map[int]; of floats map[float]": lambda kind: "map[float]" if kind == "float" else "map[int]",
}
NOTHING = {"0": [0], "null": [None], "zeros": [[0, 0]], "empty": [[], {}]}
TOLD = {
    "Corr": {"other": "b"},
    "SumBy": {"by": "b"},
    "Histogram": {"edges": [1]},
    "FirstN": {"n": 2},
    "LastN": {"n": 2},
}
EVENTS = Source("events", schema={"k": str, "x": float, "b": bool, "at": "timestamp[ms]"}, event_time="at", key="k")


def shown(block, names):
    """Run a block; what it shows after `# ->` and what came out there."""
    lines, out = block.splitlines(), []
    for node in ast.parse(block).body:
        code = compile(ast.Module([node], []), "docs/features.md", "exec")
        if not isinstance(node, ast.Expr):
            exec(code, names)
            continue
        value = eval(compile(ast.Expression(node.value), "docs/features.md", "eval"), names)
        comment = takewhile(lambda line: line.startswith("# "), lines[node.end_lineno :])
        out.append((" ".join(line[2:].strip() for line in comment), f"-> {value!r}"))
    return out


@pytest.mark.parametrize("block", EXAMPLES, ids=[f"example{i}" for i in range(len(EXAMPLES))])
def test_an_example_gives_what_it_shows(block):
    names = {}
    assert shown(PREAMBLE, names) == []
    results = shown(block, names)
    assert results, "an example that shows nothing"
    for want, got in results:
        assert got == want


def test_the_page_of_formats_shows_what_comes_out_and_names_all_formats():
    names, count = {}, 0
    for block in re.findall(r"```python\n(.*?)```", FORMATS, re.DOTALL):
        for want, got in shown(block, names):
            assert got == want
            count += 1
    assert count == 11
    assert set(re.findall(r"^\| `\"(\w+)\"`", FORMATS, re.MULTILINE)) == set(sources.FORMATS)


def test_the_page_of_joins_shows_what_comes_out():
    (block,) = re.findall(r"```python\n(.*?)```", JOINS, re.DOTALL)
    results = shown(block, {})
    assert len(results) == 2
    for want, got in results:
        assert got == want


def test_every_aggregate_has_a_row_and_an_example():
    assert set(ROWS) == set(AGGREGATES)
    examples = "".join(EXAMPLES)
    assert [name for name in AGGREGATES if not re.search(rf"= {name}\(", examples)] == []


def test_every_maker_of_windows_and_every_operation_is_described_and_used():
    assert {"window", "last", "session"} <= set(MAKERS)
    assert {"impute", "target_encode"} <= set(OPERATIONS)
    for name in [*MAKERS, *OPERATIONS, "derived", "derive", "where", "reads"]:
        assert re.search(rf"`.*?\b{name}\b", PAGE), name
        assert re.search(rf"\b{name}(\(|=)", PREAMBLE + "".join(EXAMPLES)), name


@pytest.mark.parametrize("name", AGGREGATES)
def test_the_table_of_aggregates_says_what_the_code_does(name):
    made = AGGREGATES[name]
    takes, gives, nothing, words, _ = ROWS[name]
    assert set(made.accepts) == set(TAKES[takes])
    one = made("b" if takes in ("bool", "categories") else "x", **TOLD.get(name, {}))
    assert [one.output(kind) for kind in made.accepts] == [GIVES[gives](kind) for kind in made.accepts]
    chosen = view(entity=Entity("key", key="k"), source=EVENTS, windows=["1h"])(type("Made", (), {"f": one}))
    index_and_count = 0 if isinstance(one, BagAggregate) else 2
    assert compiled(chosen).tracks[0][layout.STRIDE] == index_and_count + int(words)
    rows = at_rows(chosen, empty_frame(EVENTS), pl.DataFrame({"k": ["nobody"], "at": [0]}))
    assert rows.row(0, named=True)["f_1h"] in NOTHING[nothing]
