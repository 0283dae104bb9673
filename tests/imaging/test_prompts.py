"""Prompts: what is accepted, what is put right, and what each refusal says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dualclickmed.errors import PromptError, UserError
from dualclickmed.imaging.geometry import Box, Index
from dualclickmed.imaging.prompts import Click, Prompts
from hypothesis import given
from hypothesis import strategies as st

SHAPE = (10, 20, 30)


def clicks(*indices: Index, positive: bool = True) -> tuple[Click, ...]:
    return tuple(Click(index, positive) for index in indices)


def test_foreground_and_background_keep_their_order() -> None:
    prompts = Prompts((Click((1, 2, 3)), Click((9, 9, 9), False), Click((0, 0, 0)), Click((1, 1, 1), False)))
    assert prompts.foreground == [(1, 2, 3), (0, 0, 0)]
    assert prompts.background == [(9, 9, 9), (1, 1, 1)]


@pytest.mark.parametrize(
    ("prompts", "box"),
    [
        (Prompts(clicks((3, 4, 5))), Box((3, 4, 5), (4, 5, 6))),
        (Prompts(clicks((3, 4, 5), (1, 9, 5))), Box((1, 4, 5), (4, 10, 6))),
        (Prompts(box=Box((1, 1, 1), (2, 3, 4))), Box((1, 1, 1), (2, 3, 4))),
        (Prompts(clicks((5, 2, 2)), Box((1, 1, 1), (2, 3, 4))), Box((1, 1, 1), (6, 3, 4))),
        # A background click does not enlarge the region.
        (Prompts(clicks((9, 9, 9), positive=False), Box((1, 1, 1), (2, 3, 4))), Box((1, 1, 1), (2, 3, 4))),
    ],
)
def test_enclosing_box(prompts: Prompts, box: Box) -> None:
    assert prompts.enclosing_box() == box


def test_enclosing_box_needs_something_positive() -> None:
    with pytest.raises(PromptError, match="only 1 background clicks"):
        Prompts(clicks((1, 1, 1), positive=False)).enclosing_box()


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (Prompts(), "neither"),
        (Prompts(mask=np.ones(SHAPE)), "neither"),
        (Prompts(clicks((10, 0, 0))), r"volume of shape \(10, 20, 30\).*foreground click \(10, 0, 0\)"),
        (Prompts(clicks((0, 0, -1), positive=False)), r"background click \(0, 0, -1\)"),
        (Prompts(clicks((0, 19, 30))), r"foreground click \(0, 19, 30\)"),
        (Prompts(clicks((1, 1, 1)) + clicks((1, 1, 1), positive=False)), r"\(1, 1, 1\) was clicked as both"),
        (Prompts(box=Box((10, 0, 0), (12, 5, 5))), r"overlap.*\(10, 20, 30\).*\(10.0, 0.0, 0.0\)"),
        (Prompts(box=Box((0, -5, 0), (2, 0, 5))), "overlap"),
        (Prompts(clicks((1, 1, 1)), mask=np.ones((3, 3, 3))), r"shape \(10, 20, 30\).*\(3, 3, 3\)"),
    ],
)
def test_refusals_name_the_prompt_and_the_shape(prompts: Prompts, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence) as refusal:
        prompts.checked(SHAPE)
    assert str(refusal.value).endswith(".")
    assert isinstance(refusal.value, UserError)


@pytest.mark.parametrize(
    "index",
    [(1, 2), (1, 2, 3, 4), (1, 2.5, 3), (1, float("nan"), 3), (1, float("inf"), 3), ("a", 1, 2), None, 5],
)
def test_a_click_is_three_whole_numbers(index: Any) -> None:
    with pytest.raises(PromptError, match="three whole numbers"):
        Prompts((Click(index),)).checked(SHAPE)


def test_numbers_of_other_kinds_become_plain_ones() -> None:
    index: Any = (np.int64(1), 2.0, np.uint8(3))
    checked = Prompts((Click(index), Click((1, 2, 3)))).checked(SHAPE)
    assert checked.clicks == (Click((1, 2, 3)),)
    assert all(type(p) is int for p in checked.clicks[0].index)


def test_repeated_clicks_collapse_into_the_first() -> None:
    prompts = Prompts(clicks((1, 1, 1), (2, 2, 2), (1, 1, 1)) + clicks((3, 3, 3), positive=False) * 2)
    expected = clicks((1, 1, 1), (2, 2, 2)) + clicks((3, 3, 3), positive=False)
    assert prompts.checked(SHAPE).clicks == expected


@pytest.mark.parametrize(
    ("given_box", "kept"),
    [
        (Box((1, 2, 3), (4, 5, 6)), Box((1, 2, 3), (4, 5, 6))),
        (Box((-4, 2.5, 3), (4, 50, 6)), Box((0, 2.5, 3), (4, 20, 6))),
        (Box((-1, -1, -1), (99, 99, 99)), Box((0, 0, 0), SHAPE)),
        (Box((9.5, 0, 0), (12, 1, 1)), Box((9.5, 0, 0), (10, 1, 1))),
    ],
)
def test_a_box_is_cut_to_the_volume(given_box: Box, kept: Box) -> None:
    assert Prompts(box=given_box).checked(SHAPE).box == kept


def test_a_mask_becomes_boolean() -> None:
    mask = np.zeros(SHAPE, dtype=np.float32)
    mask[1, 2, 3] = 0.5
    checked = Prompts(clicks((0, 0, 0), positive=False), mask=mask).checked(SHAPE)
    assert checked.mask is not None
    assert checked.mask.dtype == np.bool_
    assert np.argwhere(checked.mask).tolist() == [[1, 2, 3]]


@given(
    st.lists(
        st.builds(
            Click, st.tuples(st.integers(-2, 4), st.integers(-2, 4), st.integers(-2, 4)), st.booleans()
        ),
        max_size=6,
    )
)
def test_checked_prompts_fit_and_stay(given_clicks: list[Click]) -> None:
    prompts = Prompts(tuple(given_clicks))
    try:
        checked = prompts.checked((3, 3, 3))
    except PromptError:
        outside = any(not all(0 <= p < 3 for p in click.index) for click in given_clicks)
        both = set(prompts.foreground) & set(prompts.background)
        assert outside or both or not given_clicks
        return
    assert set(checked.clicks) == set(given_clicks)
    assert len(set(checked.clicks)) == len(checked.clicks)
    assert checked.checked((3, 3, 3)).clicks == checked.clicks


def test_two_clicks_are_corners_of_a_box_and_no_clicks_any_more() -> None:
    mask = np.ones((9, 9, 9))
    further = (Click((4, 4, 4)), Click((0, 0, 0), False))
    corners = Click((5, 1, 7)), Click((2, 6, 3))
    given_prompts = Prompts((corners[0], further[1], corners[1], further[0], corners[0]), mask=mask)
    boxed = given_prompts.with_corner_box()
    assert boxed.box == Box((2, 1, 3), (6, 7, 8))
    # A corner that is clicked once more lies in the object.
    assert boxed.clicks == (further[1], further[0], corners[0])
    assert boxed.mask is mask
    assert boxed.with_corner_box() is boxed


def test_without_two_clicks_there_is_no_corner_box() -> None:
    one = Prompts((Click((1, 1, 1)), Click((2, 2, 2), False), Click((3, 3, 3), False)))
    assert one.with_corner_box() is one
    drawn = Prompts((Click((1, 1, 1)), Click((2, 2, 2))), Box((0, 0, 0), (5, 5, 5)))
    assert drawn.with_corner_box() is drawn
