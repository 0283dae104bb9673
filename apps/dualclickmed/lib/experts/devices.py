"""The devices of this machine and their names."""

from __future__ import annotations

import re

import torch

from ..errors import UserError

CUDA = r"cuda(:\d{1,3})?"


def resolved_device(name: str) -> str:
    """The device that a name stands for: "auto" is the first GPU if there is one, else the CPU.

    Raises:
        UserError: the name is unknown, or that GPU is not there.
    """
    found = gpus()
    if name == "cpu" or (name == "auto" and not found):
        return "cpu"
    if name != "auto" and not re.fullmatch(CUDA, name):
        raise UserError(f"The device must be auto, cpu, cuda or cuda:N, but it is {name!r}.")
    wanted = name if ":" in name else "cuda:0"
    if wanted not in found:
        raise UserError(
            f"The device {name!r} is not there; GPUs that PyTorch can use here: {', '.join(found) or 'none'}."
        )
    return wanted


def gpus() -> list[str]:
    """The GPUs that PyTorch can use here."""
    return [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
