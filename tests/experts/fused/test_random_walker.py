from __future__ import annotations

import numpy as np
import pytest
from dualclickmed.experts.fused.random_walker import edge_weights, solve

RNG = np.random.default_rng(3)


def random_problem(shape=(4, 5, 3)):
    image = RNG.random(shape, dtype=np.float32)
    prior = RNG.random(shape, dtype=np.float32)
    trust = RNG.uniform(0.05, 0.5, shape).astype(np.float32)
    return edge_weights(image, (1.0, 2.0, 1.0), 0.3, 1e-3), prior, trust


def by_matrix(links, prior, trust, seeds):
    """The definition, cell by cell: a walker's report is the mean of its neighbours' and its prior's."""
    shape = prior.shape
    number = np.arange(prior.size).reshape(shape)
    matrix, right = np.diag(trust.ravel().astype(np.float64)), (trust * prior).ravel().astype(np.float64)
    for axis, link in enumerate(links):
        first = np.take(number, range(shape[axis] - 1), axis).ravel()
        second = np.take(number, range(1, shape[axis]), axis).ravel()
        for a, b, weight in zip(first, second, link.ravel(), strict=True):
            matrix[a, a] += weight
            matrix[b, b] += weight
            matrix[a, b] -= weight
            matrix[b, a] -= weight
    for cell, value in seeds:
        row = number[cell]
        matrix[row], right[row] = 0, value
        matrix[row, row] = 1
    return np.linalg.solve(matrix, right).reshape(shape)


@pytest.mark.parametrize("seeds", [[], [((1, 2, 1), 1.0), ((3, 0, 0), 0.0)]])
def test_the_walk_solves_its_linear_system(seeds):
    links, prior, trust = random_problem()
    expected = by_matrix(links, prior, trust, seeds)
    assert np.abs(solve(links, prior, trust, seeds) - expected).max() < 0.01


def test_an_even_prior_stays_as_it_is():
    links, prior, trust = random_problem()
    assert solve(links, np.full_like(prior, 0.3), trust, []) == pytest.approx(0.3, abs=1e-5)


def test_the_inputs_are_not_changed():
    links, prior, trust = random_problem()
    copies = [a.copy() for a in (*links, prior, trust)]
    solve(links, prior, trust, [((0, 0, 0), 1.0)])
    for now, before in zip((*links, prior, trust), copies, strict=True):
        np.testing.assert_array_equal(now, before)


def test_a_seed_fills_its_even_part_and_stops_at_an_edge():
    image = np.zeros((1, 1, 12), np.float32)
    image[..., 6:] = 1
    prior, trust = np.full_like(image, 0.5), np.full_like(image, 1e-4)
    found = solve(edge_weights(image, (1, 1, 1), 0.1, 1e-6), prior, trust, [((0, 0, 1), 1.0)])
    assert found[0, 0, :6].min() > 0.95
    assert found[0, 0, 6:] == pytest.approx(0.5, abs=0.05)


def test_alike_neighbours_are_linked_by_contrast_and_distance():
    image = np.asarray([[[0.0, 0.2], [0.2, 0.2]]], np.float32)
    z, y, x = edge_weights(image, (1.0, 2.0, 1.0), 0.2, 0.01)
    assert z.shape == (0, 2, 2)
    assert y.ravel() == pytest.approx([(np.exp(-0.5) + 0.01) / 4, 1.01 / 4])
    assert x.ravel() == pytest.approx([np.exp(-0.5) + 0.01, 1.01])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 6, 1), (2, 1, 7)])
def test_flat_grids_are_grids(shape):
    prior = RNG.random(shape, dtype=np.float32)
    links = edge_weights(prior, (1, 1, 1), 0.5, 1e-3)
    trust = np.full_like(prior, 0.2)
    assert np.abs(solve(links, prior, trust, []) - by_matrix(links, prior, trust, [])).max() < 0.01
