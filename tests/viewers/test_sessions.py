"""Sessions of viewers: when they end, and what they may hold."""

from __future__ import annotations

import pytest
from dualclickmed.errors import UserError
from dualclickmed.viewers.sessions import Budget, FullError, GoneError, Sessions


class Thing:
    """Notes that it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions[Thing]:
    return Sessions(Thing, most=2, idle_seconds=100, liveness_seconds=30, clock=clock)


def test_the_last_free_session_is_told_when_the_next_one_may_be(
    sessions: Sessions[Thing], clock: Clock
) -> None:
    sessions.claim()
    clock.now = 20
    sessions.claim()
    with pytest.raises(FullError) as error:
        sessions.claim()
    assert error.value.retry_after == 10
    sessions.liveness_seconds = None
    with pytest.raises(FullError) as error:
        sessions.claim()
    assert error.value.retry_after == 80


def test_a_session_without_a_sign_of_life_ends(sessions: Sessions[Thing], clock: Clock) -> None:
    token = sessions.claim()
    clock.now = 29
    assert sessions.beat(token) == 71
    clock.now = 58
    assert sessions.remaining(token) == 42
    clock.now = 60
    with pytest.raises(GoneError):
        sessions.beat(token)


def test_signs_of_life_do_not_keep_a_session_that_nobody_uses(
    sessions: Sessions[Thing], clock: Clock
) -> None:
    token = sessions.claim()
    for clock.now in range(0, 101, 20):
        sessions.beat(token)
    clock.now = 101
    with pytest.raises(GoneError):
        sessions.beat(token)


def test_what_an_expired_session_held_is_closed_once(sessions: Sessions[Thing], clock: Clock) -> None:
    token = sessions.claim()
    with sessions.using(token) as thing:
        pass
    clock.now = 200
    assert sessions.end_expired() == 1
    assert sessions.end_expired() == 0
    assert thing.closed == 1 and len(sessions) == 0


def test_a_session_in_use_does_not_expire(sessions: Sessions[Thing], clock: Clock) -> None:
    token = sessions.claim()
    with sessions.using(token) as thing:
        clock.now = 500
        assert sessions.end_expired() == 0
    assert sessions.remaining(token) == 100 and thing.closed == 0


def test_a_session_that_is_released_while_in_use_is_closed_afterwards(sessions: Sessions[Thing]) -> None:
    token = sessions.claim()
    with sessions.using(token) as thing:
        sessions.release(token)
        assert thing.closed == 0
    assert thing.closed == 1
    with pytest.raises(GoneError), sessions.using(token):
        pass


@pytest.fixture
def yielding(clock: Clock) -> Sessions[Thing]:
    """Of viewers that give no sign of life."""
    return Sessions(Thing, most=2, idle_seconds=100, yield_seconds=10, clock=clock)


def test_a_new_session_gets_the_place_of_the_one_that_was_idle_longest(
    yielding: Sessions[Thing], clock: Clock
) -> None:
    first, second = yielding.claim(), yielding.claim()
    clock.now = 5
    with yielding.using(first):
        pass
    clock.now = 16
    third = yielding.claim()
    with pytest.raises(GoneError, match="another viewer needed its place"):
        yielding.remaining(second)
    assert (yielding.remaining(first), yielding.remaining(third)) == (89, 100)


def test_a_session_that_was_used_lately_or_is_in_use_keeps_its_place(
    yielding: Sessions[Thing], clock: Clock
) -> None:
    first, second = yielding.claim(), yielding.claim()
    with yielding.using(first):
        clock.now = 8
        with yielding.using(second):
            pass
        clock.now = 18
        with pytest.raises(FullError) as error:
            yielding.claim()
    assert error.value.retry_after == 1
    assert len(yielding) == 2


def test_nothing_yields_while_there_are_places(yielding: Sessions[Thing], clock: Clock) -> None:
    first = yielding.claim()
    clock.now = 90
    yielding.claim()
    assert yielding.remaining(first) == 10


def test_tokens_are_not_guessed(sessions: Sessions[Thing]) -> None:
    first, second = sessions.claim(), sessions.claim()
    assert first != second and min(len(first), len(second)) >= 32
    with pytest.raises(GoneError):
        sessions.release("")


def test_a_budget_is_shared() -> None:
    budget = Budget(100)
    budget.hold("a", 60)
    with pytest.raises(FullError):
        budget.hold("b", 50)
    budget.hold("a", 40)
    budget.hold("b", 50)
    assert budget.used == 90
    with budget.held(10), pytest.raises(FullError):
        budget.hold("c", 1)
    budget.hold("a", 0)
    assert budget.used == 50
    with pytest.raises(UserError):
        budget.hold("c", 101)


def test_where_bytes_are_short_those_are_asked_who_can_give_some() -> None:
    budget, asked = Budget(100), []

    def give(owner: str) -> bool:
        asked.append(owner)
        had = budget.used
        budget.hold(owner, 0)
        return budget.used < had

    budget.when_short(lambda: give("a"))
    budget.when_short(lambda: give("b"))
    budget.hold("a", 40)
    budget.hold("b", 40)
    budget.hold("c", 20)
    assert asked == []
    budget.hold("d", 70)
    assert asked == ["a", "a", "b"]
    assert budget.used == 90
    with pytest.raises(FullError):
        budget.hold("e", 11)
    assert budget.used == 90
    with pytest.raises(UserError):
        budget.hold("e", 101)


def test_an_idle_session_gives_its_memory(clock: Clock) -> None:
    budget, made = Budget(100), []

    class Image(Thing):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def close(self) -> None:
            super().close()
            budget.hold(self, 0)

    sessions = Sessions(Image, most=5, idle_seconds=100, yield_seconds=10, clock=clock)
    budget.when_short(sessions.end_longest_idle)
    tokens = [sessions.claim() for _ in range(3)]
    for thing in made:
        budget.hold(thing, 30)
    clock.now = 11
    with sessions.using(tokens[0]):
        budget.hold("another protocol", 65)
    assert [thing.closed for thing in made] == [0, 1, 1]
    assert len(sessions) == 1
