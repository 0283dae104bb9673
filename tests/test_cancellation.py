"""Ending a computation between two of its stages."""

from __future__ import annotations

import threading
from contextvars import copy_context

import pytest
from dualclickmed.cancellation import Stopped, Stopper, check, within
from dualclickmed.experts.timing import StageTimer


def test_without_a_stopper_everything_goes_on() -> None:
    check()
    with StageTimer().timed("encode"):
        pass


def test_a_stage_does_not_begin_once_nobody_waits() -> None:
    stopper, stages = Stopper(), StageTimer()
    with within(stopper):
        with stages.timed("encode"):
            stopper.stop()
        with pytest.raises(Stopped, match="Nobody waits"), stages.timed("decode"):
            pytest.fail("it began")
    assert set(stages) == {"encode"}
    check()


def test_time_runs_out() -> None:
    with within(Stopper(0.0)), pytest.raises(Stopped, match="not ready within 0 seconds"):
        threading.Event().wait(0.01)
        check()
    with within(Stopper(60.0)):
        check()


def test_a_stopper_reaches_the_thread_that_computes() -> None:
    stopper, found = Stopper(), []
    with within(stopper):
        context = copy_context()
    stopper.stop()

    def work() -> None:
        try:
            check()
        except Stopped as error:
            found.append(str(error))

    thread = threading.Thread(target=context.run, args=(work,))
    thread.start()
    thread.join()
    assert found == ["Nobody waits for this answer any more."]
