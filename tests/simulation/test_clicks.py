"""The simulated annotator: where clicks land, how often, and what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from dualclickmed.simulation import clicks
from dualclickmed.simulation.clicks import Draws, balanced, boundary_attenuated, realistic, uniform_error
from dualclickmed.training.samples import Samples
from scipy import ndimage, stats

from tests.support.recipes import RECIPE

STRATEGIES = (boundary_attenuated, balanced, uniform_error, realistic)


def seeded(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def ball(size: int, centre: tuple[int, int, int], radius: float) -> torch.Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij"), dim=-1)
    return (grid - torch.tensor(centre)).float().norm(dim=-1) <= radius


def sure(mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, 8.0, -8.0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clicks_lie_in_the_error_and_carry_the_truth(strategy) -> None:
    truth = torch.stack([ball(20, (10, 10, 6), 5), ball(20, (6, 10, 10), 4)])
    prediction = torch.stack([ball(20, (10, 10, 11), 5), torch.zeros(20, 20, 20, dtype=torch.bool)])
    found = strategy(sure(prediction), truth, torch.ones_like(truth), 40, seeded())
    wrong = truth != prediction
    for sample in range(2):
        z, y, x = found.points[sample].T
        assert wrong[sample, z, y, x].all()
        assert (found.labels[sample] == truth[sample, z, y, x].long()).all()
    # Nothing is predicted in the second sample, so every error is a missed voxel.
    assert (found.labels[1] == 1).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_perfect_sample_gets_padding_and_does_not_disturb_the_other(strategy) -> None:
    truth = torch.stack([ball(16, (8, 8, 8), 4), ball(16, (5, 5, 5), 3)])
    prediction = torch.stack([truth[0], torch.zeros_like(truth[1])])
    found = strategy(sure(prediction), truth, torch.ones_like(truth), 6, seeded())
    assert (found.labels[0] == clicks.PADDING_LABEL).all()
    assert (found.labels[1] == 1).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_click_outside_the_image(strategy) -> None:
    truth = torch.ones(1, 12, 12, 12, dtype=torch.bool)
    valid = torch.zeros_like(truth)
    valid[:, :, :, :3] = True
    found = strategy(torch.full(truth.shape, -3.0), truth, valid, 200, seeded())
    assert found.points[..., 2].max() <= 2


def test_boundary_attenuated_clicks_are_the_highest_of_the_filtered_error() -> None:
    rng = np.random.default_rng(3)
    truth = torch.from_numpy(ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), 2) > 0.05)
    wrong = truth.numpy()
    filtered = ndimage.gaussian_filter(wrong.astype(np.float64), 1.0, mode="constant", truncate=12) * wrong
    lowest = np.sort(filtered.ravel())[-clicks.ATTENUATION_TOP]
    many = truth[None].expand(800, 24, 24, 24)
    found = boundary_attenuated(torch.full(many.shape, -1.0), many, torch.ones_like(many), 6, seeded())
    z, y, x = found.points.reshape(-1, 3).T.numpy()
    assert filtered[z, y, x].min() >= lowest - 1e-6
    hits = np.unique(np.ravel_multi_index((z, y, x), wrong.shape), return_counts=True)[1]
    assert len(hits) == clicks.ATTENUATION_TOP
    assert stats.chisquare(hits).pvalue > 1e-4


CUBE = torch.zeros(64, 64, 64, dtype=torch.bool)
CUBE[14:50, 14:50, 14:50] = True


@pytest.mark.parametrize(
    ("truth", "middle"), [(CUBE, 31.5), (ball(40, (19, 19, 19), 12), 19.0), (ball(24, (11, 11, 11), 5), 11.0)]
)
def test_boundary_attenuated_clicks_are_spread_about_the_middle_of_a_large_error(truth, middle) -> None:
    rows, each = 300, 6
    many = truth[None].expand(rows, *truth.shape)
    found = boundary_attenuated(
        torch.full((1, *truth.shape), -1.0).expand_as(many), many, torch.ones_like(many), each, seeded(2)
    )
    points = found.points.reshape(-1, 3).double()
    spread = points.std(dim=0) / (rows * each) ** 0.5
    assert ((points.mean(dim=0) - middle).abs() < 4 * spread + 1e-9).all()
    filtered = ndimage.gaussian_filter(truth.double().numpy(), 1.0, mode="constant", truncate=12)
    z, y, x = found.points.reshape(-1, 3).T.numpy()
    highest = np.sort(filtered.ravel())[-clicks.ATTENUATION_TOP]
    assert filtered[z, y, x].min() >= highest * (1 - 2 * clicks.ATTENUATION_EQUAL)
    depth = ndimage.distance_transform_edt(np.pad(truth.numpy(), 1))[1:-1, 1:-1, 1:-1]
    # Where the map is flat, every depth from there on is as good as another.
    assert depth[z, y, x].min() >= min(4.5, 0.5 * depth.max())
    deep = truth & torch.from_numpy(filtered >= highest * (1 - clicks.ATTENUATION_EQUAL))
    assert depth[z, y, x].mean() == pytest.approx(depth[deep.numpy()].mean(), rel=0.05)


def test_boundary_attenuated_clicks_on_generated_objects_have_no_favourite_side() -> None:
    recipe = dataclasses.replace(RECIPE["global"], scenes=3)
    batch = Samples(recipe, seed=5)[0].batch
    assert batch is not None
    wrong = batch.truth & batch.valid
    rows = 60
    for truth in wrong:
        many = truth[None].expand(rows, *truth.shape)
        nothing = torch.full((1, *truth.shape), -1.0).expand_as(many)
        points = boundary_attenuated(nothing, many, torch.ones_like(many), 6, seeded(4)).points
        filtered = ndimage.gaussian_filter(truth.double().numpy(), 1.0, mode="constant", truncate=12)
        filtered *= truth.numpy()
        top = np.sort(filtered.ravel())[-clicks.ATTENUATION_TOP] * (1 - clicks.ATTENUATION_EQUAL)
        middle = np.argwhere((filtered >= top) & (filtered > 0)).mean(axis=0)
        at = points.reshape(-1, 3).double().numpy()
        assert (np.abs(at.mean(axis=0) - middle) < 4.5 * at.std(axis=0) / len(at) ** 0.5 + 0.01).all()


@pytest.mark.parametrize("strategy", [boundary_attenuated, uniform_error])
def test_clicks_of_one_draw_are_distinct_where_there_are_enough_voxels(strategy) -> None:
    truth = torch.zeros(4, 12, 12, 12, dtype=torch.bool)
    truth[0, 5, 5, 3:9] = True  # just six
    truth[1, 5, 5, 3:7] = True  # too few
    truth[2, 2:10, 2:10, 2:10] = True
    truth[3, 4:6, 4:6, 4:6] = True
    for seed in range(20):
        found = strategy(torch.full(truth.shape, -1.0), truth, torch.ones_like(truth), 6, seeded(seed))
        different = [len({tuple(p) for p in points.tolist()}) for points in found.points]
        assert different[0] == different[2] == different[3] == 6 and different[1] <= 4
        assert (found.labels == 1).all()


def test_draws_without_putting_back_are_uniform() -> None:
    rows, total = 20_000, 5
    draw = torch.rand((rows, 3), generator=torch.Generator().manual_seed(3))
    ranks = clicks._distinct(draw, torch.full((rows, 1), total, dtype=torch.int32))
    assert int(ranks.min()) == 0 and int(ranks.max()) == total - 1
    orders = (ranks * torch.tensor([25, 5, 1])).sum(dim=1).numpy()
    counts = np.unique(orders, return_counts=True)[1]
    # Every ordered choice of three of five, and no other.
    assert len(counts) == 5 * 4 * 3
    assert stats.chisquare(counts).pvalue > 1e-3


def test_boundary_attenuated_clicks_lie_deeper_than_uniform_ones() -> None:
    truth = ball(32, (16, 16, 16), 9)[None]
    nothing, valid = torch.full(truth.shape, -1.0), torch.ones_like(truth)
    depth = torch.from_numpy(ndimage.distance_transform_edt(truth[0].numpy()))

    def mean_depth(strategy) -> float:
        z, y, x = strategy(nothing, truth, valid, 3000, seeded(1)).points[0].T
        return float(depth[z, y, x].mean())

    # From a depth of four of the nine voxels on, every voxel is as likely as another.
    assert mean_depth(boundary_attenuated) > 2 * mean_depth(uniform_error)


def test_a_small_error_gets_its_click_inside_it() -> None:
    truth = torch.zeros(1, 10, 10, 10, dtype=torch.bool)
    truth[0, 4, 5, 6] = True
    found = boundary_attenuated(torch.full(truth.shape, -1.0), truth, torch.ones_like(truth), 20, seeded())
    assert (found.points == torch.tensor([4, 5, 6])).all()


def regions() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and truth with false positives in plane 0, false negatives in plane 1 and confusion in plane
    2.
    """
    logits = torch.full((1, 4, 10, 10), -5.0)
    truth = torch.zeros(1, 4, 10, 10, dtype=torch.bool)
    logits[0, 0] = 5.0
    truth[0, 1] = True
    logits[0, 2] = torch.linspace(-0.05, 0.05, 100).reshape(10, 10)
    truth[0, 2] = logits[0, 2] > 0
    return logits, truth, torch.ones_like(truth)


def test_balanced_shares_are_the_papers() -> None:
    found = balanced(*regions(), 6000, seeded(5))
    counts = np.bincount(found.points[0, :, 0].numpy(), minlength=4)
    assert counts[3] == 0
    assert stats.chisquare(counts[:3], np.array(clicks.BALANCED_SHARES) * 6000).pvalue > 1e-3


def test_the_share_of_an_empty_region_goes_to_the_others() -> None:
    logits, truth, valid = regions()
    logits[0, 2], truth[0, 2] = -5.0, False
    counts = np.bincount(balanced(logits, truth, valid, 6000, seeded(6)).points[0, :, 0].numpy(), minlength=4)
    assert counts[2] == 0
    assert stats.chisquare(counts[:2], np.array([1000, 5000])).pvalue > 1e-3


def test_confused_means_near_one_half() -> None:
    probabilities = torch.tensor([0.39, 0.41, 0.5, 0.59, 0.61])
    logits = torch.logit(probabilities).reshape(1, 1, 1, 5)
    truth = probabilities.reshape(1, 1, 1, 5) > 0.5
    found = balanced(logits, truth, torch.ones_like(truth), 300, seeded(7))
    assert sorted(set(found.points[0, :, 2].tolist())) == [1, 2, 3]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_generator_gives_the_same_clicks(strategy) -> None:
    first = strategy(*regions(), 9, seeded(2))
    second = strategy(*regions(), 9, seeded(2))
    assert torch.equal(first.points, second.points) and torch.equal(first.labels, second.labels)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_halves_of_a_batch_draw_what_the_whole_draws(strategy) -> None:
    torch.manual_seed(3)
    logits = torch.randn(4, 12, 12, 12) * 2
    truth, valid = torch.randn(4, 12, 12, 12) > 0, torch.rand(4, 12, 12, 12) > 0.2
    whole = strategy(logits, truth, valid, 7, seeded(4))
    for first in (0, 2):
        rows = slice(first, first + 2)
        draws = Draws(torch.Generator().manual_seed(4), first, 4)
        half = strategy(logits[rows], truth[rows], valid[rows], 7, draws)
        assert torch.equal(half.points, whole.points[rows])
        assert torch.equal(half.labels, whole.labels[rows])
    assert not torch.equal(whole.points[0], whole.points[1])


def test_realistic_clicks_scatter_about_the_middle_of_the_largest_error() -> None:
    large, small = ball(40, (20, 20, 14), 9), ball(40, (20, 20, 34), 3)
    truth = (large | small)[None]
    found = realistic(torch.full(truth.shape, -1.0), truth, torch.ones_like(truth), 400, seeded(8))
    z, y, x = found.points[0].T
    assert bool(large[z, y, x].all())
    away = (found.points[0] - torch.tensor([20, 20, 14])).float()
    # A third of the depth of about ten voxels along each axis, cut off by the piece's surface.
    assert abs(float(away.mean())) < 0.5
    assert 2.0 < float(away.std()) < 4.0


def test_realistic_clicks_know_the_pieces_of_a_line_with_gaps() -> None:
    truth = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool).reshape(1, 1, 1, 6)
    found = realistic(torch.full(truth.shape, -1.0), truth, torch.ones_like(truth), 50, seeded(3))
    assert set(found.points[0, :, 2].tolist()) <= {2, 3}
    assert set(found.labels[0].tolist()) == {1}
