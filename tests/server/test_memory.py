"""A GPU whose memory does not suffice."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from dualclickmed.configs.options import ServerOptions
from dualclickmed.infers.served_experts import ServedExperts


class Entry:
    nbytes = 10


@pytest.fixture
def experts(monkeypatch: pytest.MonkeyPatch) -> ServedExperts:
    """Its expert is the name of the device."""
    made = ServedExperts(ServerOptions())
    monkeypatch.setattr(made, "_expert", lambda device: device)
    return made


def fails(times: int, asked: list[str]) -> Any:
    """Work that does not fit into a GPU's memory the first `times` times."""

    def work(expert: str, device: str) -> str:
        assert expert == device
        asked.append(device)
        if device != "cpu" and len(asked) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return f"done on {device}"

    return work


def test_caches_are_emptied_first(experts: ServedExperts) -> None:
    experts._cache.get("an image", Entry)
    asked: list[str] = []
    assert experts.compute(fails(1, asked), "cuda:0") == "done on cuda:0"
    assert asked == ["cuda:0", "cuda:0"]
    assert experts._cache.nbytes == 0


def test_then_the_cpu_computes_and_a_warning_says_so(
    experts: ServedExperts, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    with caplog.at_level(logging.WARNING):
        assert experts.compute(fails(9, asked), "cuda:0") == "done on cpu"
    assert asked == ["cuda:0", "cuda:0", "cpu"]
    assert "The memory of cuda:0 does not suffice: computed on the CPU" in caplog.text


def test_the_next_request_tries_the_gpu_again(experts: ServedExperts) -> None:
    experts.compute(fails(9, []), "cuda:0")
    assert experts.compute(fails(0, []), "cuda:0") == "done on cuda:0"


def test_other_errors_stay_what_they_are(experts: ServedExperts) -> None:
    def work(expert: str, device: str) -> None:
        raise RuntimeError("CUDA error: device-side assert")

    with pytest.raises(RuntimeError, match="device-side assert"):
        experts.compute(work, "cuda:0")
