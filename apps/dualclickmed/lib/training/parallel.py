"""The processes of one training: one, or as many as torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Team:
    """This process among all of a training.

    Gradients are summed after the backward passes and not during them, as DistributedDataParallel would: one
    step has several passes through one embedding, and the networks have two entrances, not one.

    Attributes:
        rank, world: number of this process, and of all.
        device: what this process computes on.
    """

    rank: int
    world: int
    device: torch.device

    @classmethod
    def joined(cls, device: str) -> Team:
        """The team that torchrun's environment describes, or a team of one.

        With "cuda" every process takes the GPU of its local rank and NCCL, else gloo.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        chosen = torch.device(device)
        if world == 1:
            return cls(0, 1, chosen)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(chosen)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(dist.get_rank(), world, chosen)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def gathered(self, values: list[float]) -> Tensor:
        """The numbers of every process: (world, len(values)), float64."""
        own = torch.tensor(values, dtype=torch.float64)
        if self.world == 1:
            return own[None]
        own = own.to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own)
        return torch.stack(parts).cpu()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in one message for each type of number."""
        if self.world == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def leave(self) -> None:
        """Close the connections."""
        if self.world > 1:
            dist.destroy_process_group()

    def wait(self) -> None:
        """Until every process has come this far."""
        if self.world > 1:
            dist.barrier()
