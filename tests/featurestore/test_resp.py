from __future__ import annotations

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from featurestore import resp

strings = st.lists(st.binary(max_size=120) | st.sampled_from([b"x" * 9, b"x" * 10, b"x" * 99, b"x" * 1000]), max_size=9)


@given(strings, strings, st.binary(max_size=12))
def test_a_command_of_groups_is_the_command_of_all_their_parts(some, others, prefix):
    packed = resp.command_of(resp.loose("EVALSHA", b"sha", 7), resp.strings(some, prefix), resp.strings(others))
    parts = ("EVALSHA", b"sha", 7, *[prefix + each for each in some], *others)
    assert packed == hiredis.pack_command(parts)
    assert packed == resp.command(*parts)
