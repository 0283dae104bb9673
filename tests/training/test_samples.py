"""Samples of generated scenes: on the grid that serving uses, around boxes that users draw."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from dualclickmed.errors import UserError
from dualclickmed.experts.inputs import global_input, local_input, map_at_points, map_in_box
from dualclickmed.imaging.geometry import Box, global_roi, window_at
from dualclickmed.imaging.intensity import normalise_global
from dualclickmed.imaging.volume import from_array
from dualclickmed.training.augment import drawn_affine, global_augmentation, moved
from dualclickmed.training.case_samples import global_crop, local_case_sample
from dualclickmed.training.first_prompts import extreme_points, first_box, simulated_box
from dualclickmed.training.generated import SyntheticVolume
from dualclickmed.training.opened import OpenedCase, OpenedCases, find_objects, open_case
from dualclickmed.training.recipes import Recipe
from dualclickmed.training.samples import Samples, Share
from dualclickmed.training.scene_samples import global_samples, part_of
from dualclickmed.training.sources import LabelledCase, WeightedSource, folder_cases

from tests.support.cases import challenge_file, decathlon, volume_and_labels, write_nifti
from tests.support.recipes import RECIPE

BOXES_ONLY = {
    "grid": 64,
    "hold_edges": False,
    "clicked": 0.0,
    "components": 0.0,
    "parts": 0.0,
    "scale_z": (0.9, 1.1),
}
GLOBAL = dataclasses.replace(RECIPE["global"], scenes=1, targets=2, **BOXES_ONLY)
ONE = dataclasses.replace(GLOBAL, targets=1)


def block_scene() -> SyntheticVolume:
    """A block of 20 x 10 x 10 voxels that is brighter than its surroundings, in the middle of 40³."""
    labels = torch.zeros(40, 40, 40, dtype=torch.int16)
    labels[10:30, 15:25, 15:25] = 1
    image = 50.0 + 100.0 * labels.float()
    return SyntheticVolume(image, labels, [(1,)], (1.0, 1.0, 1.0), "ct")


def test_the_truth_of_an_exact_box_fills_the_middle_of_the_grid() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(40):
        [(image, truth, valid, *_)] = global_samples(
            block_scene(), rng, dataclasses.replace(GLOBAL, targets=1)
        )
        assert image.shape == truth.shape == valid.shape == (64, 64, 64)
        # Bright inside, dark outside: image and truth are cut and turned alike.
        assert float(image[truth].min()) > float(image[~truth & valid].mean())
        extent = Box.of_mask(truth.numpy())
        # A box of 1 / 1.8 of the RoI covers 35.6 of 64 voxels about the middle.
        if np.allclose(extent.lo, 14, atol=1) and np.allclose(extent.hi, 50, atol=1):
            found += 1
    # Half of the boxes are exact, and the block's middle slice gives the exact box too.
    assert found >= 20


def test_boxes_are_exact_of_the_middle_slice_or_sloppy() -> None:
    mask = np.zeros((21, 30, 30), bool)
    mask[:, 10:20, 10:20] = True
    mask[10] = False
    mask[10, 13:16, 12:18] = True
    exact = Box.of_mask(mask)
    middle = Box((0.0, 13.0, 12.0), (21.0, 16.0, 18.0))
    rng = np.random.default_rng(1)
    boxes = [simulated_box(mask, rng) for _ in range(300)]
    shares = [sum(b == kind for b in boxes) / 300 for kind in (exact, middle)]
    assert shares[0] == pytest.approx(0.5, abs=0.12)
    assert shares[1] == pytest.approx(0.2, abs=0.1)
    sloppy = [b for b in boxes if b not in (exact, middle)]
    assert all(abs(b.lo[1] - 10) <= 4 and abs(b.hi[1] - 20) <= 4 for b in sloppy)


def test_global_batches_depend_on_seed_and_number_alone() -> None:
    source = Samples(GLOBAL, seed=5)
    first = source[3].batch
    source[0]
    again = source[3].batch
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = Samples(GLOBAL, seed=6)[3].batch
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)


def test_a_part_is_one_side_of_a_cut_and_long_objects_are_cut_across() -> None:
    rod = np.zeros((10, 12, 60), dtype=np.bool_)
    rod[3:8, 4:9, 5:55] = True
    rng = np.random.default_rng(0)
    across = 0
    for _ in range(20):
        part = part_of(rod, rng)
        assert not (part & ~rod).any()
        assert 0.3 <= part.sum() / rod.sum() <= 0.7
        across += int(np.ptp(np.nonzero(part)[2]) + 1 < 50)
    assert across >= 14
    speck = np.zeros((6, 6, 6), dtype=np.bool_)
    speck[2:4, 2:4, 2:4] = True
    assert part_of(speck, rng) is speck


def test_local_clicks_are_inside_their_objects() -> None:
    source = Samples(dataclasses.replace(RECIPE["local"], scenes=2, targets=2, size=48), seed=2)
    batch = source[0].batch
    assert batch.image.shape[1:] == (1, 48, 48, 48)
    assert float(batch.image.min()) >= 0 and float(batch.image.max()) <= 1
    assert sorted(set(batch.owner.tolist())) == [0, 1]
    for sample in range(len(batch.truth)):
        z, y, x = batch.first[sample, 0].tolist()
        assert bool(batch.truth[sample, z, y, x])
        assert not bool((batch.truth[sample] & ~batch.valid[sample]).any())


# Labelled cases -------------------------------------------------------------------------------------------


def opened(tmp_path: Path, recipe: Recipe, modality: str = "ct") -> OpenedCase:
    image, labels = volume_and_labels()
    case = LabelledCase(
        "a",
        write_nifti(tmp_path / "i.nii.gz", image),
        write_nifti(tmp_path / "l.nii.gz", labels),
        modality=modality,
    )
    return open_case(case, recipe)


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_a_labelled_crop_is_what_serving_computes_for_its_box(tmp_path: Path, modality: str) -> None:
    case = opened(tmp_path, GLOBAL, modality)
    for found in case.objects:
        box = Box.of_mask(case.labels == found.value)
        crop = global_crop(case, found, box, global_roi(box))
        served = global_input(case.volume, global_roi(box), map_in_box(case.volume, box, "auto"))
        assert torch.equal(normalise_global(crop.image), served[0, 0])
        # The object fills 1 / 1.8 of the grid along each axis, the voxels outside the image are not valid.
        extent = Box.of_mask(crop.truth.numpy())
        assert np.allclose(extent.lo, 14, atol=1) and np.allclose(extent.hi, 50, atol=1)
        assert bool(crop.valid[crop.truth].all())


def test_a_labelled_window_is_what_serving_computes_there(tmp_path: Path) -> None:
    plain = dataclasses.replace(RECIPE["local"], targets=2, size=32, flip=0.0, rotate=0.0, intensity=0.0)
    case = opened(tmp_path, plain)
    rng = np.random.default_rng(0)
    matched = 0
    for _ in range(12):
        sample = local_case_sample(case, rng, plain)
        for truth, click in sample.objects:
            assert bool(truth[tuple(click)])
            # The window is found again by its valid part and the truth; then the image must be serving's.
            for value in (1, 3):
                inside = np.argwhere(case.labels == value)
                at = torch.nonzero(truth)
                if len(at) != len(inside):
                    continue
                low = tuple(int(v) for v in inside[0] - at[0].numpy())
                roi = window_at(tuple(v + 16 for v in low), (32, 32, 32))
                place = tuple(int(v) for v in np.asarray(click) + low)
                served = local_input(case.volume, roi, map_at_points(case.volume, [place], "auto"))
                assert torch.equal(sample.image, served[0, 0])
                matched += 1
    assert matched >= 5


def test_every_object_is_as_likely_however_large(tmp_path: Path) -> None:
    plain = dataclasses.replace(RECIPE["local"], targets=1, size=16, flip=0.0, rotate=0.0, intensity=0.0)
    labels = np.zeros((40, 40, 40), np.uint16)
    labels[2:8, 2:8, 2:8], labels[10:36, 10:36, 10:36] = 1, 2
    volume = from_array(np.where(labels == 2, 200, 90).astype(np.uint8))
    case = OpenedCase(volume, labels, find_objects(labels, 24))
    rng = np.random.default_rng(1)
    bright = 0
    for _ in range(120):
        sample = local_case_sample(case, rng, plain)
        truth, click = sample.objects[0]
        bright += int(sample.image[tuple(click)] > 0.5)
        # Six voxels deep inside the large one a window of 16 sees nothing else; then it moves to the surface.
        assert not bool(truth.all())
    assert 40 <= bright <= 80


def test_tiny_and_huge_objects_are_left_out_and_absent_ones_do_not_exist() -> None:
    labels = np.zeros((20, 20, 20), np.uint16)
    labels[0, 0, :10] = 1
    labels[5:9, 5:9, 5:9] = 7
    assert [(o.value, o.voxels) for o in find_objects(labels, 11)] == [(7, 64)]
    assert find_objects(labels, 11)[0].region == (slice(5, 9),) * 3
    assert [o.value for o in find_objects(labels, 10)] == [1, 7]
    labels[labels == 0] = 2
    assert [o.value for o in find_objects(labels, 11)] == [7], "the frame fills more than 95 %"


def test_an_object_too_thin_for_the_grid_is_where_it_fills_cells_most() -> None:
    labels = np.zeros((8, 200, 200), np.uint16)
    for step in range(180):
        labels[4, 10 + step, 10 + step] = 1
    volume = from_array(np.full(labels.shape, 50, np.uint8) + 100 * labels.astype(np.uint8))
    case = OpenedCase(volume, labels, find_objects(labels, 24))
    crop = global_crop(case, case.objects[0], Box.of_mask(labels), global_roi(Box.of_mask(labels)))
    assert 30 < int(crop.truth.sum()) < 400
    assert float(crop.image[crop.truth].mean()) > float(crop.image[crop.valid & ~crop.truth].mean())


def test_point_only_keeps_what_a_box_describes_badly(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE["local"], point_only=True)
    labels = np.zeros((24, 40, 40), np.uint8)
    labels[4:20, 4:20, 4:20] = 1
    for step in range(20):
        labels[step, 20 + step // 2 : 22 + step // 2, 20 + step // 2 : 24] = 2
    labels[:, 38, 5:38] = 3
    labels[12, 24:38, 37] = 3
    paths = [write_nifti(tmp_path / f"{n}.nii.gz", a) for n, a in (("i", labels * 50), ("l", labels))]
    case = open_case(LabelledCase("a", *paths), recipe)
    assert 1 not in {o.value for o in case.objects} and 3 in {o.value for o in case.objects}
    boxed, pointed = (challenge_file(tmp_path / f"{n}.npz", boxes=n == "b") for n in "bp")
    assert len(open_case(LabelledCase("p", pointed, pointed), recipe).objects) == 2
    with pytest.raises(UserError, match="a box describes every object well"):
        open_case(LabelledCase("b", boxed, boxed), recipe)


def test_affine_augmentation_keeps_image_and_truth_together(tmp_path: Path) -> None:
    scales = {"scale_z": (0.9, 1.1), "scale_xy": (0.5, 1.5), "shift": 4.0}
    recipe = dataclasses.replace(GLOBAL, affine=1.0, flip=0.5, exact_boxes=True, **scales)
    case = opened(tmp_path, recipe)
    found = case.objects[1]
    crop = global_crop(
        case,
        found,
        Box.of_mask(case.labels == found.value),
        global_roi(Box.of_mask(case.labels == found.value)),
    )
    rng = np.random.default_rng(3)
    sides = []
    for _ in range(40):
        done = global_augmentation(recipe)(crop, rng)
        assert float(done.image[done.truth].mean()) > float(done.image[done.valid & ~done.truth].mean()) + 1
        assert not bool((done.truth & ~done.valid).any())
        box = Box.of_mask(done.truth.numpy())
        if max(box.hi) < 64 and min(box.lo) > 0:
            sides.append(box.sides)
    plain = np.array(Box.of_mask(crop.truth.numpy()).sides)
    ratios = np.array(sides) / plain
    assert 0.85 <= ratios[:, 0].min() < 0.95 and 1.05 < ratios[:, 0].max() <= 1.15
    assert 0.45 <= ratios[:, 1:].min() < 0.7 and 1.25 < ratios[:, 1:].max() <= 1.55


def test_a_random_affine_is_uniform_in_its_scale_and_shift() -> None:
    recipe, rng = dataclasses.replace(GLOBAL, scale_z=(0.9, 1.1), scale_xy=(0.5, 1.5), shift=4.0), np.random
    drawn = [drawn_affine(recipe, rng.default_rng(seed)) for seed in range(4000)]
    scales, shifts = np.array([d[0] for d in drawn]), np.array([d[1] for d in drawn])
    for axis, (low, high) in enumerate(((0.9, 1.1), (0.5, 1.5), (0.5, 1.5))):
        assert low <= scales[:, axis].min() and scales[:, axis].max() <= high
        assert np.median(scales[:, axis]) == pytest.approx(1.0, abs=0.03 * (high - low) / 0.5)
        assert scales[:, axis].std() == pytest.approx((high - low) / 12**0.5, rel=0.05)
    assert np.abs(shifts).max() <= 4 and np.abs(np.median(shifts, axis=0)).max() < 0.25


def test_a_scale_enlarges_about_the_middle_and_a_shift_moves_by_voxels() -> None:
    maps = torch.zeros(1, 64, 64, 64)
    maps[0, 24:40, 24:40, 28:36] = 1
    larger = moved(maps, [1.1, 1.5, 0.5], [0.0, 0.0, 0.0])[0] > 0.5
    assert Box.of_mask(larger.numpy()) == Box((23, 20, 30), (41, 44, 34))
    aside = moved(maps, [1.0, 0.5, 1.0], [3.0, -4.0, 2.0])[0] > 0.5
    assert Box.of_mask(aside.numpy()) == Box((27, 24, 30), (43, 32, 38))
    assert torch.allclose(moved(maps, [1.0] * 3, [0.0] * 3), maps, atol=1e-5)


def test_an_epoch_asks_for_every_object_once(tmp_path: Path) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 2))
    for kind, targets in (("global", 1), ("local", 1), ("global", 2)):
        recipe = dataclasses.replace(RECIPE[kind], scenes=1, targets=targets, smallest=1)
        counts = {case.id: 2 for case in cases}
        samples = Samples(recipe, [WeightedSource(cases)], seed=3, counts=counts)
        own, asked = samples._own(cases, 0), []
        assert len(own) == 4 // targets
        for case, visit in own:
            order = samples._order(case, 0, visit)
            assert order is not None
            asked += [(case.id, int(place)) for place in order(2)[:targets]]
        assert sorted(asked) == sorted((case.id, i) for case in cases for i in range(2))


def test_batches_of_an_epoch_show_every_object(tmp_path: Path) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 1))
    recipe = dataclasses.replace(GLOBAL, targets=1, affine=0.0, flip=0.0, exact_boxes=True)
    samples = Samples(recipe, [WeightedSource(cases)], seed=3, counts={cases[0].id: 2})
    sizes = [float(samples[number].batch.truth.float().mean()) for number in range(4)]
    # The two objects differ in shape, and so does the part of the grid that they fill.
    assert len(set(sizes[:2])) == 2 and set(sizes[2:]) == set(sizes[:2])


def test_local_augmentation_moves_the_click_with_the_object(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE["local"], size=32, targets=1, flip=0.5, rotate=0.5, intensity=1.0)
    case = opened(tmp_path, recipe)
    rng = np.random.default_rng(4)
    for _ in range(10):
        sample = local_case_sample(case, rng, recipe)
        truth, click = sample.objects[0]
        assert bool(truth[tuple(click)]) and not bool((truth & ~sample.valid).any())
        assert float(sample.image[truth].mean()) > float(sample.image[sample.valid & ~truth].mean())
        assert not bool(sample.valid.all()) and bool((sample.image[~sample.valid] == 0).all())


def test_starts_are_drawn_by_their_shares(tmp_path: Path) -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[4:16, 4:16, 4:16] = True
    exact = Box.of_mask(mask)
    recipe = dataclasses.replace(GLOBAL, starts=(0.25, 0.25, 0.25, 0.25), exact_boxes=True)
    rng = np.random.default_rng(5)
    found = [first_box(mask, recipe, rng) for _ in range(400)]
    extremes = sum(extreme for _, extreme in found)
    points = sum(box != exact for box, _ in found)
    assert abs(extremes - 100) < 40 and abs(points - 100) < 40
    # Two clicks inside the object: their box is inside its box.
    assert all(box.union(exact) == exact for box, _ in found)


def test_extreme_points_lie_on_the_object_s_faces() -> None:
    truth = torch.zeros(16, 16, 16, dtype=torch.bool)
    truth[3:9, 4:11, 5:14] = True
    points = extreme_points(truth, np.random.default_rng(0))
    assert points.shape == (4, 3)
    for z, y, x in points.long().tolist():
        assert bool(truth[z, y, x]) and (z in (3, 8) or y in (4, 10) or x in (5, 13))
    recipe = dataclasses.replace(GLOBAL, scenes=2, starts=(0.0, 1.0, 0.0, 0.0))
    batch = Samples(recipe, seed=3)[0].batch
    assert batch.labels.shape == (len(batch.truth), 4) and bool((batch.labels == 1).all())
    for row, voxels in enumerate(batch.points.long().tolist()):
        assert all(bool(batch.truth[row, z, y, x]) for z, y, x in voxels)


def test_two_processes_fill_the_slots_of_one_and_read_their_own_cases(tmp_path: Path) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 8))
    data = [WeightedSource(cases)]
    recipe = dataclasses.replace(GLOBAL, scenes=4, targets=1)
    whole = Samples(recipe, data, seed=1)
    half = dataclasses.replace(recipe, scenes=2)
    parts = [Samples(half, data, seed=1, share=Share(rank, 2)) for rank in (0, 1)]
    read = [set(), set()]
    for number in range(6):
        expected = whole[number].batch
        got = [part[number].batch for part in parts]
        for mine, together in zip(zip(*got, strict=True), expected, strict=True):
            assert torch.equal(torch.cat(mine), together)
    for rank, part in enumerate(parts):
        read[rank] = set(part.opened._cache._entries)
    assert not read[0] & read[1] and len(read[0] | read[1]) == 8


def test_every_case_comes_once_in_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [LabelledCase(f"{n}", Path("i"), Path("l")) for n in range(7)]
    seen: list[str] = []

    def note(self, case):
        seen.append(case.id)
        raise UserError(f"Case '{case.id}': nothing there")

    monkeypatch.setattr(OpenedCases, "get", note)
    samples = Samples(GLOBAL, [WeightedSource(cases)], seed=2)
    orders = []
    for epoch in range(2):
        for number in range(7 * epoch, 7 * epoch + 7):
            samples._bad.clear()
            seen.clear()
            samples[number]
            orders.append(seen[0])
    assert sorted(orders[:7]) == sorted(orders[7:]) == [c.id for c in cases] and orders[:7] != orders[7:]


def test_sources_are_drawn_by_their_weights(tmp_path: Path) -> None:
    sources = [WeightedSource("generated", 3.0), WeightedSource("generated", 1.0)]
    samples = Samples(GLOBAL, sources, seed=1)
    rng = np.random.default_rng(0)
    drawn = [samples._source(rng) is samples.data[1] for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.04)


def test_unusable_cases_give_way_and_are_named_once(tmp_path: Path) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 3))
    cases[1].label.write_bytes(b"broken")
    write_nifti(cases[2].label, np.zeros_like(volume_and_labels()[1]))
    samples = Samples(dataclasses.replace(GLOBAL, scenes=1), [WeightedSource(cases)], seed=1)
    troubles = [samples[number].troubles for number in range(6)]
    named = [name for found in troubles for name in found]
    assert sorted(named) == ["set/case_01", "set/case_02"]
    assert "no foreground" in {k: v for t in troubles for k, v in t.items()}["set/case_02"]
    cases[0].label.unlink()
    nothing = Samples(GLOBAL, [WeightedSource(cases)], seed=1)[0]
    assert nothing.batch is None and len(nothing.troubles) == 3
