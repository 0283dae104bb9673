"""Random walks: the solution of their linear system, and what it means at edges and clicks."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from dualclickmed.networks import walks
from dualclickmed.networks.walks import random_walks
from torch import Tensor

NO_POINTS = torch.zeros(1, 0, 3)
NO_LABELS = torch.zeros(1, 0, dtype=torch.long)


def walked(image: Tensor, logits: Tensor, points: Tensor, labels: Tensor, trust: float) -> Tensor:
    """One walk for each sample, (B, D, H, W)."""
    return random_walks(image, (logits,), (trust,), points, labels)[:, 0]


def solved(image: Tensor, logits: Tensor, clicks: dict[tuple[int, int, int], float], trust: float) -> Tensor:
    """The exact solution, by the full matrix of the system, of one sample (D, H, W)."""
    values = image.double().numpy()
    prior = 1 / (1 + np.exp(-logits.double().numpy()))
    stop = trust * (walks.UNSURE + (1 - walks.UNSURE) * np.abs(2 * prior - 1))
    for clicked, value in clicks.items():
        stop[clicked], prior[clicked] = walks.CERTAIN, value
    steps = [np.abs(np.diff(values, axis=axis)).mean() for axis in range(3)]
    contrast = walks.CONTRAST * np.mean(steps) + 1e-3
    number = np.arange(values.size).reshape(values.shape)
    matrix: npt.NDArray[np.float64] = np.diag(stop.ravel())
    for cell in itertools.product(*(range(n) for n in values.shape)):
        for axis in range(3):
            other = tuple(c + (a == axis) for a, c in enumerate(cell))
            if other[axis] < values.shape[axis]:
                link = np.exp(-0.5 * ((values[cell] - values[other]) / contrast) ** 2) + walks.LEAST_LINK
                a, b = number[cell], number[other]
                matrix[[a, b], [a, b]] += link
                matrix[[a, b], [b, a]] -= link
    found = np.linalg.solve(matrix, (stop * prior).ravel())
    return torch.from_numpy(found.reshape(values.shape))


@pytest.mark.parametrize("trust", [0.03, 0.1, 1.0])
@pytest.mark.parametrize(("steps", "off"), [(200, 1e-4), (walks.STEPS, 0.1)])
def test_it_is_the_solution_of_the_linear_system(
    trust: float, steps: int, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "STEPS", steps)
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(1, 5, 6, 7, generator=generator).cumsum(dim=3)
    logits = 2 * torch.randn(1, 5, 6, 7, generator=generator)
    # Rounded to (1, 2, 3) and (4, 5, 6), the corner; padding has no effect.
    points, labels = torch.tensor([[[1.4, 2, 2.6], [4, 5, 6.2], [0, 0, 0]]]), torch.tensor([[1, 0, -1]])
    # Of two walks with a trust and a prior of their own, over the same links.
    found = random_walks(image, (logits, -logits), (trust, 2 * trust), points, labels)
    assert found.shape == (1, 2, 5, 6, 7) and found.dtype == torch.float32
    clicks = {(1, 2, 3): 1.0, (4, 5, 6): 0.0}
    for walk, prior, weight in zip(found[0], (logits[0], -logits[0]), (trust, 2 * trust), strict=True):
        torch.testing.assert_close(walk.double(), solved(image[0], prior, clicks, weight), atol=off, rtol=0)


def test_an_even_image_without_doubt_keeps_its_prior() -> None:
    logits = torch.full((1, 4, 4, 4), 1.5)
    found = walked(torch.ones(1, 4, 4, 4), logits, NO_POINTS, NO_LABELS, 0.1)
    torch.testing.assert_close(found, torch.sigmoid(logits), atol=1e-5, rtol=0)


def test_a_click_fills_what_is_even_and_stops_at_the_edge() -> None:
    image = torch.zeros(1, 16, 16, 16)
    # Each step of the solver reaches one voxel further: the corners are ten steps from the click.
    image[:, 5:12, 5:12, 4:13] = 1.0
    image += 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    found = walked(
        image, torch.full_like(image, -0.5), torch.tensor([[[8.0, 8, 8]]]), torch.tensor([[1]]), 0.01
    )
    inside = image > 0.5
    assert float(found[inside].min()) > float(found[~inside].max())


def test_a_voxel_that_was_clicked_as_both_is_as_likely_inside_as_not() -> None:
    points, labels = torch.full((1, 2, 3), 2.0), torch.tensor([[1, 0]])
    image, logits = torch.ones(1, 5, 5, 5), torch.full((1, 5, 5, 5), 3.0)
    found = walked(image, logits, points, labels, 0.1)
    expected = solved(image[0], logits[0], {(2, 2, 2): 0.5}, 0.1)
    torch.testing.assert_close(found[0].double(), expected, atol=1e-4, rtol=0)


def test_samples_of_a_batch_are_answered_as_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    image, logits = torch.randn(2, 3, 8, 8, 8, generator=generator)
    points = 7 * torch.rand(3, 2, 3, generator=generator)
    labels = torch.tensor([[1, 0], [2, 1], [-1, -1]])
    together = walked(image, logits, points, labels, 0.1)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(walked(image[one], logits[one], points[one], labels[one], 0.1), together[one])


def test_no_gradient_flows_through_it() -> None:
    logits = torch.zeros(1, 4, 4, 4, requires_grad=True)
    assert not walked(torch.rand(1, 4, 4, 4), logits, NO_POINTS, NO_LABELS, 0.1).requires_grad
