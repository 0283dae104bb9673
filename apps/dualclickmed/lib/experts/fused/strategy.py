"""`strategy=fused`: a network's answer, refined by the image's edges and every click.

The paper routes each object to one expert and leaves joining the two as future work (section 4.5). Here an
expert says what the object may be, and `refinement` decides with the image and the clicks.

Clicks are taken one after the other, each as a correction of the mask that its user saw: how far it reaches
depends on that mask, and away from it that mask holds. A request lists foreground and background clicks apart
and so does not say which came first. Both lists are in order, and users click where the mask is wrong: of
the two next clicks, the one deeper in what it contradicts is taken for the earlier one. The answer is still a
function of the request; what was found after the first clicks is kept, so that the next one costs one step.

Objects of one request share the image: a voxel that was clicked for one of them does not belong to another.
Where it lies in another's mask it counts there, last of all, as a background click.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from ...byte_cache import ByteCache
from ...imaging.geometry import Box, Index, Region, Roi, crop_to_grid, paste_from_grid, resampled
from ...imaging.prompts import Click, Prompts
from ...imaging.volume import Volume
from ..global_expert import GlobalExpert
from ..local_expert import OUTSIDE_LOGIT, LocalExpert, cells_along
from ..prediction import (
    NOWHERE,
    Prediction,
    enclosing_region,
    filled_region,
    intersection,
    paste_object,
    within,
)
from ..timing import StageTimer
from .boxes import is_nearly_empty, proposed_box, widened
from .random_walker import Field
from .refinement import NETWORK_LIMIT as LIMIT
from .refinement import (
    CellClick,
    ClickEvidence,
    RegionFeatures,
    accumulate_click_evidence,
    held_away_from_clicks,
    inscribed_ellipsoid,
    refined,
    sigmoid,
)
from .scattered_clicks import without_empty_places
from .seen import Seen
from .window_search import searched

MOST_ROUNDS = 16
"""Steps in which all clicks are taken at most; of more clicks several are taken at once."""
SURROUNDINGS = 1.5
"""How much longer than clicks, proposed box and what the local expert found together the region of an object
without a box is, on each axis."""
LEAST_SIDE = 24.0
"""Shortest side of that region in voxels."""
LEAST_LOCAL = 0.25
"""Least weight of the local expert's logits in their mean with the global one's, where no box is drawn."""
LARGEST_LOCAL = 32.0
"""The local expert is not asked about objects that are longer than this, in cells of its narrow view."""
FIRST_CLICKS = 3
"""Clicks without a box of which one may show that the first one meant another object (`Seen.is_refuted_by`);
later ones correct the mask."""
LEAST_EVIDENCE = 0.05
"""Evidence of clicks from which on a voxel of a given mask is decided anew (`refinement.ClickEvidence`)."""
PROBED = 0.15
"""Width of the part that `Refined.where_next` looks at, as a part of the object's size."""
SHARPNESS = 2.0
"""Factor on the answer's logits that calibrates them (docs/experiments.md); random walks shrink logits."""
_LEAST = 1e-4


@dataclass(frozen=True, eq=False)
class Refined:
    """One object's answer.

    Attributes:
        predictions: of the object, as an expert gives them.
        roi: the region that was refined.
        probability: float32 of the region's grid, in [0, 1]; above 0.5 inside.
        clicked: the cells that were clicked.
    """

    predictions: list[Prediction]
    roi: Roi
    probability: Field
    clicked: list[Index]

    @property
    def uncertainty(self) -> Field:
        """Of each cell, in [0, 1]: 1 where the object is as likely as not, 0 where the answer is certain."""
        return 1 - np.abs(2 * self.probability - 1)

    def where_next(self) -> Index | None:
        """The voxel whose click would tell most: where a wide part of the object's surroundings is unsure.

        The surface of every object is unsure, so what counts is the mean over a part of the object's size.
        None where everything is certain, or clicked.
        """
        width = max(1.0, PROBED * float((self.probability > 0.5).sum()) ** (1 / 3))
        unsure = ndimage.gaussian_filter(self.uncertainty, width, mode="constant")
        unsure *= self.uncertainty
        for z, y, x in self.clicked:
            unsure[max(0, z - 1) : z + 2, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 0
        best = int(unsure.argmax())
        if unsure.flat[best] < _LEAST:
            return None
        cell = np.asarray(np.unravel_index(best, unsure.shape))
        z, y, x = (int(p) for p in np.rint(self.roi.to_voxel(cell)[0]))
        return z, y, x


class Fusion:
    """Segments one object at a time by refining the output of an expert.

    Args:
        cache: keeps region features, and what was found after each click, between requests; may be shared
            with the experts.
    """

    def __init__(self, cache: ByteCache) -> None:
        self.cache = cache

    def predict(
        self,
        expert: GlobalExpert | LocalExpert,
        volume: Volume,
        prompts: Prompts,
        intensity: str,
        stages: StageTimer,
        other: GlobalExpert | None = None,
        elsewhere: Sequence[Index] = (),
    ) -> Refined:
        """Segment one object.

        The expert predicts from the box or the first click, and again from all clicks after each further
        click; the refinement lets each click change what is near. A mask in the prompts is what clicks
        correct: away from them it stays as it is; without clicks the expert sees it.

        Args:
            expert: whose logits are refined.
            volume: the image.
            prompts: checked for this volume. Foreground and background clicks count in their own order; how
                the two are interleaved plays no part.
            intensity: one of `intensity.CHOICES`.
            stages: receives seconds spent in crop, encode, decode, refine and paste.
            other: for an object without a box: it looks for one at the first click (`window_search`), and
                with each further click it predicts from the box around the mask so far; its logits are
                averaged with those of the local expert.
            elsewhere: voxels that belong to other objects. Those in the mask after all clicks count as
                background clicks that came last; others change nothing.

        Raises:
            As the expert's `predict`.
        """
        if prompts.box is not None:
            prompts = replace(prompts, box=widened(prompts.box, prompts.foreground))
        request = _Request(self.cache, expert, other, volume, prompts, intensity, stages, elsewhere)
        seen, agreeing = request.seen()
        features, probability = seen.features, seen.probability
        if prompts.mask is None:
            with stages.timed("refine"):
                probability = without_empty_places(features, probability, agreeing)
        with stages.timed("paste"):
            sure = torch.logit(torch.from_numpy(probability).clamp(_LEAST, 1 - _LEAST))
            found = [paste_object(sure, features.roi, volume.shape)]
            if prompts.clicks and prompts.mask is not None:
                strength = torch.from_numpy(np.abs(seen.evidence.balance))
                found = _kept(prompts.mask, sure, strength, features.roi)
        cells = [c.cell for c in _cell_clicks(features, prompts.clicks)]
        return Refined(found, features.roi, calibrated(probability), cells)


@dataclass(frozen=True, eq=False)
class _Request:
    """One call of `Fusion.predict`."""

    cache: ByteCache
    expert: GlobalExpert | LocalExpert
    other: GlobalExpert | None
    volume: Volume
    prompts: Prompts
    intensity: str
    stages: StageTimer
    elsewhere: Sequence[Index]

    def seen(self) -> tuple[Seen, list[Index]]:
        """What the user sees after all clicks, and the foreground clicks that lay in the mask before them."""
        clicks = self.prompts.clicks
        queues = {kind: deque(c for c in clicks if c.positive == kind) for kind in (True, False)}
        # What the local expert is asked first needs a click; a box alone is enough for the global one.
        opening: tuple[Click, ...] = ()
        if isinstance(self.expert, LocalExpert) and queues[True]:
            opening = (queues[True].popleft(),)
        meant = self._meant()
        seen, given = self._opened(opening, meant), opening
        agreeing: list[Index] = []
        while queues[True] or queues[False]:
            new = _next_clicks(seen, queues, self.step_size)
            agreeing += [click.index for click in new if click.positive and seen.agrees_with(click)]
            given = (*given, *new)
            early = len(given) <= FIRST_CLICKS and self.prompts.mask is None
            if early and any(seen.is_refuted_by(click) for click in new):
                other = self._meant([click.index for click in given if not click.positive])
                if other not in (None, meant):
                    # As if this object had been found at the first click.
                    meant = other
                    seen, new = self._opened(opening, meant), given[1:]
            seen = self._after(seen, new, given, meant)
        conflicting = self._conflicting_clicks(seen)
        if conflicting:
            seen = self._after(seen, conflicting, (*given, *conflicting), meant)
        return seen, agreeing

    @cached_property
    def step_size(self) -> int:
        """How many clicks are taken in one step."""
        size = 1
        while size * MOST_ROUNDS < len(self.prompts.clicks):
            size *= 2
        return size

    @cached_property
    def _key(self) -> tuple[Hashable, ...]:
        return (
            self.volume.key, self.expert.weights_key, self.other and self.other.weights_key, self.prompts.box,
            self.intensity, _content(self.prompts.mask), bool(self.prompts.clicks), self.step_size,
        )  # fmt: skip

    def _conflicting_clicks(self, seen: Seen) -> tuple[Click, ...]:
        """Other objects' voxels in the mask, as background clicks; not in a cell that has a click already."""
        features = seen.features
        cells = {index: features.cell(index) for index in self.elsewhere if features.roi.box.contains(index)}
        held = {index: cell for index, cell in cells.items() if seen.probability[cell] > 0.5}
        if not held:
            return ()
        mine = {click.cell for click in _cell_clicks(features, self.prompts.clicks)}
        return tuple(Click(index, False) for index, cell in held.items() if cell not in mine)

    def _features(self, box: Box) -> RegionFeatures:
        return self.cache.get((self.volume.key, box), lambda: RegionFeatures.of(self.volume, box))

    def _opened(self, opening: tuple[Click, ...], meant: Box | None) -> Seen:
        """What the user saw after the first prompt, before the first correction."""
        seen = self.cache.get((*self._key, meant, opening, ()), lambda: self._begun(opening, meant))
        return self._after(seen, opening, opening, meant) if opening else seen

    def _begun(self, opening: tuple[Click, ...], meant: Box | None) -> Seen:
        """What the experts say first."""
        correcting = bool(self.prompts.clicks) and self.prompts.mask is not None
        asked = replace(self.prompts, clicks=opening, mask=None if correcting else self.prompts.mask)
        sought = meant if opening and not correcting else None
        if sought is not None:
            source, opinion = self._in_box(replace(asked, clicks=()), sought, None)
        else:
            source, opinion = self._asked(asked, None, meant)
        with self.stages.timed("refine"):
            features = self._features(source.box)
            if sought is not None:
                # Nobody sees this mask: the first click's own step takes its box and refines what is there.
                probability = sigmoid(resampled(opinion, source, features.roi).numpy())
            elif correcting:
                logits = self._mask_logits(features)
                probability = sigmoid(logits)
            else:
                probability = refined(
                    features, resampled(opinion, source, features.roi).numpy(), self.prompts.box
                )
                if self.prompts.box is not None and is_nearly_empty(probability, features, self.prompts.box):
                    probability = inscribed_ellipsoid(features.roi, self.prompts.box)
        return Seen(features, probability, ClickEvidence.nothing(features.roi.grid), self.prompts.box)

    def _after(self, seen: Seen, new: tuple[Click, ...], given: tuple[Click, ...], meant: Box | None) -> Seen:
        """What the user sees after some new clicks."""
        return self.cache.get(
            (*self._key, meant, given, new), lambda: self._corrected(seen, new, given, meant)
        )

    def _corrected(
        self, seen: Seen, new: tuple[Click, ...], given: tuple[Click, ...], meant: Box | None
    ) -> Seen:
        # The first click without a box agrees by definition: what was seen is what it means.
        opening = isinstance(self.expert, LocalExpert) and given == new
        new = new if opening else tuple(click for click in new if not seen.agrees_with(click))
        if not new:
            return seen
        source, opinion = self._asked(replace(self.prompts, clicks=given, mask=None), seen, meant)
        with self.stages.timed("refine"):
            features = self._features(source.box)
            seen = seen.moved(features)
            logits = resampled(opinion, source, features.roi).numpy()
            if self.prompts.mask is not None:
                logits = (logits + self._mask_logits(features)) / 2
            clicks = _cell_clicks(features, given)
            fresh = [c for c in _cell_clicks(features, new) if c in clicks]
            evidence, reaches = accumulate_click_evidence(features, fresh, clicks, seen.depths, seen.evidence)
            found = refined(features, logits, self.prompts.box, clicks, evidence)
            # A box says how large the object is. Without one nothing but the clicks does.
            bounded = self.prompts.box is None and not opening
            found = held_away_from_clicks(features, found, seen.probability, reaches, bounded)
            return Seen(features, found, evidence, self.prompts.box)

    def _asked(self, prompts: Prompts, seen: Seen | None, meant: Box | None) -> tuple[Roi, Tensor]:
        """What the experts say: a region and logits there.

        Without a box it is a mean of what the local expert says and what the global one says for the box of
        what was seen last. With each click that box is truer: the local one counts as much as one of
        the clicks, but no less than `LEAST_LOCAL`. What is too large for it is left to the global one.
        """
        if isinstance(self.expert, GlobalExpert):
            return self._global(self.expert, prompts, seen)
        box = None
        if self.other is not None and seen is not None:
            box = proposed_box(seen.probability > 0.5, seen.features, prompts.foreground)
        large = meant is not None and cells_along(meant, self.volume) > LARGEST_LOCAL
        if box is not None and large:
            return self._in_box(prompts, box, seen)
        found = self.expert.predict(
            self.volume, prompts, self.intensity, self.stages, adaptive=True, narrow=meant is not None
        )
        around = prompts.enclosing_box() if box is None else prompts.enclosing_box().union(box)
        source, local = _in_one_region(found, around, self.volume.shape)
        if box is None:
            return source, local
        roi, whole = self._in_box(prompts, box, seen)
        share = max(1 / (1 + len(prompts.clicks)), LEAST_LOCAL)
        return source, share * local.clamp(-LIMIT, LIMIT) + (1 - share) * resampled(whole, roi, source)

    def _in_box(self, prompts: Prompts, box: Box, seen: Seen | None) -> tuple[Roi, Tensor]:
        """What the global expert says for a box that nobody drew."""
        assert self.other is not None
        boxed = replace(prompts, box=box, mask=None)
        return self._global(self.other.expert_for(self.volume, boxed), boxed, seen)

    def _meant(self, background: Sequence[Index] = ()) -> Box | None:
        """The box of what the first foreground click means: an object that holds none of some voxels.

        None where the global expert can't look for it, or finds none.
        """
        if self.other is None or not self.prompts.foreground:
            return None
        click = Click(self.prompts.foreground[0], True)
        other = self.other.expert_for(self.volume, Prompts((click,)))
        if not other.network.answers_clicks_alone:
            return None
        key = (self.volume.key, other.weights_key, self.intensity, click)
        return self.cache.get(
            key, lambda: searched(other, self.volume, click, self.intensity, self.stages)
        ).box(background)

    def _global(self, expert: GlobalExpert, prompts: Prompts, seen: Seen | None) -> tuple[Roi, Tensor]:
        """What the global expert says.

        With clicks it is the mean of what it says without and with them: either may be wrong where the other
        is right, and a mean moves less with each click.
        """
        volume, intensity, stages = self.volume, self.intensity, self.stages
        clicked = bool(prompts.clicks)
        source, first = expert.logits(volume, prompts, intensity, stages, corrected=not clicked)
        first = first.clamp(-LIMIT, LIMIT)
        if not clicked:
            return source, first
        before = None if seen is None else seen.logits_on
        _, second = expert.logits(volume, prompts, intensity, stages, before=before)
        return source, (first + second.clamp(-LIMIT, LIMIT)) / 2

    def _mask_logits(self, features: RegionFeatures) -> Field:
        assert self.prompts.mask is not None
        inside = crop_to_grid(self.prompts.mask, features.roi).numpy() >= 0.5
        return np.where(inside, np.float32(LIMIT), np.float32(-LIMIT))


def _next_clicks(seen: Seen, queues: Mapping[bool, deque[Click]], size: int) -> tuple[Click, ...]:
    """Take the clicks that were given next, at most `size`: of the two kinds' first ones the deeper one."""
    if size >= len(queues[True]) + len(queues[False]) or not (queues[True] and queues[False]):
        ready = (*queues[True], *queues[False])[:size]
        for click in ready:
            queues[click.positive].popleft()
        return ready

    taken: list[Click] = []
    while len(taken) < size and (queues[True] or queues[False]):
        kinds = [kind for kind in (True, False) if queues[kind]]
        taken.append(queues[max(kinds, key=lambda kind: seen.depth_of(queues[kind][0]))].popleft())
    return tuple(taken)


def _content(mask: npt.NDArray[np.generic] | None) -> Hashable:
    """Stands for a mask: where it is and what is there."""
    if mask is None:
        return None
    region = filled_region(mask)
    inside = np.packbits(np.ascontiguousarray(mask[region] != 0))
    return (
        tuple((s.start, s.stop) for s in region),
        hashlib.blake2b(inside.tobytes(), digest_size=16).digest(),
    )


def _in_one_region(parts: Sequence[Prediction], clicked: Box, shape: Index) -> tuple[Roi, Tensor]:
    """What the local expert found, with its surroundings: voxels of one region and their logits."""
    found = [part.trimmed() for part in parts]
    region = enclosing_region([part.region for part in found])
    box = clicked if region == NOWHERE else clicked.union(_box(region))
    voxels = box.scaled(SURROUNDINGS).at_least(LEAST_SIDE).centres(shape)
    logits = np.full([s.stop - s.start for s in voxels], -OUTSIDE_LOGIT, dtype=np.float32)
    for part in parts:
        shared = intersection(part.region, voxels)
        if shared is not None:
            logits[within(shared, voxels)] = part.logits[within(shared, part.region)]
    depth, height, width = logits.shape
    return Roi(_box(voxels), (depth, height, width)), torch.from_numpy(logits)


def calibrated(probability: Field) -> Field:
    """Probabilities that are as often right as they say; above 0.5 where they were."""
    inside = torch.from_numpy(probability).clamp(0, 1)
    return torch.sigmoid(SHARPNESS * torch.logit(inside)).numpy()


def _cell_clicks(features: RegionFeatures, clicks: Sequence[Click]) -> list[CellClick]:
    """The clicks in a region, at most one for each cell, none where a cell was clicked as both."""
    kinds: dict[Index, set[bool]] = {}
    for click in clicks:
        if features.roi.box.contains(click.index):
            kinds.setdefault(features.cell(click.index), set()).add(click.positive)
    return [CellClick(cell, kind.pop()) for cell, kind in sorted(kinds.items()) if len(kind) == 1]


def _kept(mask: npt.NDArray[np.generic], logits: Tensor, evidence: Tensor, roi: Roi) -> list[Prediction]:
    """The given mask; only where click evidence is above `LEAST_EVIDENCE` does it get new logits."""
    region, values = paste_from_grid(logits, roi, mask.shape)
    _, there = paste_from_grid(evidence, roi, mask.shape)
    whole = enclosing_region([region, filled_region(mask)])
    result = np.where(mask[whole] != 0, np.float32(OUTSIDE_LOGIT), np.float32(-OUTSIDE_LOGIT))
    inner = within(region, whole)
    result[inner] = np.where(there.numpy() > LEAST_EVIDENCE, values.numpy(), result[inner])
    return [Prediction(whole, result)]


def _box(region: Region) -> Box:
    z, y, x = region
    return Box((z.start, y.start, x.start), (z.stop, y.stop, x.stop))
