from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import torch
from dualclickmed.experts.prediction import (
    Prediction,
    enclosing_region,
    merge,
    merged_labels_at,
    paste_object,
    within,
)
from dualclickmed.imaging.geometry import Box, Roi, paste_from_grid
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPE = (9, 11, 13)


def full(prediction: Prediction, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    values = np.full(shape, -np.inf, dtype=np.float32)
    values[prediction.region] = prediction.logits
    return values


def random_prediction(rng: np.random.Generator, levels: int = 0) -> Prediction:
    lo = [int(rng.integers(0, n)) for n in SHAPE]
    hi = [int(rng.integers(a + 1, n + 1)) for a, n in zip(lo, SHAPE, strict=True)]
    size = [b - a for a, b in zip(lo, hi, strict=True)]
    logits = rng.integers(-levels, levels + 1, size) if levels else rng.normal(size=size)
    z, y, x = (slice(a, b) for a, b in zip(lo, hi, strict=True))
    return Prediction((z, y, x), logits.astype(np.float32))


def test_trimming_keeps_the_object_and_nothing_else():
    logits = np.full((4, 5, 6), -1, dtype=np.float32)
    logits[1, 2, 3], logits[2, 2, 4] = 2, 3
    trimmed = Prediction((slice(2, 6), slice(0, 5), slice(7, 13)), logits).trimmed()
    assert trimmed.region == (slice(3, 5), slice(2, 3), slice(10, 12))
    np.testing.assert_array_equal(trimmed.logits, [[[2, -1]], [[-1, 3]]])


def test_an_empty_object_is_nowhere():
    empty = Prediction((slice(2, 6), slice(0, 5), slice(7, 13)), np.zeros((4, 5, 6), np.float32)).trimmed()
    assert empty.nbytes == 0
    assert not merge(SHAPE, [(1, empty)]).any()
    assert empty.at(np.asarray([(2, 2, 8)])).tolist() == [-np.inf]


def test_at_reads_inside_and_gives_minus_infinity_outside():
    logits = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    prediction = Prediction((slice(3, 5), slice(0, 2), slice(6, 8)), logits)
    points = np.asarray([(3, 0, 6), (4, 1, 7), (4, 0, 7), (5, 0, 6), (2, 0, 6), (3, 0, 8)])
    assert prediction.at(points).tolist() == [0, 7, 5, -np.inf, -np.inf, -np.inf]


@given(
    seed=st.integers(0, 2**32 - 1),
    lo=st.tuples(*[st.floats(-6, 8)] * 3),
    sides=st.tuples(*[st.floats(1, 30)] * 3),
    positives=st.integers(1, 6),
)
@settings(max_examples=60)
def test_pasting_only_the_object_gives_the_same_object(seed, lo, sides, positives):
    rng = np.random.default_rng(seed)
    grid = (6, 7, 8)
    box = Box(lo, tuple(a + s for a, s in zip(lo, sides, strict=True)))
    logits = -torch.from_numpy(rng.random(grid)).float()
    logits.view(-1)[rng.integers(0, logits.numel(), positives)] *= -2
    region, values = paste_from_grid(logits, Roi(box, grid), SHAPE)
    expected = full(Prediction(region, values.numpy()))
    pasted = full(paste_object(logits, Roi(box, grid), SHAPE))
    # Rounding may move a value across zero only where it is zero but for rounding.
    assert not ((expected > 1e-5) & (pasted <= 0)).any()
    assert not ((pasted > 1e-5) & (expected <= 0)).any()
    both = (expected > 0) & (pasted > 0)
    np.testing.assert_allclose(pasted[both], expected[both], atol=1e-5)


def test_pasting_reaches_the_ends_of_the_region():
    box = Box((-0.3, 0.7, 2.1), (8.6, 10.3, 12.8))
    region, _ = paste_from_grid(torch.ones(3, 3, 3), Roi(box, (3, 3, 3)), SHAPE)
    pasted = paste_object(torch.ones(3, 3, 3), Roi(box, (3, 3, 3)), SHAPE)
    assert pasted.region == region
    np.testing.assert_array_equal(pasted.logits, 1)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4), levels=st.sampled_from([0, 2]))
def test_a_voxel_takes_the_object_with_the_highest_logit(seed, count, levels):
    rng = np.random.default_rng(seed)
    predictions = [(value + 1, random_prediction(rng, levels)) for value in range(count)]
    stack = np.stack([full(p) for _, p in predictions])
    expected = np.where(stack.max(axis=0) > 0, stack.argmax(axis=0) + 1, 0)
    labels = merge(SHAPE, predictions)
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint8
    points = np.argwhere(np.ones(SHAPE, bool))
    np.testing.assert_array_equal(merged_labels_at(points, predictions), expected.reshape(-1))


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 4), levels=st.sampled_from([0, 2]))
def test_handicaps_decide_between_objects_and_never_whether_there_is_one(seed, count, levels):
    rng = np.random.default_rng(seed)
    predictions = [
        (value + 1, replace(random_prediction(rng, levels), handicap=float(rng.choice([0, 0.3, 1, 9]))))
        for value in range(count)
    ]
    logits = np.stack([full(p) for _, p in predictions])
    handicaps = np.asarray([p.handicap for _, p in predictions], np.float32)
    claims = np.where(logits > 0, logits - handicaps[:, None, None, None], -np.inf)
    expected = np.where((logits > 0).any(axis=0), claims.argmax(axis=0) + 1, 0)
    np.testing.assert_array_equal(merge(SHAPE, predictions), expected)
    points = np.argwhere(np.ones(SHAPE, bool))
    np.testing.assert_array_equal(merged_labels_at(points, predictions), expected.reshape(-1))
    assert all(p.trimmed().handicap == p.handicap for _, p in predictions)


def test_overlaps_do_not_depend_on_the_order():
    rng = np.random.default_rng(5)
    predictions = [(value + 1, random_prediction(rng)) for value in range(4)]
    results = [merge(SHAPE, order) for order in permutations(predictions)]
    assert len(np.unique(results[0])) > 3
    for result in results:
        np.testing.assert_array_equal(result, results[0])


def test_regions_enclose_and_count_from_one_another():
    a = (slice(2, 4), slice(5, 6), slice(0, 9))
    b = (slice(3, 7), slice(1, 2), slice(4, 5))
    nothing = (slice(0, 0), slice(0, 3), slice(0, 3))
    assert enclosing_region([a, nothing, b]) == (slice(2, 7), slice(1, 6), slice(0, 9))
    assert enclosing_region([nothing]) == (slice(0, 0),) * 3
    assert within(b, (slice(2, 7), slice(1, 6), slice(0, 9))) == (slice(1, 5), slice(0, 1), slice(4, 5))
