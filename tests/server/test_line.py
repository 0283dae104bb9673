"""Who gets a turn, in which order, and who is told to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from dualclickmed.server.line import BusyError, LeftError, Line


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def nobody_leaves() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def worker(line: Line, name: int, done: list[int], go: asyncio.Event, gone: Any = None) -> None:
    async with line.turn(gone or nobody_leaves()):
        await go.wait()
        done.append(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_turns_come_in_order() -> None:
    async def work() -> None:
        line, done, go = Line(2, 10, 60), [], asyncio.Event()
        tasks = [asyncio.create_task(worker(line, n, done, go)) for n in range(6)]
        await settle()
        assert line.queued == 4
        go.set()
        await asyncio.gather(*tasks)
        assert done == [0, 1, 2, 3, 4, 5]
        assert line.queued == 0

    run(work())


def test_a_full_line_turns_away_and_estimates() -> None:
    async def work() -> None:
        line, done, go = Line(1, 2, 60), [], asyncio.Event()
        tasks = [asyncio.create_task(worker(line, n, done, go)) for n in range(3)]
        await settle()
        with pytest.raises(BusyError, match="2 requests wait already") as refused:
            async with line.turn(nobody_leaves()):
                pytest.fail("it had no turn")
        # Two seconds are guessed for each of the two that wait and the one itself.
        assert refused.value.retry_after == 6
        go.set()
        await asyncio.gather(*tasks)
        async with line.turn(nobody_leaves()):
            assert line.queued == 0

    run(work())


def test_whoever_leaves_gives_up_the_place() -> None:
    async def work() -> None:
        line, done, go = Line(1, 2, 60), [], asyncio.Event()
        gone = nobody_leaves()
        first = asyncio.create_task(worker(line, 0, done, go))
        leaving = asyncio.create_task(worker(line, 1, done, go, gone))
        last = asyncio.create_task(worker(line, 2, done, go))
        await settle()
        gone.set_result(None)
        with pytest.raises(LeftError):
            await leaving
        assert line.queued == 1
        go.set()
        await asyncio.gather(first, last)
        assert done == [0, 2]

    run(work())


def test_leaving_at_the_moment_of_the_turn_passes_it_on() -> None:
    async def work() -> None:
        line, done, go = Line(1, 3, 60), [], asyncio.Event()
        gone = nobody_leaves()
        first = asyncio.create_task(worker(line, 0, done, go))
        leaving = asyncio.create_task(worker(line, 1, done, go, gone))
        last = asyncio.create_task(worker(line, 2, done, go))
        await settle()
        go.set()
        gone.set_result(None)
        await asyncio.gather(first, last)
        with pytest.raises(LeftError):
            await leaving
        async with line.turn(nobody_leaves()):
            pass

    run(work())


def test_patience_ends() -> None:
    async def work() -> None:
        line, done, go = Line(1, 2, 0.05), [], asyncio.Event()
        first = asyncio.create_task(worker(line, 0, done, go))
        await settle()
        with pytest.raises(BusyError, match="no turn came within"):
            async with line.turn(nobody_leaves()):
                pytest.fail("it had no turn")
        assert line.queued == 0
        go.set()
        await first

    run(work())


def test_an_error_or_a_cancelled_request_frees_its_place() -> None:
    async def work() -> None:
        line = Line(1, 2, 60)
        with pytest.raises(ZeroDivisionError):
            async with line.turn(nobody_leaves()):
                raise ZeroDivisionError
        done: list[int] = []
        go = asyncio.Event()
        first = asyncio.create_task(worker(line, 0, done, go))
        waiting = asyncio.create_task(worker(line, 1, done, go))
        await settle()
        waiting.cancel()
        first.cancel()
        await asyncio.gather(first, waiting, return_exceptions=True)
        async with line.turn(nobody_leaves()):
            assert line.queued == 0

    run(work())
