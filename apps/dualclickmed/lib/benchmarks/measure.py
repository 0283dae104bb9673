"""Time, memory and operations of one piece of work, in a process of its own so that peaks do not mix."""

from __future__ import annotations

import multiprocessing
import re
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ResultT = TypeVar("ResultT")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def in_process(threads: int, function: Callable[..., ResultT], *args: Any) -> ResultT:
    """``function(*args)`` in a fresh process with so many threads; both must be picklable.

    Raises:
        RuntimeError: the process ended without a result or raised; its message is passed on.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, threads, function, args), daemon=True)
    process.start()
    theirs.close()
    try:
        done, value = ours.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(
            f"The process that measured {function.__name__} ended with code {process.exitcode}."
        ) from error
    process.join()
    if not done:
        raise RuntimeError(f"Measuring {function.__name__} failed: {value}")
    return value


def _child(pipe: Connection, threads: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    try:
        answer = (True, function(*args))
    except Exception as error:
        answer = (False, f"{type(error).__name__}: {error}")
    pipe.send(answer)


def least_seconds(
    work: Callable[[], object],
    repeats: int,
    device: str = "cpu",
    before: Callable[[], object] | None = None,
) -> float:
    """Seconds of the fastest of several runs, each after `before`, which is not counted.

    With one thread on a CPU these are seconds of the processor, which other programs hardly change; else
    seconds of the clock.
    """
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    best = float("inf")
    for _ in range(repeats):
        if before is not None:
            before()
        start = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        best = min(best, clock() - start)
    return best


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions, two for each multiply-add."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


def resting_bytes(device: str = "cpu") -> int:
    """Memory of this process now, on a GPU of its tensors."""
    if device != "cpu":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") if _STATUS.exists() else peak_bytes()


def peak_bytes(device: str = "cpu", least: int = 0) -> int:
    """Most memory of this process so far, since `forget_peak` where the system allows.

    Args:
        device: of a GPU, the memory of its tensors.
        least: bytes known to have been held since then. The kernel counts pages in batches, so a peak may
            read some pages less than what it says was held before.
    """
    if device != "cpu":
        return max(least, torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        # Not ru_maxrss: that of a child begins with its parent's.
        return max(least, _status("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return max(least, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def forget_peak(device: str = "cpu") -> None:
    """Let `peak_bytes` begin anew from what is held now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
