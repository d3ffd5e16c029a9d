from __future__ import annotations

import asyncio
import json
import math

import numpy as np
import pytest
from river import linear_model, preprocessing

from featurestore import (
    CountBy,
    Entity,
    FirstN,
    Last,
    LastN,
    SumBy,
    TopK,
    UnavailableError,
    col,
    derived,
    one_hot,
    resp,
    view,
)
from featurestore.keys import state_key
from featurestore.memory import MemoryStore
from featurestore.online import connect
from featurestore.redis_nodes import Routed
from featurestore.stores import Commit
from featurestore.texts import code_of
from learner import Label, Service
from learner.models import compile_model
from learner.store import ModelStore
from serving.api import build_application, catalog
from serving.http import MAX_BODY
from serving.messages import openapi
from serving.reader import FeatureReader
from tests.featurestore.helpers import event, numbered, read
from tests.serving.helpers import (
    HOUR,
    MINUTE,
    NO_MODELS,
    NOW,
    SCHEMA,
    TOPICS,
    VIEWS,
    Cards,
    Groups,
    application_of,
    closing,
    events,
    filled,
    first_of,
    folded,
    put,
)

SERVICE = {"id": "s", "label": Label(events, id="s", value=col("b"), wait="1h")}
SERVICE["model"] = preprocessing.StandardScaler() | linear_model.LogisticRegression()
ALL = [f"cards:{name}" for name in Cards.outputs]
FIVE = ["cards:payments_5m", "cards:spend_5m"]

risky = Service("risky", on=events, features=[Cards, Groups.biggest_lifetime, "x"], **SERVICE)
rich = Service(
    "rich",
    on=events,
    features=[
        Cards.spend_5m,
        derived(col("x") / col("cards:spend_1h"), name="ratio"),
        derived(one_hot(col("s"), ["web"]), name="s_is"),
        derived(col("i") + col("groups:biggest_lifetime"), name="sum"),
        derived(col("at") - col("groups:latest_lifetime"), name="age"),
    ],
    reads=[Groups],
    **SERVICE,
)


def post(path, body, **options):
    """Status and answer of one request to a server over the history."""

    async def main():
        application = application_of(await filled(MemoryStore(lambda: NOW)), **options)
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await application.answer("POST", path, text)

    reply = asyncio.run(main())
    return reply.status, json.loads(reply.body)


def ask(body, **options):
    return post("/get-online-features", body, **options)


def refused(body, status):
    got, answer = ask(body)
    assert got == status
    assert set(answer) <= {"error", "hint"}
    return " ".join(answer.values())


def test_the_answer_has_feasts_shape():
    status, answer = ask({"features": FIVE, "entities": {"k": ["a", "nobody"]}})
    assert status == 200
    assert answer == {
        "metadata": {
            "feature_names": ["k", "payments_5m", "spend_5m"],
            "as_of": None,
            "effective_time": {"cards": [NOW, NOW]},
        },
        "results": [
            {
                "values": ["a", "nobody"],
                "statuses": ["PRESENT", "PRESENT"],
                "event_timestamps": ["1970-01-01T00:00:00Z"] * 2,
            },
            {
                "values": [2, None],
                "statuses": ["PRESENT", "NOT_FOUND"],
                "event_timestamps": ["2023-11-14T22:11:20Z", "1970-01-01T00:00:00Z"],
            },
            {
                "values": [0.5, None],
                "statuses": ["PRESENT", "NOT_FOUND"],
                "event_timestamps": ["2023-11-14T22:11:20Z", "1970-01-01T00:00:00Z"],
            },
        ],
    }


def test_values_are_the_engines_own_to_the_last_bit():
    for as_of in (NOW, NOW + 30 * MINUTE):
        _, answer = ask({"features": ALL, "entities": {"k": ["a"]}, "as_of": as_of})
        served = first_of(answer)
        own = read(folded(Cards), ("a",), as_of)
        assert {name: served[name] for name in own} == own
        assert served["share"] == pytest.approx(own["spend_5m"] / own["spend_1h"], abs=0)


def test_integers_beyond_doubles_stay_exact():
    _, answer = ask({"features": ["groups:biggest_lifetime"], "entities": {"g": [2]}})
    assert answer["results"][1]["values"] == [9_007_199_254_740_993]


@view(entity=Entity("card", key="k"), source=events, windows=["lifetime"])
class Listed:
    shops = CountBy("s")
    spent = SumBy("x", by="s")
    exactly = SumBy("i", by="s")
    top = TopK("s", k=1)
    sizes = LastN("x", n=3)
    flags = FirstN("b", n=2)
    shop = Last("s")


def test_lists_are_arrays_and_maps_are_objects_with_null_for_what_json_has_not():
    rows = [("p", 0.5, 2**53 + 1), ("", math.inf, 7), ("p", -0.25, None), ("\u20ac", -math.inf, 2**63 - 1)]
    rows += [("\u20ac", 1.0, 1)]
    history = numbered(event(NOW - 9 + n, s=s, x=x, i=i, b=n > 0) for n, (s, x, i) in enumerate(rows))

    async def main():
        store = MemoryStore(lambda: NOW)
        await put(store, folded(Listed, history))
        reader = FeatureReader([Listed], store, TOPICS, lambda: NOW)
        options = {"store": store, "reader": reader, "models": NO_MODELS, "now": lambda: NOW}
        application = build_application({"listed": Listed}, {}, **options)
        names = [f"listed:{name}" for name in Listed.outputs]
        body = {"features": names, "entities": {"k": ["a", "nobody"]}}
        return await application.answer("POST", "/get-online-features", json.dumps(body).encode())

    reply = asyncio.run(main())
    assert reply.status == 200
    answer = json.loads(reply.body)
    assert first_of(answer) == {
        "k": "a",
        "shops_lifetime": {"p": 2, "\u20ac": 2, "": 1},
        "spent_lifetime": {"": None, "\u20ac": None, "p": 0.25},
        "exactly_lifetime": {"p": 2**53 + 1, "": 7, "\u20ac": None},
        "top_lifetime": [{"value": min("p", "\u20ac", key=code_of), "count": 2}],
        "sizes_lifetime": [-0.25, None, 1.0],
        "flags_lifetime": [False, True],
        "shop_lifetime": "\u20ac",
    }
    assert [vector["values"][1] for vector in answer["results"][1:]] == [None] * 7
    assert {status for vector in answer["results"][1:] for status in vector["statuses"]} == {"PRESENT", "NOT_FOUND"}


def test_windows_decay_as_of_later_times():
    body = {"features": ["cards:payments_5m"], "entities": {"k": ["a"]}}
    assert [ask(body | {"as_of": NOW + wait})[1]["results"][1]["values"] for wait in (0, 10 * MINUTE)] == [[2], [0]]


def test_times_may_be_iso_8601():
    body = {"features": FIVE, "entities": {"k": ["a"]}}
    assert ask(body | {"as_of": NOW})[1] == ask(body | {"as_of": "2023-11-14T22:13:20Z"})[1]
    assert ask(body | {"as_of": "2023-11-14T23:13:20+01:00"})[1]["metadata"]["as_of"] == NOW


def test_an_earlier_time_is_answered_as_of_the_newest_event():
    _, answer = ask({"features": FIVE, "entities": {"k": ["a"]}, "as_of": NOW - HOUR})
    assert answer["metadata"]["effective_time"] == {"cards": [NOW - 2 * MINUTE]}
    assert answer["metadata"]["as_of"] == NOW - HOUR


def test_statuses_tell_nulls_absence_and_age_apart():
    _, answer = ask({"features": ["cards:spread_5m", "cards:payments_5m"], "entities": {"k": ["b", "nobody", "old"]}})
    spread, payments = answer["results"][1:]
    assert spread["statuses"] == ["NULL_VALUE", "NOT_FOUND", "NULL_VALUE"]
    assert payments["statuses"] == ["PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE"]
    assert payments["values"] == [1, None, 0]


def test_what_is_not_a_number_is_null():
    _, answer = ask({"features": ["cards:share"], "entities": {"k": ["c"]}})
    assert answer["results"][1]["values"] == [None]
    assert answer["results"][1]["statuses"] == ["NULL_VALUE"]


def test_features_of_several_views_and_types_with_full_names():
    features = ["groups:flag_lifetime", "groups:latest_lifetime", "pairs:payments_1h", "cards:payments_1h"]
    body = {"features": features, "entities": {"g": [1, 3], "k": ["a", "c"]}, "full_feature_names": True}
    _, answer = ask(body)
    names = ["groups__flag_lifetime", "groups__latest_lifetime", "pairs__payments_1h", "cards__payments_1h"]
    assert answer["metadata"]["feature_names"] == ["g", "k", *names]
    values = [vector["values"] for vector in answer["results"]]
    assert values == [[1, 3], ["a", "c"], [False, None], [NOW - 2 * MINUTE, NOW - 1], [3, 1], [3, 1]]
    assert "full_feature_names" in refused(body | {"full_feature_names": False}, 400)


def test_a_feature_service_names_the_features_of_its_views():
    entities = {"k": ["a"], "g": [1]}
    _, answer = ask({"feature_service": "risky", "entities": entities}, services={"risky": risky})
    assert answer["metadata"]["feature_names"] == ["k", "g", *Cards.outputs, "biggest_lifetime"]


REQUEST = {"x": [1.0, 3], "s": ["web", None], "i": [1, 2], "at": [NOW, NOW]}


def ask_rich(**changes):
    body = {"feature_service": "rich", "entities": {"k": ["a", "nobody"], "g": [1, 9]}, "request": REQUEST}
    return ask(body | changes, services={"rich": rich})


def test_a_feature_service_derives_features_from_views_and_what_comes_with_the_request():
    status, answer = ask_rich(full_feature_names=True)
    assert status == 200
    names = ["cards__spend_5m", "ratio", "s_is_web", "s_is_other", "sum", "age"]
    assert answer["metadata"]["feature_names"] == ["k", "g", *names]
    spend = read(folded(Cards), ("a",), NOW)["spend_1h"]
    values = [[0.5, None], [1.0 / spend, None], [True, False], [False, False], [6, None], [2 * MINUTE, None]]
    assert [vector["values"] for vector in answer["results"][2:]] == values
    assert answer["results"][3]["statuses"] == ["PRESENT", "NULL_VALUE"]
    assert answer["metadata"]["effective_time"] == {"cards": [NOW, NOW], "groups": [NOW, NOW]}


def test_what_comes_with_a_request_may_stand_among_the_entities_as_with_feast():
    entities = {"k": ["a", "nobody"], "g": [1, 9]}
    _, answer = ask_rich(entities=entities | REQUEST, request={}, full_feature_names=True)
    assert answer["results"][-6:] == ask_rich(full_feature_names=True)[1]["results"][-6:]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "derived features need 'i', a column of 'events'; give its values in request"),
        ({name: REQUEST[name] for name in ("i", "s", "at")}, "need 'x'"),
        (REQUEST | {"x": [1.0]}, "request column 'x' has 1 values for 2 entities"),
        (REQUEST | {"x": [1.0, "much"]}, "request, entity 1: Expected `float | null`, got `str` - at `$.x`"),
        (REQUEST | {"i": [1.5, 1]}, "entity 0: Expected `int | null`, got `float` - at `$.i`"),
        (REQUEST | {"i": [2**63, 1]}, "entity 0: "),
    ],
)
def test_a_request_without_what_derived_features_need_is_told_so(given, says):
    status, answer = ask_rich(request=given)
    assert status == 400
    assert says in answer["error"]


def test_no_entities_are_no_fault():
    _, answer = ask({"features": FIVE, "entities": {"k": []}})
    assert answer["results"] == [{"values": [], "statuses": [], "event_timestamps": []}] * 3


def test_a_null_key_is_nobodys():
    _, answer = ask({"features": FIVE, "entities": {"k": ["a", None]}})
    assert answer["results"][1]["statuses"] == ["PRESENT", "NOT_FOUND"]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"features": ["card:payments_5m"]}, 404, "did you mean 'cards'"),
        ({"features": ["cards:payment_5m"]}, 404, "did you mean 'payments_5m'"),
        ({"features": ["payments_5m"]}, 404, "no view 'payments_5m'"),
        ({"features": FIVE + FIVE}, 400, "asked for 2 times"),
        ({"features": None}, 400, "feature_service"),
        ({"features": None, "feature_service": "risk"}, 404, "no feature service 'risk'"),
        ({"features": "cards:payments_5m"}, 400, "Expected `array | null`, got `str` - at `$.features`"),
        ({"entities": {"card": ["a"]}}, 400, "looked up by 'k'"),
        ({"entities": {"k": [1]}}, 400, "entity column 'k' is a str, and 1 is none"),
        ({"entities": {"k": ["x" * 257]}}, 400, "257 bytes"),
        ({"entities": {"k": ["a"] * 1001}}, 400, "at most 1,000"),
        ({"entities": {"k": ["a"], "g": [1, 2]}}, 400, "same number of values"),
        ({"entities": {}}, 400, "at least one column"),
        ({"entities": {"k": [{}]}}, 400, "got `object` - at `$.entities"),
        ({"as_of": "yesterday"}, 400, "ISO 8601"),
        ({"as_of": 10**16}, 400, "1970 to 9999"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(change, status, says):
    assert says in refused({"features": FIVE, "entities": {"k": ["a"]}} | change, status)


@pytest.mark.parametrize("entity", [True, 1.0, 2**63, "1"])
def test_a_key_of_another_type_is_refused(entity):
    refused({"features": ["groups:biggest_lifetime"], "entities": {"g": [entity]}}, 400)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"entities": NaN}', b"[" * 100_000])
def test_a_body_that_is_no_request_is_refused(body):
    assert ask(body)[0] == 400
    assert post("/predict/risky", body, services={"risky": risky})[0] in (400, 404)


class AwayStore(MemoryStore):
    async def read_many(self, requests):
        raise UnavailableError("cannot reach Redis at 127.0.0.1:1: refused")

    async def ping(self):
        raise UnavailableError("cannot reach Redis at 127.0.0.1:1: refused")


def get(store, *paths):
    async def main():
        application = application_of(store, services={"risky": risky, "rich": rich})
        return [await application.answer("GET", path, b"") for path in paths]

    return asyncio.run(main())


def test_health_and_readiness_are_two_questions():
    assert [reply.status for reply in get(AwayStore(), "/healthz", "/readyz")] == [200, 503]
    assert [reply.status for reply in get(MemoryStore(), "/healthz", "/readyz")] == [200, 200]


def test_a_store_that_is_away_is_one_line_and_503():
    async def main():
        body = json.dumps({"features": FIVE, "entities": {"k": ["a"]}}).encode()
        return await application_of(AwayStore()).answer("POST", "/get-online-features", body)

    reply = asyncio.run(main())
    assert (reply.status, json.loads(reply.body)) == (503, {"error": "cannot reach Redis at 127.0.0.1:1: refused"})


@pytest.mark.parametrize("fault", ["type", "state"])
def test_a_foreign_value_in_redis_is_an_error_and_not_a_number(fault, redis_url):
    async def main():
        async with closing(connect(redis_url, 0)) as store:
            await put(store, folded(Cards))
            if fault == "type":
                key = state_key("events", 1, Cards.key, b"sz")
                await store._run([Routed(key, resp.command("LPUSH", key, "x"))])
            else:
                await store.commit([Commit(Cards.key, "events", 0, "me", 9, 10, NOW, [b"sz"], [b"\0" * 64])])
            application = application_of(store)
            bodies = [json.dumps({"features": FIVE, "entities": {"k": [k]}}).encode() for k in "za"]
            replies = [await application.answer("POST", "/get-online-features", body) for body in bodies]
            for partition in range(3):
                key = state_key("events", 1, Cards.key, b"sz")
                await store._run([Routed(key, resp.command("DEL", key))])
                await store.drop(Cards.key, "events", partition)
            return replies

    bad, good = asyncio.run(main())
    assert (bad.status, good.status) == (503, 200)
    assert "delete that key" in json.loads(bad.body)["error"] or "rebuild the view" in json.loads(bad.body)["error"]


def test_redis_serves_what_memory_does(redis_url):
    body = json.dumps({"features": ALL, "entities": {"k": ["a", "b", "nobody"]}}).encode()

    async def main():
        async with closing(connect(redis_url, 0)) as store:
            await filled(store, Cards)
            reply = await application_of(store).answer("POST", "/get-online-features", body)
            for partition in range(3):
                await store.drop(Cards.key, "events", partition)
            return json.loads(reply.body)

    assert asyncio.run(main()) == ask(body)[1]


def test_what_is_nowhere_is_404_and_the_wrong_method_405():
    status, answer = post("/nothing", {})
    assert (status, answer["error"]) == (404, "there is nothing here")
    assert post("/catalog", {})[0] == 405
    replies = get(MemoryStore(), "/predict/risky", "/predict/", "/predict/a/b")
    assert [reply.status for reply in replies] == [405, 404, 404]


def test_the_catalogue_lists_all_there_is():
    [reply] = get(MemoryStore(), "/catalog")
    listed = json.loads(reply.body)
    assert listed == catalog(VIEWS, {"risky": risky, "rich": rich})
    cards = listed["views"][0]
    assert cards["entity"] == {"name": "card", "keys": {"k": "str"}}
    assert [feature["name"] for feature in cards["features"]] == ALL
    assert cards["features"][-1]["from"] == ["spend_5m", "spend_1h"]
    assert listed["services"][0]["inputs"] == list(risky.inputs)
    assert (listed["services"][0]["derived"], listed["services"][0]["request"]) == ([], [])
    ratio = {"name": "ratio", "type": "float", "from": ["x", "cards:spend_1h"]}
    assert listed["services"][1]["derived"][0] == ratio | {"derived": '[(col("x")) / (col("cards:spend_1h"))]'}
    assert listed["services"][1]["request"] == ["i", "x", "s", "at"]


def test_the_description_is_true():
    described = openapi("1")
    [reply] = get(MemoryStore(), "/openapi.json")
    assert json.loads(reply.body)["paths"] == described["paths"]
    schemas = described["components"]["schemas"]
    _, answer = ask({"features": FIVE, "entities": {"k": ["a"]}})
    assert set(answer) == set(schemas["FeaturesResponse"]["required"])
    assert set(answer["metadata"]) == set(schemas["FeaturesMetadata"]["properties"])
    assert set(answer["results"][0]) == set(schemas["Vector"]["properties"])
    for path, methods in described["paths"].items():
        for method in methods:
            for reference in _references(methods[method]):
                assert reference.removeprefix("#/components/schemas/") in schemas, path


def _references(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def test_requests_and_what_was_found_are_counted():
    async def main():
        application = application_of(await filled(MemoryStore(lambda: NOW), Cards))
        body = json.dumps({"features": FIVE, "entities": {"k": ["a", "nobody"]}}).encode()
        await application.answer("POST", "/get-online-features", body)
        await application.answer("POST", "/get-online-features", b"")
        await application.answer("GET", "/../etc", b"")
        return (await application.answer("GET", "/metrics", b"")).body.decode()

    text = asyncio.run(main())
    assert 'onceflow_http_requests_total{route="/get-online-features",status="200"} 1.0' in text
    assert 'onceflow_http_requests_total{route="/get-online-features",status="400"} 1.0' in text
    assert 'onceflow_http_requests_total{route="other",status="404"} 1.0' in text
    assert 'onceflow_entities_read_total{status="NOT_FOUND",view="cards"} 1.0' in text
    assert 'onceflow_http_seconds_count{route="/get-online-features"} 2.0' in text


def test_a_fault_of_ours_is_500_and_logged(caplog):
    class Broken(MemoryStore):
        async def ping(self):
            raise ZeroDivisionError

    [reply] = get(Broken(), "/readyz")
    assert reply.status == 500
    assert "ZeroDivisionError" in caplog.text


# --- predictions -----------------------------------------------------------------------------------------------------


def row(**given):
    return {"k": "a", "g": 1, "x": 2.5, "s": "id-1", "at": NOW} | given


@pytest.fixture
def models(tmp_path):
    """A store whose champion has learnt something."""
    store = ModelStore(tmp_path)
    model = compile_model(risky.model, risky.inputs)
    rows = np.random.default_rng(0).normal(size=(50, len(risky.inputs)))
    model.learn(rows, (rows[:, 0] > 0).astype(float))
    store.alias("risky", "champion", store.publish("risky", model, {}))
    return store


def predict(body, models):
    return post("/predict/risky", body, services={"risky": risky}, models=models)


def test_a_prediction_is_the_champions_on_the_features_served(models):
    status, answer = predict(row(), models)
    assert status == 200
    stored = read(folded(Cards), ("a",), NOW)
    expected = {f"cards:{name}": value for name, value in stored.items()}
    expected |= {"cards:share": stored["spend_5m"] / stored["spend_1h"], "groups:biggest_lifetime": 5, "x": 2.5}
    assert answer["features"] == expected
    inputs = np.array([[expected[name] for name in risky.inputs]], float)
    [probability] = models.load("risky")[0].predict(inputs).tolist()
    assert answer["probabilities"] == {"false": 1 - probability, "true": probability}
    assert answer["prediction"] == (probability >= 0.5)
    assert (answer["id"], answer["model_version"], answer["variant"]) == ("id-1", 1, "champion")
    assert (answer["event_time"], answer["effective_time"]) == (NOW, NOW)


def test_many_events_are_answered_in_order_each_as_of_its_time(models):
    later = NOW + 10 * MINUTE
    status, answer = predict({"events": [row(), row(at=later, s="id-2"), row(k="nobody", s=None)]}, models)
    assert status == 200
    first, second, third = answer["predictions"]
    assert [p["id"] for p in (first, second, third)] == ["id-1", "id-2", None]
    assert [p["features"]["cards:payments_5m"] for p in (first, second, third)] == [2, 0, 0]
    assert second["effective_time"] == later
    assert first == predict(row(), models)[1]
    assert predict({"events": []}, models) == (200, {"predictions": []})


def test_an_event_without_time_happens_now(models):
    without = {name: value for name, value in row().items() if name != "at"}
    assert predict(without, models) == predict(row(), models) == predict(row(at=None), models)


def test_a_null_key_gives_no_features(models):
    _, answer = predict(row(g=None), models)
    assert answer["features"]["groups:biggest_lifetime"] is None


def test_a_prediction_derives_features_from_views_and_the_event(models):
    def features(**given):
        body = row(k="a", i=1, s="web", x=1.5) | given
        status, answer = post("/predict/rich", body, services={"rich": rich}, models=models)
        assert status == 200
        return answer["features"]

    spend = read(folded(Cards), ("a",), NOW)["spend_1h"]
    wanted = {"cards:spend_5m": 0.5, "ratio": 1.5 / spend, "s_is_web": 1.0, "s_is_other": 0.0, "sum": 6.0}
    assert features() == wanted | {"age": 2.0 * MINUTE}
    # As in the stream, what an event leaves out is null.
    assert features(x=None, i=None) == wanted | {"ratio": None, "sum": None, "age": 2.0 * MINUTE}


def test_before_the_first_model_is_published_one_that_learnt_nothing_answers(tmp_path):
    _, answer = predict(row(), ModelStore(tmp_path))
    assert (answer["model_version"], answer["probabilities"]["true"]) == (0, 0.5)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (row(x="much"), 400, "event 0: Expected `float | null`, got `str` - at `$.x`"),
        ({"events": [row(), row(k=None)]}, 400, "event 1: Expected `str`, got `null` - at `$.k`"),
        ({"events": [row(), 7]}, 400, "event 1 must be a JSON object"),
        ({"events": row()}, 400, "events: Expected `array`"),
        ({"events": [row()] * 1001}, 400, "at most 1,000"),
        (row(at="now"), 400, "got `str` - at `$.at`"),
    ],
)
def test_events_that_cannot_be_read_are_refused(body, status, says, models):
    got, answer = predict(body, models)
    assert got == status
    assert says in answer["error"]


def test_an_unknown_service_is_told_the_nearest(models):
    status, answer = post("/predict/riski", row(), services={"risky": risky}, models=models)
    assert (status, answer["hint"]) == (404, "did you mean 'risky'?")


def test_the_limits_are_those_that_are_promised():
    assert MAX_BODY == 1_000_000
    assert set(SCHEMA) == set(row()) | {"i", "b"}
