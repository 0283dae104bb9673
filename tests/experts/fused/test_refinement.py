from __future__ import annotations

import itertools

import numpy as np
import pytest
from dualclickmed.experts.fused import refinement
from dualclickmed.experts.fused.refinement import (
    CellClick,
    ClickEvidence,
    Depths,
    RegionFeatures,
    accumulate_click_evidence,
    beyond,
    held_away_from_clicks,
    inscribed_ellipsoid,
    refined,
)
from dualclickmed.imaging.geometry import Box, Roi
from dualclickmed.imaging.volume import from_array
from scipy import ndimage

SIDE = 32
WHOLE = Box((0, 0, 0), (SIDE, SIDE, SIDE))
BOX = Box((6, 6, 6), (26, 26, 26))
GRID = np.stack(np.mgrid[:SIDE, :SIDE, :SIDE], axis=-1)
TRUTH = np.linalg.norm(GRID - 15.5, axis=-1) < 9.5


@pytest.fixture(scope="module")
def features() -> RegionFeatures:
    """A bright ball in noise."""
    noise = np.random.default_rng(0).normal(0, 15, TRUTH.shape)
    return RegionFeatures.of(from_array((80 + 70 * TRUTH + noise).clip(0, 255).astype(np.uint8)), WHOLE)


def ball_logits(centre, radius) -> np.ndarray:
    return (radius - np.linalg.norm(GRID - np.asarray(centre), axis=-1)).astype(np.float32)


def evidence_of(features, clicks, before, box) -> np.ndarray:
    """What clicks say that were given at once."""
    deep = Depths.of(features, before, box)
    return accumulate_click_evidence(
        features, clicks, clicks, deep, ClickEvidence.nothing(features.roi.grid)
    )[0].balance


def corrected(features, opinion, box, clicks, before) -> np.ndarray:
    """Probabilities after clicks that were given at once, before what was there is held."""
    told, _ = accumulate_click_evidence(
        features, clicks, clicks, Depths.of(features, before, box), ClickEvidence.nothing(features.roi.grid)
    )
    return refined(features, opinion, box, clicks, told)


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_displaced_opinion_moves_to_the_edges_the_farther_the_less_sure_it_is(features):
    opinion = ball_logits((17, 13, 17), 8)
    before = dice(opinion > 0, TRUTH)
    assert before < 0.75
    unsure, surer, sure = (dice(refined(features, s * opinion, BOX) > 0.5, TRUTH) for s in (0.3, 0.6, 1))
    assert unsure > 0.99
    assert unsure > surer > sure > before + 0.08


def test_an_object_of_which_the_network_is_half_sure_is_not_walked_away():
    """Noise without edges: the network is less sure of the ball than of what is around it."""
    noise = np.random.default_rng(1).normal(128, 20, TRUTH.shape).clip(0, 255).astype(np.uint8)
    even = RegionFeatures.of(from_array(noise), WHOLE)
    ball = ball_logits((15.5, 15.5, 15.5), 6.5) > 0
    found = refined(even, np.where(ball, np.float32(1.5), np.float32(-4)), Box((9, 9, 9), (23, 23, 23))) > 0.5
    assert dice(found, ball) > 0.8


def test_nothing_is_found_far_outside_the_box(features):
    opinion = np.full(TRUTH.shape, 4, np.float32)
    small = Box((12, 12, 12), (20, 20, 20))
    found = refined(features, opinion, small) > 0.5
    assert found[15, 15, 15]
    assert not found[beyond(features.roi, small) > 1].any()


def test_probabilities_are_probabilities_and_clicks_are_certain(features):
    clicks = [CellClick((3, 3, 3), True), CellClick((15, 15, 15), False)]
    opinion = ball_logits((15, 15, 15), 9)
    found = corrected(features, opinion, BOX, clicks, opinion > 0)
    assert found.min() > -1e-3
    assert found.max() < 1 + 1e-3
    assert found[3, 3, 3] > 0.95
    assert found[15, 15, 15] < 0.05


def test_a_click_corrects_its_surroundings_and_nothing_far_away(features):
    opinion = ball_logits((15, 15, 9), 7)
    before = refined(features, opinion, BOX)
    wrong = [CellClick((15, 15, 23), True)]
    after = corrected(features, opinion, BOX, wrong, before > 0.5)
    near = np.linalg.norm(GRID - np.asarray((15, 15, 23)), axis=-1) < 2.5
    far = np.linalg.norm(GRID - np.asarray((15, 15, 23)), axis=-1) > 20
    # The network says no to all of it; one click takes about half of that back.
    assert (before[near & TRUTH] < 0.5).all() and np.median(after[near & TRUTH]) > 0.47
    assert after[near & TRUTH].mean() > before[near & TRUTH].mean() + 0.2
    assert np.abs(after - before)[far].max() < 0.05


def test_the_order_of_clicks_that_come_at_once_plays_no_part(features):
    clicks = [CellClick((15, 15, 15), True), CellClick((4, 4, 4), False), CellClick((15, 9, 15), True)]
    opinion = ball_logits((15, 15, 12), 7)
    answers = [
        corrected(features, opinion, BOX, order, opinion > 0).tobytes()
        for order in itertools.permutations(clicks)
    ]
    assert len(set(answers)) == 1


def test_a_click_is_heard_in_full_where_it_is_and_not_beyond_its_reach(features):
    nothing = np.zeros(TRUTH.shape, bool)
    found = evidence_of(features, [CellClick((15, 15, 15), True), CellClick((2, 2, 2), False)], nothing, None)
    assert found[15, 15, 15] == pytest.approx(1)
    assert found[2, 2, 2] == pytest.approx(-1)
    # The background click contradicts nothing: it reaches the least depth only.
    away = np.linalg.norm(GRID - 2, axis=-1) > 3 * refinement.LEAST_DEPTH
    assert found[away].min() > -1e-3


def test_a_click_reaches_as_far_as_what_it_contradicts_and_half_way_to_a_rival(features):
    flat = RegionFeatures(
        features.roi, features.step, features.links, np.zeros_like(features.rank), features.kind
    )
    mask = ball_logits((15, 15, 15), 10) > 0

    def width(*rivals: tuple[int, int, int]) -> int:
        clicks = [CellClick((15, 15, 15), False), *(CellClick(r, True) for r in rivals)]
        return int((evidence_of(flat, clicks, mask, None)[15, 15] < -0.5).sum())

    depth = 10.0
    reach = refinement.CLICK_REACH * depth * (2 * np.log(2)) ** 0.25
    assert width() == pytest.approx(2 * reach, abs=2)
    assert width((15, 15, 23)) == pytest.approx(2 * 4 * (2 * np.log(2)) ** 0.25, abs=2)


def test_a_foreground_click_contradicts_only_the_box(features):
    flat = RegionFeatures(
        features.roi, features.step, features.links, np.zeros_like(features.rank), features.kind
    )
    nothing = np.zeros(TRUTH.shape, bool)
    click = [CellClick((15, 15, 15), True)]
    narrow = evidence_of(flat, click, nothing, Box((13, 0, 0), (18, 32, 32)))
    assert (narrow > 0.5).sum() < (evidence_of(flat, click, nothing, None) > 0.5).sum() / 5


def test_earlier_clicks_keep_what_they_said_and_their_kind_bounds_later_ones(features):
    flat = RegionFeatures(
        features.roi, features.step, features.links, np.zeros_like(features.rank), features.kind
    )
    mask = ball_logits((15, 15, 15), 10) > 0
    first, second = CellClick((15, 15, 15), False), CellClick((15, 15, 23), True)
    deep = Depths.of(flat, mask, None)
    one, reaches = accumulate_click_evidence(
        flat, [first], [first], deep, ClickEvidence.nothing(features.roi.grid)
    )
    assert reaches == [(first, pytest.approx(refinement.CLICK_REACH * 10, abs=1))]
    both, reaches = accumulate_click_evidence(flat, [second], [first, second], deep, one)
    np.testing.assert_array_equal(both.back, one.back)
    # The second click agrees with the mask: it reaches the least distance, not the half way of 4.
    assert reaches == [(second, pytest.approx(refinement.CLICK_REACH * refinement.LEAST_DEPTH))]
    assert one.fore.max() == 0


def test_the_mask_before_holds_where_a_click_leaves_doubt_but_not_beside_it(features):
    before = np.where(TRUTH, np.float32(0.9), np.float32(0.1))
    # As near to one half as the hold bridges, and a little farther, on the other side of it.
    doubt = 1 / (1 + np.exp(0.9 * refinement.HELD))
    sure = 1 / (1 + np.exp(1.1 * refinement.HELD))
    click = CellClick((15, 15, 15), False)
    held = held_away_from_clicks(features, np.full_like(before, doubt), before, [(click, 1.0)])
    changed = held_away_from_clicks(features, np.full_like(before, sure), before, [(click, 1.0)])
    far = np.linalg.norm(GRID - 15, axis=-1) > 3 * refinement.HELD_FROM
    assert (far & TRUTH).any()
    np.testing.assert_array_equal(held[far] > 0.5, TRUTH[far])
    assert not (changed[far] > 0.5).any()
    assert held[15, 15, 15] < 0.5
    assert held_away_from_clicks(features, held, before, []) is before


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("reach", [1.5, 3.2])
def test_clicks_without_a_box_change_no_more_far_away_than_near_and_what_is_surest(features, positive, reach):
    """A ball about the click and a slab far from it would change, the slab more surely at larger x."""
    click = CellClick((15, 15, 6), positive)
    # Where the kernel of the click is at least a half.
    radius = refinement.HELD_FROM * reach * (2 * np.log(2)) ** 0.25
    near = np.linalg.norm(GRID - click.cell, axis=-1) <= radius
    slab = GRID[..., 2] >= 20
    logits = np.where(near, np.float32(3), np.float32(-3))
    logits[slab] = 1 + 0.1 * GRID[..., 2][slab]
    side = np.float32(1 if positive else -1)
    before, found = refinement.sigmoid(np.full(TRUTH.shape, -side * 3)), refinement.sigmoid(side * logits)

    free = held_away_from_clicks(features, found, before, [(click, reach)])
    np.testing.assert_array_equal((free > 0.5) == positive, near | slab)
    held = held_away_from_clicks(features, found, before, [(click, reach)], bounded=True)
    changed = (held > 0.5) == positive
    np.testing.assert_array_equal(changed & ~slab, near)
    np.testing.assert_array_equal(held[near], free[near])
    # All cells of a plane are equally sure: as many whole planes as have no more cells than the ball.
    planes = int(near.sum()) // SIDE**2
    assert planes == (0 if reach == 1.5 else 1)
    np.testing.assert_array_equal(changed & slab, GRID[..., 2] >= SIDE - planes)


@pytest.mark.parametrize(
    ("box", "cell", "expected"),
    [
        (Box((2, 2, 2), (6, 6, 6)), (4, 4, 4), 0.0),
        (Box((2, 2, 2), (6, 6, 6)), (5, 5, 5), 0.0),
        (Box((2, 2, 2), (6, 6, 6)), (7, 4, 4), 0.75),
        (Box((2, 2, 2), (6, 6, 6)), (7, 0, 4), 0.75),
        (Box((2, 0, 0), (4, 8, 8)), (0, 4, 4), 1.5),
    ],
)
def test_how_far_a_cell_is_outside_a_box(box, cell, expected):
    assert beyond(Roi(Box((0, 0, 0), (8, 8, 8)), (8, 8, 8)), box)[cell] == pytest.approx(expected)


def test_a_scene_has_one_cell_for_each_voxel_until_the_region_is_large():
    volume = from_array(np.arange(10 * 100 * 20, dtype=np.int32).reshape(10, 100, 20) % 251)
    features = RegionFeatures.of(volume, Box((-3, 0, 2.5), (30, 100, 9.4)))
    assert features.roi == Roi(Box((0, 0, 2), (10, 100, 9)), (10, 64, 7))
    assert features.step == pytest.approx((1, 100 / 64, 1))
    assert features.cell((9, 99, 8)) == (9, 63, 6)
    assert features.cell((0, 50, 2)) == (0, 32, 0)


def test_a_small_object_keeps_its_volume_where_the_image_shows_no_edge():
    prior = np.zeros((9, 9, 9), np.float32)
    prior[2:7, 2:7, 2:7] = 1
    blurred = ndimage.uniform_filter(prior, 3)
    assert (blurred > 0.5).sum() < (prior > 0.5).sum()
    assert (refinement._unshrunk(0.92 * blurred + 0.04, prior) > 0.5).sum() >= (blurred > 0.5).sum()
    taken = 0.2 * prior
    np.testing.assert_array_equal(refinement._unshrunk(taken, prior) > 0.5, taken > 0.5)


@pytest.mark.parametrize("value", [0, 7])
def test_an_even_image_leaves_the_decision_to_the_opinion(value):
    features = RegionFeatures.of(
        from_array(np.full((12, 12, 12), value, np.uint8)), Box((0, 0, 0), (12, 12, 12))
    )
    opinion = np.full((12, 12, 12), -4, np.float32)
    opinion[2:10, 2:10, 2:10] = 4
    found = refined(features, opinion, None)
    assert np.isfinite(found).all()
    assert found[6, 6, 6] > 0.5 > found[0, 0, 0]


def test_an_object_of_few_slices_is_not_walked_out_of():
    volume = from_array(np.random.default_rng(0).integers(0, 255, (9, 24, 24), dtype=np.uint8))
    features = RegionFeatures.of(volume, Box((0, 0, 0), (9, 24, 24)))
    box = Box((3, 2, 2), (5, 22, 22))
    z, y, x = refinement._shortened(features, box)
    np.testing.assert_allclose(z, features.links[0] * 0.04, rtol=1e-6)
    assert (y is features.links[1], x is features.links[2]) == (True, True)
    opinion = np.full((9, 24, 24), -4, np.float32)
    opinion[3:5, 4:20, 4:20] = 4
    assert (refined(features, opinion, box)[3:5, 6:18, 6:18] > 0.5).mean() > 0.9
    assert (refined(features, opinion, None)[3:5, 6:18, 6:18] > 0.5).mean() < 0.5


def test_intensities_that_are_common_inside_speak_for_the_object():
    kind = np.zeros((2, 2, 2), np.int16)
    kind[1] = refinement.BINS * refinement.BINS - 1
    inside = np.zeros((2, 2, 2), np.float32)
    inside[1] = 1
    ratio = refinement._intensity_ratio(kind, inside, 1 - inside)
    assert ratio[1] == pytest.approx(refinement.INTENSITY_LIMIT)
    assert ratio[0] == pytest.approx(-refinement.INTENSITY_LIMIT)
    assert refinement._intensity_ratio(kind, inside, inside) == pytest.approx(0)


def test_the_inscribed_ellipsoid_is_even_on_its_surface_and_sure_in_its_middle() -> None:
    roi = Roi(Box((0.0, 0.0, 0.0), (20.0, 40.0, 10.0)), (20, 20, 20))
    box = Box((5.0, 10.0, 2.5), (15.0, 30.0, 7.5))
    found = inscribed_ellipsoid(roi, box)
    z, y, x = ((np.arange(20) + 0.5) * side for side in roi.spacing)
    square = ((z - 10) / 5) ** 2
    square = square[:, None, None] + (((y - 20) / 10) ** 2)[:, None] + ((x - 5) / 2.5) ** 2
    np.testing.assert_array_equal(found > 0.5, square < 1)
    assert found.max() > 0.9
