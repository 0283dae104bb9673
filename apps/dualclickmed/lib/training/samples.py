"""Training samples cut from labelled cases and generated scenes, by the same geometry and intensities that
serving uses.

Batch number n depends on the recipe, the data, the seed and n alone, so that a run resumes exactly. A batch
is made in slots; every slot has its own random numbers and its own part of the cases. Two processes with two
slots each therefore draw what one process with four slots draws, and each of them reads its own files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from ..experts.inputs import local_input, map_at_points, map_in_box
from ..geometry import GLOBAL_GRID, Box, Index, Roi, crop_to_grid, global_roi, window_at
from ..intensity import normalise_global, normalise_local
from .augment import global_augmentation, local_augmentation
from .generated import Scene, make_scene
from .opened import Found, OpenedCase, OpenedCases
from .recipes import Recipe
from .sources import LabelledCase, WeightedSource

if TYPE_CHECKING:
    from .prepare import Prepared

# How often the simulated box is exact, drawn on the middle slice only (as the challenge does), or sloppy.
BOX_EXACT, BOX_MIDDLE = 0.5, 0.2
BOX_SLOPPINESS = 0.12
BORDER_SHARE = 0.25
# Pieces of objects: fewest voxels, how far the cut bends, and the share of the object that they are.
SMALLEST_PART, PART_BEND, PART_SHARE = 24, 0.25, (0.3, 0.7)
# Local targets of fewer voxels are left out, and larger ones are preferred by this power of their volume: a
# scene holds many small objects for each large one.
MIN_LOCAL_TARGET, SIZE_PREFERENCE = 120, 0.4
# Scenes of less than this part of the window are mostly border; few of them are enough to know them.
SMALL_SCENE, SMALL_SCENE_SHARE = 0.6, 0.2
# An object that fills more of a window than this has nothing to find an edge by: the window moves to its
# surface.
WINDOW_FILLED = 0.9
JITTER = 6
_T = TypeVar("_T")

STARTS = ("box", "extreme", "corner", "point")
EXTREME_SHOWN = 4


class GlobalBatch(NamedTuple):
    """image (B, 1, 64, 64, 64) normalised; truth and valid (B, 64, 64, 64) bool; points (B, N, 3) and labels
    (B, N) of first prompts besides the box's centre, N is 0 or 4 with label -1 where there are none."""

    image: Tensor
    truth: Tensor
    valid: Tensor
    points: Tensor
    labels: Tensor


class LocalBatch(NamedTuple):
    """image (W, 1, S, S, S) windows; truth and valid (B, S, S, S) bool; owner (B,) window of each object;
    first (B, 1, 3) voxel of the first click."""

    image: Tensor
    truth: Tensor
    valid: Tensor
    owner: Tensor
    first: Tensor


class Loaded(NamedTuple):
    """A batch, None if no case could be used, and the cases that turned out unusable: id to the reason."""

    batch: GlobalBatch | LocalBatch | None
    troubles: dict[str, str]


class GlobalSample(NamedTuple):
    """grey or normalised image, truth and valid, each (64, 64, 64), and whether the first prompt is the
    object's extreme points."""

    image: Tensor
    truth: Tensor
    valid: Tensor
    extreme: bool = False


class LocalSample(NamedTuple):
    """A window: image and valid (S, S, S), and for each object its truth (S, S, S) and a first click."""

    image: Tensor
    valid: Tensor
    objects: list[tuple[Tensor, list[int]]]


# What users draw ------------------------------------------------------------------------------------------


def simulated_box(mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> Box:
    """The box that a user would draw around a (D, H, W) mask: exact, of the middle slice, or a little off."""
    exact = Box.of_mask(mask)
    draw = rng.random()
    if draw < BOX_EXACT:
        return exact
    if draw < BOX_EXACT + BOX_MIDDLE:
        middle = mask[int((exact.lo[0] + exact.hi[0]) / 2)]
        if not middle.any():
            return exact
        plane = Box.of_mask(middle[None])
        return Box((exact.lo[0], plane.lo[1], plane.lo[2]), (exact.hi[0], plane.hi[1], plane.hi[2]))
    shift = rng.normal(size=(2, 3)) * BOX_SLOPPINESS / 2
    sides = np.array(exact.sides)
    lo = np.array(exact.lo) + np.round(shift[0] * sides)
    hi = np.maximum(np.array(exact.hi) + np.round(shift[1] * sides), lo + 1)
    return Box((float(lo[0]), float(lo[1]), float(lo[2])), (float(hi[0]), float(hi[1]), float(hi[2])))


def first_box(mask: npt.NDArray[np.bool_], recipe: Recipe, rng: np.random.Generator) -> tuple[Box, bool]:
    """The box about a (D, H, W) mask that an object's first prompts stand for, and whether they are extreme
    points.

    Extreme points enclose the object exactly; corner points are a box drawn by two clicks; a start by points
    has two clicks inside the object, whose box is the region's, as in serving.
    """
    if recipe.starts[1:] == (0.0, 0.0, 0.0):
        return (Box.of_mask(mask) if recipe.exact_boxes else simulated_box(mask, rng)), False
    shares = np.asarray(recipe.starts) / sum(recipe.starts)
    start = STARTS[int(rng.choice(len(STARTS), p=shares))]
    if start == "extreme":
        return Box.of_mask(mask), True
    if start == "point":
        inside = np.argwhere(mask)
        picked = inside[rng.integers(len(inside), size=2)]
        return Box.around([(int(z), int(y), int(x)) for z, y, x in picked]), False
    return (Box.of_mask(mask) if recipe.exact_boxes else simulated_box(mask, rng)), False


def extreme_points(truth: Tensor, rng: np.random.Generator) -> Tensor:
    """Four of the six extreme voxels (4, 3) of a mask on its grid: what serving shows of six such clicks."""
    at = torch.nonzero(truth)
    found = []
    for axis in range(3):
        for end in (at[:, axis].min(), at[:, axis].max()):
            face = at[at[:, axis] == end]
            found.append(face[int(rng.integers(len(face)))])
    order = torch.as_tensor(rng.permutation(len(found))[:EXTREME_SHOWN])
    return torch.stack(found)[order].float()


def _symmetry(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A random order of the axes and the axes to flip: scenes have no up or down."""
    order = [int(v) for v in rng.permutation(3)]
    flips = [axis for axis in range(3) if rng.random() < 0.5]
    return order, flips


def _turned(values: Tensor, order: list[int], flips: list[int]) -> Tensor:
    return values.permute(order).flip(flips)


def _touches_border(mask: npt.NDArray[np.bool_]) -> bool:
    return any(bool(mask.take((0, -1), axis=axis).any()) for axis in range(3))


def _inside(shape: Sequence[int], roi: Roi) -> Tensor:
    """Which cells of a region lie in an image of that shape."""
    return crop_to_grid(np.broadcast_to(np.uint8(1), shape), roi) > 0.5


# Global samples -------------------------------------------------------------------------------------------


def part_of(mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A piece of an object, cut off by a bent surface that nothing in the image shows.

    So are lobes, segments and the parts of an organ that anatomy names: what tells them from the rest is the
    box and the clicks. Long objects are mostly cut across.
    """
    at = np.argwhere(mask)
    if len(at) < 4 * SMALLEST_PART:
        return mask
    centred = at - at.mean(axis=0)
    spreads, axes = np.linalg.eigh(np.cov(centred.T) + np.eye(3))
    along = (centred @ axes) / np.sqrt(spreads)
    normal = rng.normal(size=3) * np.sqrt(spreads)
    normal /= np.linalg.norm(normal)
    side = rng.normal(size=3)
    height = along @ normal + PART_BEND * rng.normal() * (along @ (side / np.linalg.norm(side))) ** 2
    kept = height < np.quantile(height, rng.uniform(*PART_SHARE))
    part = np.zeros_like(mask)
    part[tuple(at[kept].T)] = True
    return part


def global_samples(scene: Scene, rng: np.random.Generator, recipe: Recipe) -> list[GlobalSample]:
    """Up to `recipe.targets` samples of one scene, each on the 64-voxel grid of its RoI."""
    masks = [scene.mask(scene.targets[int(i)]).numpy(force=True) for i in rng.permutation(len(scene.targets))]
    # Scenes are small, so many objects are cut by their border, which real images rarely do: keep some of
    # those only.
    masks = [m for m in masks if rng.random() < BORDER_SHARE or not _touches_border(m)] or masks
    array = scene.image.numpy(force=True)
    samples = []
    for mask in masks[: recipe.targets]:
        if rng.random() < recipe.parts:
            mask = part_of(mask, rng)
        box, extreme = first_box(mask, recipe, rng)
        roi = global_roi(box)
        image = normalise_global(crop_to_grid(array, roi))
        truth = crop_to_grid(mask.astype(np.uint8), roi) > 0.5
        if not bool(truth.any()):
            continue
        order, flips = _symmetry(rng)
        image, truth, valid = (_turned(v, order, flips) for v in (image, truth, _inside(array.shape, roi)))
        samples.append(GlobalSample(image, truth, valid, extreme))
    return samples


def global_crop(opened: OpenedCase, found: Found, box: Box) -> GlobalSample:
    """One object of a case on the grid of the RoI about `box`: grey levels in [0, 255], truth and valid.

    Its `normalise_global` is what the global expert computes for that box. An object so thin that no cell is
    half filled is where it fills cells most.
    """
    volume = opened.volume
    roi = global_roi(box, grid=GLOBAL_GRID)
    grey_map = map_in_box(volume, box, "auto")
    grey = crop_to_grid(volume.array, roi, lambda stored: grey_map(volume.to_real(stored)))
    share = crop_to_grid(opened.labels, roi, lambda values: (values == found.value).float())
    truth = share > 0.5
    if not bool(truth.any()):
        truth = share >= share.max() / 2
    return GlobalSample(grey, truth, _inside(volume.shape, roi))


def case_crops(opened: OpenedCase, rng: np.random.Generator, recipe: Recipe) -> list[GlobalSample]:
    """Crops of up to `recipe.targets` objects of a case, each object as likely as any other; grey levels."""
    crops = []
    for place in rng.permutation(len(opened.objects))[: recipe.targets]:
        found = opened.objects[int(place)]
        box, extreme = drawn_box(opened, found, recipe, rng)
        crops.append(global_crop(opened, found, box)._replace(extreme=extreme))
    return crops


def drawn_box(opened: OpenedCase, found: Found, recipe: Recipe, rng: np.random.Generator) -> tuple[Box, bool]:
    """`first_box` of an object of a case, in the volume's voxels."""
    box, extreme = first_box(opened.mask(found), recipe, rng)
    lo, hi = (
        tuple(edge + s.start for edge, s in zip(edges, found.region, strict=True))
        for edges in (box.lo, box.hi)
    )
    return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2])), extreme


# Local samples --------------------------------------------------------------------------------------------


def local_scene_sample(scene: Scene, rng: np.random.Generator, recipe: Recipe) -> LocalSample | None:
    """A window of a scene with up to `recipe.targets` objects, or None if there is nothing worth asking for.

    A window is centred near an interior voxel of one target; the other targets whose interior it holds are
    asked for on the same features, which costs little and teaches that the click decides, not the window.
    """
    size = recipe.size
    if max(scene.image.shape) < SMALL_SCENE * size and rng.random() > SMALL_SCENE_SHARE:
        return None
    masks = [m for m in map(scene.mask, scene.targets) if int(m.sum()) >= MIN_LOCAL_TARGET]
    if not masks:
        return None
    weights = np.array([float(m.sum()) for m in masks]) ** SIZE_PREFERENCE
    count = min(recipe.targets, len(masks))
    picked = rng.choice(len(masks), size=count, replace=False, p=weights / weights.sum())
    masks = [masks[int(i)] for i in picked]
    roi = window_at(_jittered(interior_voxel(masks[0], rng), rng), (size, size, size))
    array = scene.image.numpy(force=True)
    low, high = np.percentile(array[::2, ::2, ::2], (1, 99))
    image = crop_to_grid(array, roi, lambda v: normalise_local(v, float(low), float(high)))
    order, flips = _symmetry(rng)
    objects = []
    for mask in masks:
        truth = crop_to_grid(mask.numpy(force=True).astype(np.uint8), roi) > 0.5
        if int(truth.sum()) < MIN_LOCAL_TARGET:
            continue
        truth = _turned(truth, order, flips)
        objects.append((truth, list(interior_voxel(truth, rng))))
    if not objects:
        return None
    valid = _inside(array.shape, roi)
    return LocalSample(_turned(image, order, flips), _turned(valid, order, flips), objects)


def local_case_sample(opened: OpenedCase, rng: np.random.Generator, recipe: Recipe) -> LocalSample:
    """A window of a case about an object, each of them as likely as any other however large it is.

    Other objects in the window are asked for on the same features, if a click in them leads to the same
    intensities. An object larger than the window is cut by it.
    """
    size = (recipe.size,) * 3
    objects = [opened.objects[int(i)] for i in rng.permutation(len(opened.objects))]
    mask = torch.from_numpy(opened.mask(objects[0]))
    at = _moved(interior_voxel(mask, rng), objects[0])
    roi = window_at(_jittered(at, rng), size)
    labels = crop_to_grid(opened.labels, roi)
    if float((labels == objects[0].value).float().mean()) > WINDOW_FILLED:
        at = _moved(_surface_voxel(mask, rng), objects[0])
        roi = window_at(at, size)
        labels = crop_to_grid(opened.labels, roi)
    grey_map = map_at_points(opened.volume, [at], "auto")
    image = local_input(opened.volume, roi, grey_map)[0, 0]
    found = []
    for each in objects:
        truth = labels == each.value
        if each is not objects[0]:
            if int(truth.sum()) < recipe.smallest:
                continue
            voxel = roi.to_voxel([interior_voxel(truth, rng)])[0].round().astype(int)
            place = (int(voxel[0]), int(voxel[1]), int(voxel[2]))
            if map_at_points(opened.volume, [place], "auto") != grey_map:
                continue
        found.append(truth)
        if len(found) == recipe.targets:
            break
    image, valid, truths = local_augmentation(recipe)(
        image, _inside(opened.volume.shape, roi), torch.stack(found), rng
    )
    return LocalSample(image, valid, [(truth, list(interior_voxel(truth, rng))) for truth in truths])


def _moved(voxel: Index, found: Found) -> Index:
    z, y, x = (v + s.start for v, s in zip(voxel, found.region, strict=True))
    return z, y, x


def _jittered(centre: Index, rng: np.random.Generator) -> Index:
    shift = rng.integers(-JITTER, JITTER + 1, size=3) if rng.random() < 0.5 else np.zeros(3, dtype=int)
    z, y, x = (int(v) for v in np.asarray(centre) + shift)
    return z, y, x


def interior_voxel(mask: Tensor, rng: np.random.Generator) -> Index:
    """A voxel inside a mask (D, H, W), mostly away from its surface."""
    at = torch.nonzero(mask)
    if len(at) > 200 and rng.random() < 0.8:
        inner = mask.clone()
        for _ in range(2):
            inner = eroded(inner)
        if bool(inner.any()):
            at = torch.nonzero(inner)
    z, y, x = at[int(rng.integers(len(at)))].tolist()
    return z, y, x


def _surface_voxel(mask: Tensor, rng: np.random.Generator) -> Index:
    at = torch.nonzero(mask & ~eroded(torch.nn.functional.pad(mask, (1,) * 6))[1:-1, 1:-1, 1:-1])
    z, y, x = at[int(rng.integers(len(at)))].tolist()
    return z, y, x


def eroded(mask: Tensor) -> Tensor:
    """The voxels of a mask whose six neighbours belong to it; beyond a border comes the opposite one."""
    kept = mask.clone()
    for axis in range(3):
        kept &= mask.roll(1, axis) & mask.roll(-1, axis)
    return kept


# Batches --------------------------------------------------------------------------------------------------

GENERATED = (WeightedSource("generated"),)


class Samples(Dataset[Loaded]):
    """Batches of a recipe from mixed sources.

    Args:
        recipe: its kind decides whether the batches are `GlobalBatch` or `LocalBatch`.
        data: the sources; every slot of a batch draws one by their weights.
        seed: of the whole sequence.
        rank, world: number of this process and of all; each fills its own slots.
        opened: how cases are opened, and their memory.
        prepared: crops made beforehand, which spare the global expert opening the volumes.
        device: where scenes are made; the batch is returned there.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Sequence[WeightedSource] = GENERATED,
        seed: int = 1,
        rank: int = 0,
        world: int = 1,
        opened: OpenedCases | None = None,
        prepared: Prepared | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.recipe, self.data, self.seed = recipe, tuple(data), seed
        self.rank, self.world = rank, world
        self.device = torch.device(device)
        self.opened = OpenedCases(recipe) if opened is None else opened
        self.prepared = prepared
        self._weights = np.array([source.weight for source in self.data])
        self._weights = self._weights / self._weights.sum()
        self._bad: dict[str, str] = {}

    def __getitem__(self, number: int) -> Loaded:
        troubles: dict[str, str] = {}
        fill = self._global_slot if self.recipe.kind == "global" else self._local_slot
        slots = range(self.rank * self.recipe.scenes, (self.rank + 1) * self.recipe.scenes)
        try:
            filled = [fill(number, slot, troubles) for slot in slots]
        except _NothingUsable:
            return Loaded(None, troubles)
        batch = _global_batch(filled) if self.recipe.kind == "global" else _local_batch(filled)  # type: ignore[arg-type]
        return Loaded(type(batch)(*(part.to(self.device) for part in batch)), troubles)

    def _source(self, rng: np.random.Generator) -> WeightedSource:
        if len(self.data) == 1:
            return self.data[0]
        return self.data[int(rng.choice(len(self.data), p=self._weights))]

    def _global_slot(
        self, number: int, slot: int, troubles: dict[str, str]
    ) -> list[tuple[GlobalSample, Tensor]]:
        recipe = self.recipe
        rng = np.random.default_rng((self.seed, number, slot))
        source = self._source(rng)
        samples: list[GlobalSample] = []
        if source.cases == "generated":
            while not samples:
                samples = global_samples(make_scene(rng, device=self.device), rng, recipe)
        else:
            augment = global_augmentation(recipe)

            def take(case: LabelledCase) -> list[GlobalSample]:
                return [augment(crop, rng) for crop in self._crops(case, rng)]

            samples = self._from_cases(source.cases, number, slot, take, troubles)
        return [(sample, self._first_points(sample, rng)) for sample in samples]

    def _crops(self, case: LabelledCase, rng: np.random.Generator) -> list[GlobalSample]:
        if self.prepared is not None:
            crops = self.prepared.crops(case, rng, self.recipe.targets)
            if crops is not None:
                return crops
        return case_crops(self.opened.get(case), rng, self.recipe)

    def _first_points(self, sample: GlobalSample, rng: np.random.Generator) -> Tensor:
        """(4, 3) with NaN where there are none; (0, 3) if no start shows any."""
        if self.recipe.starts[1] == 0:
            return torch.zeros(0, 3)
        if sample.extreme:
            return extreme_points(sample.truth, rng)
        return torch.full((EXTREME_SHOWN, 3), torch.nan)

    def _local_slot(self, number: int, slot: int, troubles: dict[str, str]) -> LocalSample:
        rng = np.random.default_rng((self.seed, number, slot))
        source = self._source(rng)
        if source.cases != "generated":
            return self._from_cases(
                source.cases,
                number,
                slot,
                lambda case: local_case_sample(self.opened.get(case), rng, self.recipe),
                troubles,
            )
        while True:
            scene = make_scene(rng, size=int(self.recipe.size * rng.uniform(0.8, 1.25)), device=self.device)
            sample = local_scene_sample(scene, rng, self.recipe)
            if sample is not None:
                return sample

    def _from_cases(
        self,
        cases: Sequence[LabelledCase],
        number: int,
        slot: int,
        take: Callable[[LabelledCase], _T],
        troubles: dict[str, str],
    ) -> _T:
        """What `take` makes of the slot's case; a case that can't be used gives way to the next one."""
        slots = self.recipe.scenes * self.world
        own = cases[slot::slots] if len(cases) >= slots else cases
        epoch, place = divmod(number, len(own))
        order = np.random.default_rng((self.seed, epoch, slot)).permutation(len(own))
        for turn in range(len(own)):
            case = own[int(order[(place + turn) % len(own)])]
            if case.id in self._bad:
                continue
            try:
                return take(case)
            except UserError as error:
                self._bad[case.id] = troubles[case.id] = str(error)
        troubles.update({case.id: self._bad[case.id] for case in own})
        raise _NothingUsable


class _NothingUsable(Exception):
    """Every case of a slot is unusable."""


def _global_batch(slots: Sequence[list[tuple[GlobalSample, Tensor]]]) -> GlobalBatch:
    samples = [sample for slot in slots for sample, _ in slot]
    points = torch.stack([first for slot in slots for _, first in slot])
    given = ~points.isnan().any(dim=-1)
    return GlobalBatch(
        torch.stack([s.image for s in samples])[:, None],
        torch.stack([s.truth for s in samples]),
        torch.stack([s.valid for s in samples]),
        points.nan_to_num(),
        torch.where(given, 1, -1),
    )


def _local_batch(windows: Sequence[LocalSample]) -> LocalBatch:
    objects = [(owner, w.valid, *found) for owner, w in enumerate(windows) for found in w.objects]
    return LocalBatch(
        torch.stack([w.image for w in windows])[:, None],
        torch.stack([truth for _, _, truth, _ in objects]),
        torch.stack([valid for _, valid, _, _ in objects]),
        torch.tensor([owner for owner, _, _, _ in objects]),
        torch.tensor([click for _, _, _, click in objects])[:, None],
    )
