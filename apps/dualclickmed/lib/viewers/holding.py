"""The content of a viewer's session: at most one image and the work on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..imaging.volume import Volume
from .conversation import Change, Conversation, Segment
from .interactions import Mask
from .sessions import Budget, FullError

logger = logging.getLogger(__name__)

COMPACT_BYTES = 2
"""Of a voxel in a loaded volume, at most."""
Finished = Callable[[Volume, list[Mask]], None]
"""Receives an image and the masks that a user made of its objects, one after the other."""


class SessionImage:
    """A session's image; all that it takes counts in a budget. One request at a time holds `lock`.

    Args:
        segment: makes masks.
        budget: shared with other sessions.
        forget: drops what was computed from an image that is not used any more.
        finished: receives the masks of an image when it is closed; None if they are not wanted.
    """

    def __init__(
        self,
        segment: Segment,
        budget: Budget,
        forget: Callable[[Volume], None],
        finished: Finished | None = None,
    ) -> None:
        self.lock = asyncio.Lock()
        self.settings: dict[str, Any] = {}
        self._segment, self._budget, self._forget, self._finished = segment, budget, forget, finished
        self._conversation: Conversation | None = None
        self._objects: list[Mask] = []

    @property
    def conversation(self) -> Conversation:
        """What is done with the image.

        Raises:
            UserError: there is none.
        """
        if self._conversation is None:
            raise UserError("An image must be sent first, but this session has none.")
        return self._conversation

    @contextmanager
    def replacing(self, voxels: int, raw_bytes: int) -> Iterator[None]:
        """Make room for a new image, which is set with `open` in the ``with`` block.

        Args:
            voxels: of the image.
            raw_bytes: of its array as it comes, which is gone afterwards.

        Raises:
            UserError, FullError: as `Budget.hold`.
        """
        self.close()
        with self._budget.held(raw_bytes):
            self._budget.hold(self, COMPACT_BYTES * voxels)
            try:
                yield
            except BaseException:
                self.close()
                raise
            self.account()

    def open(self, volume: Volume) -> None:
        """Set the image."""
        self._conversation = Conversation(volume, self._segment)

    def change(self, work: Callable[[Conversation], Change | None]) -> Change | None:
        """Run a change of the image; if the memory does not suffice, the oldest states are dropped."""
        found = work(self.conversation)
        self.account()
        return found

    def next_object(self) -> None:
        """The mask is done; the next interactions are about another object of the image."""
        self._remember()
        self.conversation.clear()
        self.account()

    def account(self) -> None:
        """Tell the budget what is held."""
        conversation = self.conversation
        while True:
            try:
                self._budget.hold(self, conversation.nbytes)
                return
            except FullError:
                if not conversation.forget_oldest():
                    raise

    def close(self) -> None:
        """Put the image away and free all memory."""
        conversation, self._conversation = self._conversation, None
        objects, self._objects = self._objects, []
        self._budget.hold(self, 0)
        if conversation is None:
            return
        try:
            if self._finished is not None and conversation.was_corrected:
                objects.append(conversation.mask)
            self._forget(conversation.volume)
            if self._finished is not None and objects:
                self._finished(conversation.volume, objects)
        except Exception:
            # The viewer has its masks; an error here must not disturb the next session.
            logger.exception("The masks of a viewer were not kept")

    def _remember(self) -> None:
        if self._finished is not None and self.conversation.was_corrected:
            self._objects.append(self.conversation.mask)


def as_array(data: bytearray, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Unpacked bytes as an array, not copied."""
    return np.frombuffer(data, dtype=dtype).reshape(shape)
