"""What was done with one image: the mask, what changed in it, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from dualclickmed.errors import PromptError
from dualclickmed.imaging.volume import from_array
from dualclickmed.viewers.conversation import Change, Conversation, PackedMask
from dualclickmed.viewers.interactions import box, point, scribble

from .conftest import segment

SHAPE = (12, 20, 30)


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(from_array(np.zeros(SHAPE, dtype=np.int16)), segment)


def shown(mask: np.ndarray, change: Change | None) -> np.ndarray:
    """What a viewer shows after an answer."""
    if change is not None and change.region is not None:
        mask[change.region] = change.voxels
    return mask


def test_a_viewer_that_applies_every_change_shows_the_mask(conversation: Conversation) -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros(SHAPE, dtype=np.bool_)
    for _ in range(30):
        index = tuple(int(rng.integers(n)) for n in SHAPE)
        if rng.random() < 0.3:
            shown(mask, conversation.undo())
        else:
            shown(mask, conversation.add(point((index[0], index[1], index[2]), bool(rng.random() < 0.7))))
        assert np.array_equal(mask, conversation.mask)


def test_a_change_is_no_larger_than_what_changed(conversation: Conversation) -> None:
    conversation.add(point((5, 5, 5), True))
    change = conversation.add(point((5, 5, 15), True))
    assert change.region == (slice(3, 8), slice(3, 8), slice(13, 18)) and change.voxels.all()
    assert conversation.add(point((5, 5, 5), True)).region is None


def test_undo_goes_back_to_the_beginning(conversation: Conversation) -> None:
    before = []
    for at in range(3, 25, 2):
        before.append(conversation.mask)
        conversation.add(point((5, 8, at), True))
    for mask in reversed(before):
        assert conversation.undo() is not None
        assert np.array_equal(conversation.mask, mask)
    assert conversation.undo() is None


def test_what_fails_leaves_everything_as_it_was(conversation: Conversation) -> None:
    conversation.add(point((5, 5, 5), True))
    mask = conversation.mask
    with pytest.raises(PromptError):
        conversation.add(point((5, 5, 99), True))
    assert np.array_equal(conversation.mask, mask)
    conversation.undo()
    assert not conversation.mask.any()


def test_interactions_without_an_answer_count_with_the_next_one(conversation: Conversation) -> None:
    assert conversation.add(point((5, 5, 5), True), predict=False).region is None
    change = conversation.predict()
    assert change.region == (slice(3, 8), slice(3, 8), slice(3, 8))


def test_where_the_object_is_not_there_is_nothing_to_show(conversation: Conversation) -> None:
    assert conversation.add(point((5, 5, 5), False)).region is None
    conversation.add(point((5, 5, 7), True))
    assert not conversation.mask[5, 5, 5] and conversation.mask[5, 5, 9]


def test_a_mask_to_begin_with_is_corrected_and_can_be_undone(conversation: Conversation) -> None:
    conversation.add(point((5, 5, 5), True))
    first = conversation.mask
    start = np.zeros(SHAPE, dtype=np.bool_)
    start[2:9, 10:18, 10:25] = True
    conversation.begin_with(start)
    assert np.array_equal(conversation.mask, start)
    change = conversation.add(point((5, 14, 17), False))
    assert change.region == (slice(3, 8), slice(12, 17), slice(15, 20)) and not change.voxels.any()
    conversation.undo()
    assert np.array_equal(conversation.mask, start)
    conversation.undo()
    assert np.array_equal(conversation.mask, first)


def test_a_mask_of_another_image_is_refused(conversation: Conversation) -> None:
    with pytest.raises(PromptError, match="shape"):
        conversation.begin_with(np.zeros((3, 3, 3), dtype=np.bool_))


def test_a_viewer_with_a_new_buffer_gets_all_of_the_mask(conversation: Conversation) -> None:
    conversation.add(box_around(2, 6))
    conversation.show_nothing()
    change = conversation.add(point((3, 3, 3), True))
    assert np.array_equal(shown(np.zeros(SHAPE, dtype=np.bool_), change), conversation.mask)


def box_around(lo: int, hi: int):
    from dualclickmed.imaging.geometry import Box

    return box(Box((lo, lo, lo), (hi, hi, hi)), True, SHAPE)


def test_memory_is_counted_and_given_back(conversation: Conversation) -> None:
    empty = conversation.nbytes
    assert empty >= conversation.volume.nbytes
    stroke = np.ones((1, 20, 30), dtype=np.bool_)
    conversation.add(scribble(stroke, (0, 0, 0), True))
    assert conversation.nbytes > empty + 600 * 12
    conversation.clear()
    assert conversation.nbytes == empty


def test_the_oldest_states_are_given_up_first(conversation: Conversation) -> None:
    for at in (3, 5, 7):
        conversation.add(point((5, 8, at), True))
    assert conversation.forget_oldest() and conversation.forget_oldest()
    assert conversation.undo() is not None and conversation.undo() is None
    assert conversation.mask[5, 8, 5]


def test_masks_are_packed_without_loss() -> None:
    mask = np.random.default_rng(0).random((9, 13, 17)) < 0.3
    packed = PackedMask.of(mask)
    assert np.array_equal(packed.part((slice(0, 9), slice(0, 13), slice(0, 17))), mask)
    nothing = PackedMask.of(np.zeros((9, 13, 17), dtype=np.bool_))
    assert nothing.is_empty and not nothing.part((slice(0, 9), slice(0, 13), slice(0, 17))).any()
