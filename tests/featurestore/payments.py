"""Payments as records of Confluent's formats have them, for tests."""

from hypothesis import strategies as st

from featurestore.decoding import MAX_TIME

SCHEMA = {"id": str, "at": "timestamp[ms]", "n": int, "x": float, "ok": bool, "note": str}
GOOD = {"id": "a", "at": 1_700_000_000_000, "n": 1, "x": 1.5, "ok": True, "note": "hi"}

payments = st.fixed_dictionaries(
    {
        "id": st.text(min_size=1, max_size=9),
        "at": st.integers(0, MAX_TIME),
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "x": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "ok": st.none() | st.booleans(),
        "note": st.none() | st.text(max_size=9),
    }
).map(lambda row: {name: row[name] for name in SCHEMA})


def framed(number, content):
    """A record that names a schema."""
    return b"\0" + number.to_bytes(4, "big") + content
