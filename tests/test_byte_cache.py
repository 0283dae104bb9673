from __future__ import annotations

import pickle
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from dualclickmed.byte_cache import ByteCache
from dualclickmed.cancellation import Stopped
from hypothesis import given
from hypothesis import strategies as st


@dataclass(frozen=True)
class Block:
    nbytes: int
    name: str = ""


def test_an_entry_is_made_once_and_then_held():
    cache = ByteCache(10)
    made = []
    for _ in range(3):
        entry = cache.get("a", lambda: made.append(1) or Block(4, "first"))
        assert entry == Block(4, "first")
    assert (len(made), cache.nbytes, len(cache)) == (1, 4, 1)


def test_the_least_recently_used_entry_goes_first():
    cache = ByteCache(10)
    for key in "ab":
        cache.get(key, lambda: Block(4))
    cache.get("a", lambda: pytest.fail("a was held"))
    cache.get("c", lambda: Block(4))
    cache.get("a", lambda: pytest.fail("a was used more recently than b"))
    made = []
    cache.get("b", lambda: made.append("b") or Block(4))
    assert made == ["b"]


def test_an_entry_larger_than_the_cache_is_handed_out_and_evicts_nothing():
    cache = ByteCache(10)
    cache.get("small", lambda: Block(8))
    assert cache.get("large", lambda: Block(11, "large")).name == "large"
    assert cache.nbytes == 8
    cache.get("small", lambda: pytest.fail("small was held"))


def test_clear_forgets_everything():
    cache = ByteCache(10)
    cache.get("a", lambda: Block(4, "old"))
    cache.clear()
    assert (cache.nbytes, len(cache)) == (0, 0)
    assert cache.get("a", lambda: Block(4, "new")).name == "new"


@given(
    limit=st.integers(0, 20),
    requests=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12)), max_size=60),
)
def test_it_holds_what_a_plain_least_recently_used_list_would_hold(limit, requests):
    sizes: dict[int, int] = {}
    cache = ByteCache(limit)
    model: OrderedDict[int, int] = OrderedDict()
    for key, size in requests:
        size = sizes.setdefault(key, size)
        made = []
        cache.get(key, lambda size=size, made=made: made.append(1) or Block(size))
        assert bool(made) == (key not in model)
        model[key] = model.pop(key, size)
        if size > limit:
            del model[key]
        while sum(model.values()) > limit:
            model.popitem(last=False)
        assert cache.nbytes == sum(model.values()) <= limit
        assert len(cache) == len(model)


def test_threads_that_ask_together_share_one_making():
    cache = ByteCache(100)
    made = []
    together = threading.Barrier(8)

    def slow() -> Block:
        made.append(threading.get_ident())
        time.sleep(0.05)
        return Block(5, "shared")

    def ask() -> Block:
        together.wait()
        return cache.get("key", slow)

    with ThreadPoolExecutor(8) as pool:
        entries = [f.result() for f in [pool.submit(ask) for _ in range(8)]]
    assert len(made) == 1
    assert all(entry is entries[0] for entry in entries)


def test_other_keys_are_not_held_up_while_one_is_made():
    cache = ByteCache(100)
    asked, release = threading.Event(), threading.Event()

    def slow() -> Block:
        asked.set()
        assert release.wait(10)
        return Block(1)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.get, "slow", slow)
        assert asked.wait(10)
        assert cache.get("quick", lambda: Block(2)).nbytes == 2
        release.set()
        assert waiting.result().nbytes == 1


def test_a_failure_reaches_all_who_wait_and_the_next_one_tries_again():
    cache = ByteCache(100)
    asked, release = threading.Event(), threading.Event()

    def fail() -> Block:
        asked.set()
        assert release.wait(10)
        raise RuntimeError("out of memory")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "key", fail)
        assert asked.wait(10)
        second = pool.submit(cache.get, "key", lambda: pytest.fail("the first is making it"))
        time.sleep(0.05)
        release.set()
        for waiting in (first, second):
            with pytest.raises(RuntimeError, match="out of memory"):
                waiting.result()
    assert cache.get("key", lambda: Block(3, "again")).name == "again"


def test_the_limit_holds_with_many_threads():
    cache = ByteCache(50)
    seen = []

    def ask(number: int) -> None:
        entry = cache.get(number % 13, lambda: Block(7 + number % 13, str(number % 13)))
        assert entry.name == str(number % 13)
        seen.append(cache.nbytes)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(400)))
    assert len(seen) == 400
    assert max(seen) <= 50


def test_what_was_computed_from_one_image_is_dropped_alone() -> None:
    cache = ByteCache(1000)
    for key in (("a", 1), ("a", 2), ("b", 1), "a"):
        cache.get(key, lambda: np.zeros(10, dtype=np.uint8))
    cache.drop("a")
    assert len(cache) == 2 and cache.nbytes == 20


def test_an_entry_whose_making_was_stopped_is_made_by_whoever_waited_for_it() -> None:
    cache = ByteCache(10)
    begun, go = threading.Event(), threading.Event()

    def stopped() -> Block:
        begun.set()
        assert go.wait(20)
        raise Stopped("its user left")

    with ThreadPoolExecutor(2) as several:
        first = several.submit(cache.get, "a", stopped)
        assert begun.wait(20)
        second = several.submit(cache.get, "a", lambda: Block(4, "whole"))
        go.set()
        with pytest.raises(Stopped):
            first.result(20)
        assert second.result(20) == Block(4, "whole")


def test_a_copy_in_another_process_begins_empty() -> None:
    cache = ByteCache(10)
    cache.get("a", lambda: Block(4))
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.max_bytes, copy.nbytes) == (10, 0)
