from __future__ import annotations

import time

import pytest
from dualclickmed.experts.timing import StageTimer


def test_time_is_summed_by_name():
    stages = StageTimer()
    for _ in range(2):
        with stages.timed("decode"):
            time.sleep(0.02)
    with stages.timed("paste"):
        pass
    assert 0.04 <= stages["decode"] < 1
    assert stages["paste"] < 0.02
    assert set(stages) == {"decode", "paste"}


def test_a_stage_that_fails_is_counted_too():
    stages = StageTimer()
    with pytest.raises(RuntimeError), stages.timed("encode"):
        raise RuntimeError
    assert "encode" in stages
