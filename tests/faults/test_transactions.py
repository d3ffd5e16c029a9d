from __future__ import annotations

import pytest

from tests.faults.transactions import transacted


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("transport", ["columns", "records"])
def test_aborted_events_are_never_folded_and_positions_pass_markers_and_holes(real_pair, tmp_path, transport):
    done, wrong = transacted(real_pair, tmp_path, seed=13, orders=300, transport=transport)
    assert wrong == 0
    assert all(done.values()), done
