import subprocess
import sys

import polars as pl
import pytest
from river import forest, linear_model

import learner
from featurestore import DefinitionError, col, derived
from learner import Label
from tests.learner.late_arrivals import Codes, OriginDelays, OriginTraffic, Seen, arrivals, departures, plain, service


def test_inputs_are_full_names_in_the_order_given():
    made = service()
    assert made.inputs == (
        "origin_delays:flights_1h",
        "origin_delays:delay_1h",
        "origin_delays:busy",
        "distance",
        "origin_traffic:departures_1h",
        "far",
    )
    assert made.feature_set.columns == ("distance", "far")
    assert made.views == (OriginDelays, OriginTraffic)


def test_views_come_once_each_in_order_of_first_mention():
    features = [OriginTraffic.departures_1h, OriginDelays.delay_1h, OriginDelays.flights_1h]
    assert service(features=features).views == (OriginTraffic, OriginDelays)


def test_derived_features_may_be_of_several_views_and_the_event():
    share = derived(col("distance") / col("origin_delays:delay_1h"), name="share")
    made = service(
        features=[OriginDelays.delay_1h, share, derived(col("origin_traffic:departures_1h"), name="busy")],
        reads=[OriginTraffic],
    )
    assert made.inputs == ("origin_delays:delay_1h", "share", "busy")
    assert made.views == (OriginDelays, OriginTraffic)


def test_services_of_columns_alone_or_of_views_alone_work():
    assert service(features=["distance"]).views == ()
    assert service(features=[OriginDelays]).feature_set.columns == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Late"}, "'Late': a name has 1 to 64"),
        ({"name": "../late"}, "a name has"),
        ({"name": ""}, "a name has"),
        ({"id": "flite"}, "no id column 'flite' in 'departures'; did you mean 'flight'"),
        ({"features": ["distanze"]}, "no column 'distanze' .* did you mean 'distance'"),
        ({"features": ["origin"]}, "'origin' is a str and a model takes numbers"),
        ({"features": ["at"]}, "'at' is a timestamp"),
        ({"features": ["id"]}, "cannot be named 'id'"),
        ({"features": []}, "has no features"),
        ({"features": [3.5]}, "3.5 is no feature"),
        ({"features": [Codes]}, "looked up by 'delay_code', which 'departures' does not have"),
        ({"features": [Seen]}, "'seen:last_1d' is a timestamp.* one by one"),
        ({"features": [OriginDelays, derived(col("distance"))]}, "derived feature '': give it a name"),
        ({"features": ["distance"], "reads": [Codes]}, "looked up by 'delay_code'"),
        (
            {"features": [Seen.numbers_1d]},
            "'seen:numbers_1d' is a list.* and a model takes numbers; leave it out, or derive a number of it",
        ),
        ({"features": [OriginDelays, OriginDelays.delay_1h]}, "origin_delays:delay_1h is there more than once"),
        ({"batch": 0}, "batch must be"),
        ({"batch": 1.5}, "batch must be"),
        ({"budget": "soon"}, "budget: "),
        ({"model": linear_model.LinearRegression()}, "only binary classification"),
        ({"model": plain}, "use a River classifier"),
        ({"model": forest.ARFClassifier()}, "no seed"),
    ],
)
def test_service_that_cannot_work_says_why(changes, message):
    with pytest.raises(DefinitionError, match=f"(?s)^Service .*{message}"):
        service(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flite", col("delay") > 15, "36h"), "no id column 'flite'; did you mean 'flight'"),
        (("flight", col("dellay") > 15, "36h"), "no column 'dellay'; did you mean 'delay'"),
        (("flight", col("origin"), "36h"), "its value is a str"),
        (("flight", col("delay").mean() > 15, "36h"), "more than its own row"),
        (("flight", col("delay") > 15, "36 hours"), "wait: '36 hours' is no duration"),
        (("flight", col("delay") > 15, "0h"), "is no duration"),
    ],
)
def test_label_that_cannot_work_says_why(arguments, message):
    with pytest.raises(DefinitionError, match=f"^Label from 'arrivals'.*{message}"):
        Label(arrivals, *arguments)


def test_label_reads_its_events():
    label = Label(arrivals, "flight", col("delay") > 15, "36h")
    events = pl.DataFrame(
        {"flight": ["a", None], "delay": [16.0, None], "_time": [5, 6], "_offset": [0, 1], "more": [1, 2]}
    )
    read = label.read(events)
    assert read.rows(named=True) == [
        {"id": "a", "value": 1.0, "_offset": 0, "_time": 5},
        {"id": None, "value": None, "_offset": 1, "_time": 6},
    ]
    assert read.schema["value"] == pl.Float64
    assert label.wait_ms == 36 * 3_600_000


def test_definitions_stay_as_they_were_made():
    made = service()
    with pytest.raises(AttributeError):
        made.batch = 1
    assert made.on is departures


def test_importing_the_package_brings_neither_river_nor_numba():
    code = "import sys, learner; print({'river', 'numba'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_public_names_are_those_exported():
    assert learner.__all__ == ["Label", "Service"]
