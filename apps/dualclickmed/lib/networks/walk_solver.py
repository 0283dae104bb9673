"""Conjugate gradients for random walks on a grid, of the network's inputs and of the strategy `fused`.

A walker steps to face neighbours and may stop at every voxel. The probability that it stops as foreground
solves a sparse linear system (Grady 2005, "Multilabel random walker image segmentation using prior models"),
well conditioned by what stops walkers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_LEAST = 1e-20


def solve_walks(
    links: Sequence[Tensor],
    stop: Tensor,
    stopped: Tensor,
    first: Tensor,
    *,
    most_steps: int,
    enough: float | None = None,
) -> Tensor:
    """Where walks end, by conjugate gradients with the diagonal as preconditioner.

    Args:
        links: along each axis (z, y, x) how readily a walker steps to the next voxel, (B, D, H, W) with zeros
            at the far face; the N systems of a sample share them.
        stop: (B, N, D, H, W) how readily it stops at a voxel; above 0.
        stopped: (B, N, D, H, W) how readily it stops there as foreground.
        first: (B, N, D, H, W) the solution from which the solver starts.
        most_steps: of the solver; each carries what is known one voxel further.
        enough: squared residual, weighted by the inverse diagonal, at which all systems are solved; None to
            take all steps, so that no sample's solution depends on others of its batch.

    Returns:
        (B, N, D, H, W) float32.
    """
    # Neighbours are a fixed number of places apart in flat rows, where operations are fastest.
    _, _, depth, height, width = first.shape
    steps = [
        (link.flatten(1)[:, None, : link[0].numel() - apart], apart)
        for link, apart in zip(links, (height * width, width, 1), strict=True)
    ]
    diagonal, x = stop.flatten(2).clone(), first.flatten(2).clone()
    for link, apart in steps:
        diagonal[..., :-apart] += link
        diagonal[..., apart:] += link

    def system(x: Tensor) -> Tensor:
        result = diagonal * x
        for link, apart in steps:
            result[..., :-apart].addcmul_(link, x[..., apart:], value=-1)
            result[..., apart:].addcmul_(link, x[..., :-apart], value=-1)
        return result

    def product(a: Tensor, b: Tensor) -> Tensor:
        # Slice by slice, so that rounding does not depend on how many threads there are.
        return (a * b).unflatten(-1, (depth, -1)).sum(dim=-1).sum(dim=-1, keepdim=True)

    inverse = 1 / diagonal
    residual = stopped.flatten(2) - system(x)
    direction = inverse * residual
    size = product(residual, direction)
    for _ in range(most_steps):
        if enough is not None and bool((size <= enough).all()):
            break
        applied = system(direction)
        length = size / product(direction, applied).clamp_min(_LEAST)
        x.addcmul_(length, direction)
        residual.addcmul_(length, applied, value=-1)
        scaled = inverse * residual
        previous, size = size, product(residual, scaled)
        direction = scaled.addcmul_(direction, size / previous.clamp_min(_LEAST))
    return x.view_as(first)
