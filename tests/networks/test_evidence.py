"""Intensity evidence: signs, bounds and independence of a batch's members."""

from __future__ import annotations

import torch
from dualclickmed.networks.evidence import FLOOR, LIMIT, box_evidence
from dualclickmed.networks.layers import centre_coordinates
from dualclickmed.networks.local_network import (
    INTENSITY_WIDTHS,
    PRIOR_REACH,
    PRIOR_WIDTH,
    _alike,
    _connected,
    _grown,
    _nearby,
)

RADIUS = centre_coordinates((32, 32, 32))[3]


def sphere(inside: float, outside: float) -> torch.Tensor:
    return torch.where(RADIUS * 1.8 < 1, inside, outside)[None, None]


def test_values_of_the_object_are_evidence_for_it_whichever_is_brighter() -> None:
    for inside, outside in ((1.5, -0.5), (-1.0, 0.8)):
        evidence = box_evidence(sphere(inside, outside), RADIUS)[0, 0]
        assert float(evidence[16, 16, 16]) == 1.0
        assert float(evidence[1, 1, 1]) == -1.0
        # The same value counts the same wherever it lies.
        assert evidence[RADIUS * 1.8 < 1].unique().numel() == 1


def test_an_even_image_says_nothing() -> None:
    evidence = box_evidence(torch.full((1, 1, 32, 32, 32), 0.3), RADIUS)
    assert float(evidence.abs().max()) < 1e-5


def test_the_ratio_is_that_of_the_smoothed_histograms() -> None:
    """Two values far apart; a known share of the surroundings has the object's value."""
    image = sphere(2.0, -1.0)
    surroundings = RADIUS * 1.8 > 1.15
    chosen = surroundings & (torch.rand(RADIUS.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
    image[0, 0][chosen] = 2.0
    share = float(chosen.sum() / surroundings.sum())
    evidence = float(box_evidence(image, RADIUS)[0, 0, 16, 16, 16])
    # The object's own histogram is one smoothed peak; the surroundings hold the same peak `share` times.
    peak = box_peak()
    wanted = torch.log(
        torch.tensor(((1 - FLOOR) * peak + FLOOR / 64) / ((1 - FLOOR) * peak * share + FLOOR / 64))
    )
    assert abs(evidence * LIMIT - float(wanted)) < 0.02


def box_peak() -> float:
    offsets = torch.arange(-20, 21).float()
    kernel = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    return float(kernel[20] / kernel.sum())


def test_members_of_a_batch_do_not_mix_and_no_gradient_flows() -> None:
    torch.manual_seed(1)
    batch = torch.randn(3, 1, 32, 32, 32, requires_grad=True)
    together = box_evidence(batch, RADIUS)
    # But for rounding: a processor may sum the histogram of one region in another order than those of three.
    torch.testing.assert_close(together[1:2], box_evidence(batch[1:2], RADIUS), rtol=0, atol=1e-6)
    assert not together.requires_grad
    assert float(together.abs().max()) <= 1.0


def test_intensities_like_those_at_a_click() -> None:
    means = torch.full((1, 1, 8, 8, 8), 0.2)
    means[0, 0, 4:] = 0.8
    points = torch.tensor([[[0.2, 0.5, 0.5], [0.8, 0.5, 0.5]]])
    foreground, background = _alike(points, torch.tensor([[1, 0]]), means)[0, :2]
    assert torch.allclose(foreground[:3], torch.ones(3, 8, 8))
    assert torch.allclose(background[5:], torch.ones(3, 8, 8))
    apart = torch.exp(torch.tensor(-0.5 * (0.6 / INTENSITY_WIDTHS[0]) ** 2))
    assert torch.allclose(foreground[5:], apart.expand(3, 8, 8), atol=1e-6)
    assert float(_alike(points, torch.tensor([[1, -1]]), means)[0, 1].max()) == 0


def test_the_first_suggestion_is_near_the_click_and_like_it() -> None:
    means = torch.full((1, 1, 16, 16, 16), 0.2)
    means[0, 0, :, :, 8:] = 0.5
    click = torch.tensor([[[4.5 / 16, 8.5 / 16, 3.5 / 16]]])
    found = _nearby(click, torch.tensor([[1]]), means, fold=2)[0, 0]
    assert float(found[4, 8, 3]) == 1.0
    # Three cells of two voxels away: six voxels.
    assert abs(float(found[4, 8, 6]) - float(torch.exp(torch.tensor(-0.5 * (6 / PRIOR_REACH) ** 2)))) < 1e-6
    other = torch.exp(torch.tensor(-0.5 * (12 / PRIOR_REACH) ** 2 - 0.5 * (0.3 / PRIOR_WIDTH) ** 2))
    assert abs(float(found[4, 8, 9]) - float(other)) < 1e-6
    assert float(_nearby(click, torch.tensor([[0]]), means, fold=2).max()) == 0


def test_connectedness_follows_an_even_object_to_its_end_and_stops_at_a_wall() -> None:
    """A U-shaped tunnel of one intensity: both arms are reached, an equal island is not."""
    means = torch.full((1, 1, 32, 32, 32), 0.9)
    tunnel = torch.zeros(32, 32, 32, dtype=torch.bool)
    tunnel[4:8, 4:8, 4:20] = tunnel[4:8, 4:28, 16:20] = tunnel[4:8, 24:28, 4:20] = True
    island = torch.zeros_like(tunnel)
    island[20:24, 20:24, 4:8] = True
    means[0, 0][tunnel | island] = 0.3
    click = torch.tensor([[[6.5 / 32, 6.5 / 32, 6.5 / 32]]])
    reached = _connected(click, torch.tensor([[1]]), means)[0]
    assert reached.shape[0] == 2 * len(INTENSITY_WIDTHS)
    assert float(reached[0, 6, 26, 6]) > 0.99
    assert float(reached[0, 22, 22, 6]) < 0.01
    assert float(reached[1].max()) == 0
    # The best path between two tissues is as bad as its worst step.
    assert float(_alike(click, torch.tensor([[1]]), means)[0, 0, 22, 22, 6]) > 0.99


def test_growing_is_repeated_pooling_under_a_bound() -> None:
    torch.manual_seed(3)
    like = torch.nn.functional.avg_pool3d(torch.rand(1, 1, 20, 22, 18), 3, 1)[0, 0]
    start = torch.zeros_like(like)
    start[2, 3, 4] = like[2, 3, 4]
    for steps in (1, 5, 40):
        expected = start[None, None]
        for _ in range(steps):
            wide = torch.nn.functional.max_pool3d(expected, 3, stride=1, padding=1)
            expected = torch.maximum(expected, torch.minimum(wide, like))
        assert torch.equal(_grown(start, like, steps), expected[0, 0])
