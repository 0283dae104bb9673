from __future__ import annotations

import numpy as np
import pytest
import torch
from dualclickmed.byte_cache import ByteCache
from dualclickmed.evaluation.metrics import dice
from dualclickmed.experts import DualExpert, GlobalExpert, LocalExpert
from dualclickmed.experts.fused import strategy
from dualclickmed.experts.fused.boxes import proposed_box, widened
from dualclickmed.experts.fused.refinement import RegionFeatures
from dualclickmed.experts.fused.strategy import Refined, _Request, calibrated
from dualclickmed.experts.timing import StageTimer
from dualclickmed.imaging.geometry import Box, Index, Roi, paste_from_grid, resampled
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import Volume, from_array
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPE = (24, 30, 36)
BALL = np.linalg.norm(np.stack(np.mgrid[:24, :30, :36], axis=-1) - (12, 15, 18), axis=-1) < 7
BOX = Box((5, 8, 11), (20, 23, 26))
INSIDE, OUTSIDE = Click((12, 15, 18)), Click((12, 15, 30), False)


@pytest.fixture(scope="module")
def volume() -> Volume:
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    return from_array((60 + 90 * BALL + noise).clip(1, 255).astype(np.uint8))


def dual_of(
    fakes, radius: float = 5.0, window: Index = (16, 16, 16), cache_bytes: int = 1 << 28
) -> DualExpert:
    cache = ByteCache(cache_bytes)
    return DualExpert(
        GlobalExpert(fakes.Network(fakes.image), "cpu", cache),
        LocalExpert(fakes.Network(fakes.balls(radius)), "cpu", cache, window=window),
        cache,
    )


@pytest.mark.parametrize("radius", [7.0, 3.5])
def test_one_click_finds_the_object_in_the_view_that_shows_it_in_the_network_s_size(fakes, volume, radius):
    # The ball's radius is 7 voxels: 7 cells of the narrow view, 3.5 of the wide one.
    expert = dual_of(fakes, radius, window=(24, 24, 24))
    found = expert.segment(volume, {"a": Prompts((INSIDE,))}, "fused").mask("a")
    assert 2 * (found & BALL).sum() / (found.sum() + BALL.sum()) > 0.9


@pytest.mark.parametrize(
    ("prompts", "expert"),
    [
        (Prompts((INSIDE, OUTSIDE)), "local"),
        (Prompts((), BOX), "global"),
        (Prompts((OUTSIDE,), BOX), "global"),
    ],
)
def test_it_asks_the_papers_expert_and_finds_the_object(fakes, volume, prompts, expert):
    result = dual_of(fakes, 6.0).segment(volume, {"a": prompts}, "fused")
    assert result.strategies == {"a": expert}
    found = result.mask("a")
    assert 2 * (found & BALL).sum() / (found.sum() + BALL.sum()) > (0.95 if expert == "global" else 0.7)
    assert "refine" in result.stages


def test_the_network_is_asked_without_and_with_the_corrections(fakes, volume):
    expert = dual_of(fakes)
    expert.segment(volume, {"a": Prompts((Click((12, 21, 18), False),), BOX)}, "fused")
    assert [len(points[0]) for points, _, _ in expert.global_expert.network.decoded] == [1, 2]


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize(("inside", "changed"), [(10, 0.01), (100, 0.03)])
def test_clicks_that_agree_with_the_mask_change_nothing(fakes, volume, box, inside, changed):
    expert = dual_of(fakes)
    before = expert.segment(volume, {"a": Prompts((INSIDE,), box)}, "fused").mask("a")
    rng = np.random.default_rng(3)
    right, wrong = (rng.permutation(np.argwhere(part))[:100].tolist() for part in (before, ~before))
    clicks = [INSIDE, *(Click(tuple(p)) for p in right[:inside]), *(Click(tuple(p), False) for p in wrong)]
    after = expert.segment(volume, {"a": Prompts(tuple(dict.fromkeys(clicks)), box)}, "fused").mask("a")
    # A cell on the surface may be half a voxel off where the mask was pasted. Many clicks take some of those
    # surface cells that are far from all of them.
    assert np.count_nonzero(after != before) <= changed * np.count_nonzero(before)


def test_many_scattered_clicks_keep_a_mask_from_spreading_beyond_them(fakes, volume):
    clicks = tuple(Click(tuple(p)) for p in np.argwhere(BALL)[::9].tolist())
    cache = ByteCache(1 << 28)
    local = LocalExpert(fakes.Network(fakes.constant(4.0)), "cpu", cache, window=(16, 16, 16))
    sure_of_everything = DualExpert(None, local, cache)
    few, many = (
        sure_of_everything.segment(volume, {"a": Prompts(c)}, "fused").mask("a")
        for c in (clicks[::40], clicks)
    )
    assert np.count_nonzero(many & ~BALL) < 0.4 * np.count_nonzero(few & ~BALL)
    assert many[BALL].mean() > 0.99


def test_uncertainty_is_a_map_of_the_volume_and_highest_at_the_border(fakes, volume):
    result = dual_of(fakes).segment(volume, {"a": Prompts((), BOX)}, "fused")
    found = result.uncertainty()
    assert (found.shape, found.dtype) == (SHAPE, np.float32)
    depth = np.linalg.norm(np.stack(np.mgrid[:24, :30, :36], axis=-1) - (12, 15, 18), axis=-1)
    assert found[np.abs(depth - 7) < 1].mean() > 2 * found[depth < 4].mean()
    assert found.min() >= 0 and found.max() <= 1
    assert not found[0, 0, 0]


def test_probabilities_are_made_as_sure_as_they_are_right(fakes, volume):
    cautious = np.array([-0.001, 0, 0.25, 0.4, 0.5, 0.75, 1, 1.001], np.float32)
    meant = [0, 0, 1 / 10, 16 / 52, 0.5, 9 / 10, 1, 1]
    np.testing.assert_allclose(calibrated(cautious), meant, atol=1e-6)
    result = dual_of(fakes).segment(volume, {"a": Prompts((), BOX)}, "fused")
    part = result.refined["a"]
    region, found = paste_from_grid(torch.from_numpy(part.probability), part.roi, SHAPE)
    assert ((found.numpy() > 0.5) == result.mask("a")[region]).mean() > 0.999


def test_only_fused_knows_how_unsure_it_is(fakes, volume):
    result = dual_of(fakes).segment(volume, {"a": Prompts((), BOX)}, "paper")
    assert not result.uncertainty().any()
    assert result.suggestions() == {}


def test_pet_keeps_the_global_expert_s_own_answer_to_a_box(fakes, volume):
    image = from_array(volume.array, modality="pt")
    for prompts, refined in ((Prompts((INSIDE, OUTSIDE), BOX), False), (Prompts((INSIDE,)), True)):
        fused, plain = (dual_of(fakes).segment(image, {"a": prompts}, name) for name in ("fused", "paper"))
        assert np.array_equal(fused.labels, plain.labels) != refined
        assert bool(fused.refined) == refined


def test_one_click_finds_an_object_larger_than_the_window(fakes, volume):
    sight = 8
    cache = ByteCache(1 << 28)
    local = LocalExpert(fakes.Network(fakes.image), "cpu", cache, window=(sight,) * 3)

    def dice(answers_clicks_alone: bool) -> float:
        network = fakes.Network(fakes.image, 32, answers_clicks_alone=answers_clicks_alone)
        expert = DualExpert(GlobalExpert(network, "cpu", cache), local, cache)
        found = expert.segment(volume, {"a": Prompts((Click((12, 13, 20)),))}, "fused").mask("a")
        return 2 * (found & BALL).sum() / (found.sum() + BALL.sum())

    assert dice(True) > 0.9 > dice(False)


def test_the_object_is_looked_for_once_and_a_large_one_is_left_to_the_global_expert(fakes, volume):
    network = fakes.Network(fakes.image, 32, answers_clicks_alone=True)
    cache = ByteCache(1 << 28)
    # The ball is 13 voxels wide: shorter than the longest that the local expert is asked about. Three times
    # as large it is longer.
    for times, asked in ((1, True), (3, False)):
        seen = from_array(np.kron(volume.array, np.ones((times,) * 3, np.uint8)))
        inside, outside = (
            Click((c.index[0] * times, c.index[1] * times, c.index[2] * times), c.positive)
            for c in (INSIDE, OUTSIDE)
        )
        local = LocalExpert(fakes.Network(fakes.balls(5.0 * times)), "cpu", cache, window=(64, 64, 64))
        expert = DualExpert(GlobalExpert(network, "cpu", cache), local, cache)
        for clicks in ((inside,), (inside, outside)):
            before = len(network.decoded)
            expert.segment(seen, {"a": Prompts(clicks)}, "fused")
            alone = [labels for _, labels, _ in network.decoded[before:] if not (labels == 2).any()]
            assert bool(alone) == (clicks == (inside,))
        # Where it is asked it sees one window, voxel by voxel. The further click agrees with the mask.
        assert [crop.shape[2:] for crop in local.network.encoded] == [(64, 64, 64)] * asked


def test_a_background_click_deep_in_the_mask_chooses_another_object_that_windows_show(fakes, monkeypatch):
    # The global expert answers alone: both objects are longer than those that the local one is asked about.
    monkeypatch.setattr(strategy, "LARGEST_LOCAL", 6.0)
    middle = (30, 30, 30)
    away = np.linalg.norm(np.stack(np.mgrid[:60, :60, :60], axis=-1) - middle, axis=-1)
    outer, inner = away < 12, away < 5
    noise = np.random.default_rng(0).normal(0, 5, away.shape)
    volume = from_array((50 + 80 * outer + 70 * inner + noise).clip(1, 255).astype(np.uint8))

    def field(image, points, labels):
        if (labels == 2).any():
            # The region is 1.8 times as wide as the box, and the object fills the box.
            return fakes.balls(32 / 1.8 / 2)(image, points[labels == 2], torch.tensor([1]))
        # The smallest window shows nothing darker than the outer ball.
        return image - (image.min() + 0.3 * (image.max() - image.min()))

    network = fakes.Network(field, 32, answers_clicks_alone=True)
    network.config.hold_edges = True
    cache = ByteCache(1 << 28)
    local = LocalExpert(fakes.Network(fakes.balls(5.0)), "cpu", cache, window=(24, 24, 24))
    expert = DualExpert(GlobalExpert(network, "cpu", cache), local, cache)

    def found(*clicks):
        return expert.segment(volume, {"a": Prompts(tuple(clicks))}, "fused").mask("a")

    first, more = Click(middle), [Click((30, 30, 30 + d)) for d in (17, -17)]
    deep, shallow = (Click((30, 30 - d, 30), False) for d in (7, 11))
    one = found(first)
    assert dice(one, outer) > 0.9
    assert dice(found(first, deep), inner) > 0.8
    assert dice(found(first, shallow), outer) > 0.85
    # The fourth click corrects what the user has seen so far.
    assert dice(found(first, *more, deep), inner) < 0.5
    np.testing.assert_array_equal(found(first), one)


@pytest.mark.parametrize(("count", "share"), [(1, 1 / 2), (2, 1 / 3), (3, 1 / 4), (4, 1 / 4)])
def test_the_local_expert_counts_as_much_as_one_click_and_no_less_than_a_quarter(fakes, volume, count, share):
    cache = ByteCache(1 << 28)
    local = LocalExpert(fakes.Network(fakes.constant(2.0)), "cpu", cache, window=(64, 64, 64))
    other = GlobalExpert(fakes.Network(fakes.constant(-1.0)), "cpu", cache)
    request = _Request(cache, local, other, volume, Prompts((INSIDE,)), "auto", StageTimer(), ())
    seen, _ = request.seen()
    clicks = (INSIDE, *(Click((2, 2, x), False) for x in range(5)))
    _, logits = request._asked(Prompts(clicks[:count]), seen, None)
    assert float(logits[12, 15, 18]) == pytest.approx(2 * share - (1 - share))


def test_the_next_click_is_suggested_where_a_wide_part_is_unsure():
    probability = np.zeros((20, 20, 20), np.float32)
    probability[4:16, 4:16, 4:12] = 1
    probability[4:16, 4:16, 12] = 0.5
    probability[8:13, 8:13, 12:17] = 0.5
    roi = Roi(Box((2, 0, 0), (42, 20, 20)), (20, 20, 20))
    first = Refined([], roi, probability, [])
    z, y, x = first.where_next()
    assert (abs(z - 22.5) <= 2, abs(y - 10) <= 1, abs(x - 14) <= 1) == (True, True, True)
    cell = ((z - 2) // 2, y, x)
    assert Refined([], roi, probability, [cell]).where_next() != (z, y, x)
    assert Refined([], roi, np.round(probability + 0.1), []).where_next() is None


def test_a_second_answer_is_the_first_one(fakes, volume):
    warm, prompts = dual_of(fakes), {"a": Prompts((INSIDE, OUTSIDE), BOX)}
    warm.segment(volume, {"a": Prompts((OUTSIDE,), BOX)}, "fused")
    np.testing.assert_array_equal(
        warm.segment(volume, prompts, "fused").labels, dual_of(fakes).segment(volume, prompts, "fused").labels
    )


def test_the_first_click_is_decoded_once_in_each_view(fakes, volume):
    expert = dual_of(fakes, window=(24, 24, 24))
    network = expert.local_expert.network
    found = expert.segment(volume, {"a": Prompts((INSIDE,))}, "fused").mask("a")
    assert len(network.encoded) == len(network.decoded) == 2
    forgetful = dual_of(fakes, window=(24, 24, 24), cache_bytes=0)
    without_memory = forgetful.segment(volume, {"a": Prompts((INSIDE,))}, "fused").mask("a")
    assert len(forgetful.local_expert.network.decoded) > 2
    np.testing.assert_array_equal(found, without_memory)


def test_all_that_is_kept_between_requests_is_in_the_given_cache(fakes, volume):
    cache = ByteCache(1 << 28)
    expert = DualExpert(None, dual_of(fakes).local_expert, cache)
    expert.segment(volume, {"a": Prompts((INSIDE, OUTSIDE))}, "fused")
    held = cache.nbytes
    assert held > volume.array.size  # region features alone are several numbers for each voxel
    expert.segment(volume, {"a": Prompts((INSIDE, OUTSIDE))}, "fused")
    assert cache.nbytes == held
    cache.drop(volume.key)
    assert cache.nbytes == 0


@pytest.mark.parametrize("box", [None, BOX])
def test_how_the_two_kinds_of_clicks_are_interleaved_plays_no_part(fakes, volume, box):
    expert = dual_of(fakes)
    fore = (INSIDE, Click((12, 20, 18)))
    back = (OUTSIDE, Click((6, 15, 18), False), Click((12, 22, 18), False))
    mixed = (back[0], fore[0], back[1], back[2], fore[1])
    found = [
        expert.segment(volume, {"a": Prompts(order, box)}, "fused").labels.tobytes()
        for order in ((*fore, *back), (*back, *fore), mixed)
    ]
    assert len(set(found)) == 1


def test_each_click_corrects_the_mask_that_its_user_saw(fakes, volume):
    expert = dual_of(fakes)
    clicks = (Click((12, 21, 18), False), Click((12, 9, 18), False), Click((17, 15, 18), False))
    for count in range(len(clicks) + 1):
        expert.segment(volume, {"a": Prompts(clicks[:count], BOX)}, "fused")
        # The box alone, then one answer for each click with the mask before it.
        assert len(expert.global_expert.network.decoded) == 1 + count
    again = dual_of(fakes)
    whole = again.segment(volume, {"a": Prompts(clicks, BOX)}, "fused")
    assert [len(points[0]) for points, _, _ in again.global_expert.network.decoded] == [1, 2, 3, 4]
    np.testing.assert_array_equal(
        whole.labels, expert.segment(volume, {"a": Prompts(clicks, BOX)}, "fused").labels
    )


def test_another_labels_click_in_a_mask_is_a_background_click_that_came_last(fakes, volume):
    there = (12, 20, 18)
    others = Prompts((Click(there),), Box((10, 18, 16), (15, 23, 21)))
    own = Prompts((Click((17, 15, 18), False),), BOX)
    expert = dual_of(fakes)
    assert expert.segment(volume, {"own": own}, "fused").mask("own")[there]
    told = Prompts((*own.clicks, Click(there, False)), BOX)
    (as_told,) = expert.segment(volume, {"own": told}, "fused").refined["own"].predictions
    seen = []
    for order in (("own", "other"), ("other", "own")):
        given = {label: {"own": own, "other": others}[label] for label in order}
        result = dual_of(fakes).segment(volume, given, "fused")
        (found,) = result.refined["own"].predictions
        assert found.region == as_told.region
        np.testing.assert_array_equal(found.logits, as_told.logits)
        assert result.mask("other")[there]
        seen.append(result.mask("own"))
    np.testing.assert_array_equal(*seen)
    alone = expert.segment(volume, {"own": own}, "fused").mask("own")
    assert (alone & ~seen[0]).sum() > 1


def test_another_labels_click_beside_a_mask_changes_nothing_in_it(fakes, volume):
    expert = dual_of(fakes)
    alone = expert.segment(volume, {"own": Prompts((), BOX)}, "fused").mask("own")
    asked = len(expert.global_expert.network.decoded)
    beside = Prompts((Click((12, 15, 33)),))
    with_other = expert.segment(volume, {"own": Prompts((), BOX), "other": beside}, "fused")
    np.testing.assert_array_equal(with_other.mask("own"), alone & ~with_other.mask("other"))
    boxes_asked = expert.global_expert.network.decoded[asked:]
    assert not any((labels[0] == 0).any() for _, labels, _ in boxes_asked)


def test_a_cell_that_was_clicked_for_the_object_is_not_taken_by_another_click_in_it(fakes):
    shape = (12, 12, 300)
    grid = np.stack(np.mgrid[:12, :12, :300], axis=-1)
    bright = (abs(grid - (6, 6, 150)) < (4, 4, 100)).all(axis=-1)
    wide = from_array((60 + 90 * bright).astype(np.uint8))
    box = Box((2, 2, 50), (11, 11, 251))
    mine = (6, 6, 150)
    expert = dual_of(fakes)
    first = expert.segment(wide, {"own": Prompts((Click(mine),), box)}, "fused")
    features = RegionFeatures.of(wide, first.refined["own"].roi.box)
    same = next(i for i in ((6, 6, 149), (6, 6, 151)) if features.cell(i) == features.cell(mine))
    both = expert.segment(
        wide, {"own": Prompts((Click(mine),), box), "other": Prompts((Click(same),))}, "fused"
    )
    np.testing.assert_array_equal(both.refined["own"].probability, first.refined["own"].probability)
    assert both.mask("own")[mine] and both.mask("other")[same] and features.roi.grid[2] < shape[2]


def test_undoing_a_click_gives_the_mask_before_it(fakes, volume):
    expert = dual_of(fakes)
    clicks = (Click((12, 21, 18), False), Click((12, 9, 18), False))
    before = expert.segment(volume, {"a": Prompts(clicks[:1], BOX)}, "fused").labels.copy()
    expert.segment(volume, {"a": Prompts(clicks, BOX)}, "fused")
    undone = expert.segment(volume, {"a": Prompts(clicks[:1], BOX)}, "fused")
    np.testing.assert_array_equal(undone.labels, before)


@pytest.mark.parametrize(("clicks", "rounds"), [(1, 1), (16, 16), (17, 9), (40, 10), (300, 10)])
def test_many_clicks_are_heard_in_few_steps(fakes, volume, clicks, rounds):
    expert = dual_of(fakes)
    voxels = np.argwhere(BALL)[:: BALL.sum() // clicks][:clicks]
    given = tuple(Click((int(z), int(y), int(x)), False) for z, y, x in voxels)
    found = expert.segment(volume, {"a": Prompts(given, BOX)}, "fused").mask("a")
    assert 1 < len(expert.global_expert.network.decoded) <= 1 + rounds
    assert not found[tuple(voxels.T)].any()


def test_another_mask_to_correct_is_another_answer(fakes, volume):
    expert = dual_of(fakes)
    shifted = np.roll(BALL, 3, axis=2)
    clicks = (Click((12, 15, 25)),)
    cold = dual_of(fakes).segment(volume, {"a": Prompts(clicks, BOX, shifted)}, "fused").labels
    expert.segment(volume, {"a": Prompts(clicks, BOX, BALL)}, "fused")
    warm = expert.segment(volume, {"a": Prompts(clicks, BOX, shifted)}, "fused").labels
    np.testing.assert_array_equal(warm, cold)


def test_a_given_mask_stays_as_it_is_away_from_clicks(fakes, volume):
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 2:4, 2:4] = True
    mask[9:15, 12:18, 15:21] = True
    mask[20:, 28:, 34:] = True
    clicks = (Click((12, 15, 23)),)
    found = dual_of(fakes).segment(volume, {"a": Prompts(clicks, BOX, mask)}, "fused").mask("a")
    assert found[12, 15, 23]
    assert found.sum() > mask.sum() + 10
    far = np.linalg.norm(np.stack(np.mgrid[:24, :30, :36], axis=-1) - (12, 15, 23), axis=-1) > 10
    np.testing.assert_array_equal(found[far], mask[far])


def test_a_mask_without_clicks_goes_to_the_network(fakes, volume):
    expert = dual_of(fakes)
    expert.segment(volume, {"a": Prompts((), BOX, BALL)}, "fused")
    assert all(mask is not None for _, _, mask in expert.global_expert.network.decoded)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    corners=st.tuples(*[st.tuples(st.floats(0, 0.8), st.floats(0.1, 1))] * 3),
    seeds=st.lists(st.tuples(*[st.floats(0, 0.999)] * 3), max_size=5),
    data=st.data(),
)
def test_every_click_holds_in_a_volume_of_any_size(fakes, shape, corners, seeds, data):
    image = from_array(np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8))
    lo = tuple(a * n for (a, _), n in zip(corners, shape, strict=True))
    hi = tuple(min(n, x + b * n) for x, (_, b), n in zip(lo, corners, shape, strict=True))
    voxels = {tuple(int(p * n) for p, n in zip(seed, shape, strict=True)) for seed in seeds}
    clicks = tuple(Click(v, data.draw(st.booleans())) for v in sorted(voxels))
    found = dual_of(fakes).segment(image, {"a": Prompts(clicks, Box(lo, hi))}, "fused").mask("a")
    for click in clicks:
        assert found[click.index] == click.positive


def test_a_large_object_is_refined_on_a_coarse_grid(fakes):
    image = np.full((40, 200, 200), 50, np.uint8)
    image[10:30, 50:150, 50:150] = 200
    prompts = Prompts((), Box((10, 50, 50), (30, 150, 150)))
    found = dual_of(fakes).segment(from_array(image), {"a": prompts}, "fused").mask("a")
    truth = image == 200
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93


def test_values_are_resampled_between_regions_at_their_centres():
    source = Roi(Box((0, 0, 0), (8, 8, 8)), (4, 4, 4))
    centres = (torch.arange(4) + 0.5) * 2
    values = centres[:, None, None] + 10 * centres[:, None] + 100 * centres
    target = Roi(Box((2, 3, 1), (5, 5, 7)), (3, 2, 6))
    z, y, x = torch.tensor([2.5, 3.5, 4.5]), torch.tensor([3.5, 4.5]), torch.arange(6) + 1.5
    expected = z[:, None, None] + 10 * y[:, None] + 100 * x
    torch.testing.assert_close(resampled(values, source, target), expected)


def test_beyond_its_source_the_edge_value_holds():
    source = Roi(Box((2, 2, 2), (4, 4, 4)), (2, 2, 2))
    found = resampled(torch.arange(8.0).reshape(2, 2, 2), source, Roi(Box((0, 0, 0), (6, 6, 6)), (6, 6, 6)))
    assert (found[0, 0, 0], found[5, 5, 5], found[0, 5, 0]) == (0, 7, 2)


PARTS = np.zeros((10, 10, 10), bool)
PARTS[1:4, 2:4, 3:5] = True
PARTS[6:8, 6:9, 7] = True


@pytest.fixture
def two_to_a_cell() -> RegionFeatures:
    """A features whose cells are two voxels long along the first axis."""
    roi = Roi(Box((10, 20, 30), (30, 30, 40)), (10, 10, 10))
    empty = np.zeros(roi.grid, np.float32)
    return RegionFeatures(roi, (2.0, 1.0, 1.0), (empty, empty, empty), empty, empty.astype(np.int16))


@pytest.mark.parametrize(
    ("clicked", "expected"),
    [
        ([(12, 22, 33)], Box((12, 22, 33), (18, 24, 35))),
        ([(23, 27, 37), (0, 0, 0)], Box((22, 26, 37), (26, 29, 38))),
        ([(12, 22, 33), (25, 28, 37)], Box((12, 22, 33), (26, 29, 38))),
        ([(10, 20, 30)], Box((12, 22, 33), (18, 24, 35))),
        ([], Box((12, 22, 33), (18, 24, 35))),
    ],
    ids=["first", "second", "both", "beside both: the larger", "none: the larger"],
)
def test_the_clicked_parts_of_a_mask_propose_a_box(two_to_a_cell, clicked, expected):
    assert proposed_box(PARTS, two_to_a_cell, clicked) == expected


def test_an_empty_mask_proposes_nothing(two_to_a_cell):
    assert proposed_box(np.zeros((10, 10, 10), bool), two_to_a_cell, [(12, 22, 33)]) is None


def test_points_alone_are_shown_to_the_global_expert_in_the_box_of_what_was_found(fakes, volume):
    expert = dual_of(fakes)
    result = expert.segment(volume, {"a": Prompts((INSIDE,))}, "fused")
    assert result.strategies == {"a": "local"}
    network = expert.global_expert.network
    # Without the click, then with it and the mask that it gave.
    assert len(network.encoded) == 1
    (_, _, none), (points, labels, mask) = network.decoded
    assert none is None
    assert labels.tolist() == [[2, 1]]
    # A ball about the click, in a box of which the region is 1.8 times as long.
    np.testing.assert_allclose(points[0, 1], 31.5, atol=4)
    inside = (mask[0, 0] > 0).float()
    assert inside[24:40, 24:40, 24:40].all()
    assert inside.mean() == pytest.approx(np.pi / 6 / 1.8**3, rel=0.3)


def test_without_the_global_expert_points_are_answered_by_the_local_one(fakes, volume):
    local = DualExpert(None, dual_of(fakes, 6.0).local_expert, ByteCache(1 << 28))
    found = local.segment(volume, {"a": Prompts((INSIDE, OUTSIDE))}, "fused").mask("a")
    assert 2 * (found & BALL).sum() / (found.sum() + BALL.sum()) > 0.9


def test_a_box_needs_no_second_expert(fakes, volume):
    expert = dual_of(fakes)
    expert.segment(volume, {"a": Prompts((OUTSIDE,), BOX)}, "fused")
    assert expert.local_expert.network.encoded == []


def test_a_click_outside_a_box_lies_in_the_middle_of_what_the_box_leaves_out():
    box = Box((10.0, 10.0, 10.0), (20.0, 20.0, 20.0))
    assert widened(box, []) == box
    assert widened(box, [(10, 15, 19)]) == box
    # Voxel 22 has its centre 2.5 beyond the face at 20; voxel 7 has its centre 2.5 before that at 10.
    assert widened(box, [(22, 12, 7)]) == Box((10.0, 10.0, 5.0), (25.0, 20.0, 20.0))
