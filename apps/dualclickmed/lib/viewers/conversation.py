"""One user's work on one image: the interactions so far, the mask that the viewer shows, and undo.

The mask is a function of the image and the interactions; states are kept so that undo costs nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import PromptError
from ..experts.prediction import enclosing_region, filled_region
from ..imaging.geometry import Region
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from .interactions import Interaction, Mask, prompts_of

Segment = Callable[[Volume, Prompts, Mask | None], Mask]
"""Gives the mask (D, H, W) of one object from its prompts; a mask that is there already is corrected."""
MOST_STATES = 10_000
_STATE_BYTES = 1 << 10
"""Of a state besides its mask and voxels."""


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A mask in little memory."""

    region: Region
    bits: bytes

    @classmethod
    def of(cls, mask: Mask) -> PackedMask:
        """A mask (D, H, W), packed."""
        region = filled_region(mask)
        return cls(region, zlib.compress(np.packbits(mask[region]).tobytes(), 1))

    @property
    def nbytes(self) -> int:
        """Memory of the packed voxels."""
        return len(self.bits)

    @property
    def is_empty(self) -> bool:
        """Whether no voxel is set."""
        return any(side.start >= side.stop for side in self.region)

    def part(self, region: Region) -> Mask:
        """The mask in a region that holds all of it."""
        found = np.zeros([side.stop - side.start for side in region], dtype=np.bool_)
        if not self.is_empty:
            shape = [side.stop - side.start for side in self.region]
            bits = np.frombuffer(zlib.decompress(self.bits), dtype=np.uint8)
            own = tuple(
                slice(mine.start - whole.start, mine.stop - whole.start)
                for mine, whole in zip(self.region, region, strict=True)
            )
            found[own] = np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape)
        return found


@dataclass(frozen=True, eq=False)
class State:
    """After some interactions.

    Attributes:
        mask: what the viewer shows.
        done: what led to it, the oldest first.
        start: the mask that was there before all of it; None without one.
    """

    mask: PackedMask
    done: tuple[Interaction, ...] = ()
    start: PackedMask | None = None

    @property
    def nbytes(self) -> int:
        """Of this state alone: earlier interactions are shared with earlier states."""
        last = self.done[-1].nbytes if self.done else 0
        return _STATE_BYTES + 8 * len(self.done) + self.mask.nbytes + last


@dataclass(frozen=True, eq=False)
class Change:
    """The change of a mask.

    Attributes:
        region: the smallest that holds every voxel that changed; None if none did.
        voxels: bool, the mask in that region.
    """

    region: Region | None
    voxels: Mask


class Conversation:
    """What one user does with one image; not thread-safe.

    Args:
        volume: the image.
        segment: makes masks; what it raises leaves everything as it was.
    """

    def __init__(self, volume: Volume, segment: Segment) -> None:
        self.volume = volume
        self._segment = segment
        self._nothing = PackedMask.of(np.zeros((1, 1, 1), dtype=np.bool_))
        self._shown = self._nothing
        self._states = [State(self._nothing)]

    @property
    def nbytes(self) -> int:
        """Memory of the image and of all states."""
        return self.volume.nbytes + sum(state.nbytes for state in self._states)

    @property
    def mask(self) -> Mask:
        """What the viewer shows, (D, H, W)."""
        return self._now.mask.part(self._everything)

    @property
    def was_corrected(self) -> bool:
        """Whether the mask is the user's work: something was done, and something is in it."""
        return bool(self._now.done) and not self._now.mask.is_empty

    def clear(self) -> None:
        """Begin anew, with an empty mask and nothing to undo."""
        self._shown = self._nothing
        self._states = [State(self._nothing)]

    def begin_with(self, mask: Mask) -> None:
        """Take a mask, which the viewer shows already, for what is to be corrected.

        What was done before counts no more.

        Raises:
            PromptError: it has another shape than the image.
        """
        if mask.shape != self.volume.shape:
            raise PromptError(
                f"A segmentation must have the image's shape {self.volume.shape}, but it has {mask.shape}."
            )
        packed = PackedMask.of(mask)
        self._append(State(packed, (), packed))
        self._shown = packed

    def add(self, done: Interaction, predict: bool = True) -> Change:
        """Take one more interaction into account.

        Args:
            done: what the user did.
            predict: whether to answer; otherwise the mask stays as it is until the next answer.

        Raises:
            PromptError: it does not fit the image.
        """
        now = self._now
        everything = (*now.done, done)
        mask = self._predicted(everything, now) if predict else now.mask
        self._append(State(mask, everything, now.start))
        return self._change()

    def predict(self) -> Change:
        """Answer what was done so far."""
        now = self._now
        mask = self._predicted(now.done, now)
        self._states[-1] = State(mask, now.done, now.start)
        return self._change()

    def undo(self) -> Change | None:
        """Go back by one interaction; None where there is none."""
        if len(self._states) == 1:
            return None
        self._states.pop()
        return self._change()

    def forget_oldest(self) -> bool:
        """Drop the oldest state; returns whether there was one."""
        if len(self._states) < 2:
            return False
        del self._states[0]
        return True

    def show_nothing(self) -> None:
        """The viewer's own mask is empty from now on: the next change is all of the mask."""
        self._shown = self._nothing

    @property
    def _now(self) -> State:
        return self._states[-1]

    @property
    def _everything(self) -> Region:
        z, y, x = (slice(0, n) for n in self.volume.shape)
        return z, y, x

    def _append(self, state: State) -> None:
        self._states.append(state)
        if len(self._states) > MOST_STATES:
            self.forget_oldest()

    def _predicted(self, done: tuple[Interaction, ...], now: State) -> PackedMask:
        start = None if now.start is None else now.start.part(self._everything)
        prompts = prompts_of(done, self.volume.spacing, start)
        if prompts is None:
            return now.start or self._nothing
        return PackedMask.of(self._segment(self.volume, prompts, start))

    def _change(self) -> Change:
        """The difference between the mask and what the viewer shows."""
        before, after = self._shown, self._now.mask
        self._shown = after
        region = enclosing_region([before.region, after.region])
        new = after.part(region)
        different = filled_region(new != before.part(region))
        if any(side.start >= side.stop for side in different):
            return Change(None, np.zeros((0, 0, 0), dtype=np.bool_))
        z, y, x = (
            slice(whole.start + part.start, whole.start + part.stop)
            for whole, part in zip(region, different, strict=True)
        )
        return Change((z, y, x), new[different])
