"""What the page may ask for."""

from __future__ import annotations

from typing import Any

import pytest
from dualclickmed.errors import UserError
from dualclickmed.imaging.prompts import Click
from dualclickmed.viewers.page_requests import MAX_CLICKS, Asked

SHAPE = (4, 5, 6)
SPACING = (2.0, 1.0, 1.0)


def asked(**changes: Any) -> Asked:
    sent = {"labels": ["liver", "left kidney"], "prompts": {"liver": {"clicks": [[0, 0, 0, 1]]}}}
    return Asked.read(sent | changes)


def test_clicks_and_boxes_become_canonical() -> None:
    given = {"clicks": [[0, 4, 3, 1], [5, 0, 0, 0], [1, 4, 3, 1]], "box": [1, 3, 0, 2, 2, 4]}
    prompts = asked(prompts={"left kidney": given}).canonical(SHAPE, SPACING)["left kidney"]
    assert prompts.clicks == (
        Click((3, 0, 5), True),
        Click((0, 4, 0), False),
        Click((3, 0, 4), True),
    )
    assert prompts.box is not None
    assert (prompts.box.lo, prompts.box.hi) == ((2.0, 3.0, 3.0), (4.0, 5.0, 5.0))


def test_a_box_that_is_drawn_in_one_plane_gets_a_depth() -> None:
    box = asked(prompts={"liver": {"box": [1, 5, 0, 4, 2, 3]}}).canonical(SHAPE, SPACING)["liver"].box
    assert box is not None
    assert box.sides[1:] == (4.0, 4.0)
    # In millimetres as deep as it is wide, and a little more.
    assert 2.0 < box.sides[0] < 4.0 and box.centre[0] == 2.5


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": []},
        {"labels": "liver"},
        {"labels": ["a", "A"]},
        {"labels": ["a,b"]},
        {"labels": ["background"]},
        {"labels": ["x" * 65]},
        {"labels": ["a\nb"]},
        {"labels": [str(n) for n in range(300)]},
        {"prompts": {}},
        {"prompts": []},
        {"prompts": {"spleen": {"clicks": [[0, 0, 0, 1]]}}},
        {"strategy": "magic"},
        {"window": "teeth"},
        {"held": "everything"},
        {"model_dir": "/etc"},
    ],
)
def test_requests_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        asked(**changes)


@pytest.mark.parametrize(
    "given",
    [
        [],
        {"clicks": "everywhere"},
        {"clicks": [[0, 0, 0]]},
        {"clicks": [[0, 0, 0, 2]]},
        {"clicks": [[0, 0, 0.5, 1]]},
        {"clicks": [[True, 0, 0, 1]]},
        {"clicks": [[6, 0, 0, 1]]},
        {"clicks": [[0, 0, -1, 0]]},
        {"clicks": [[0, 0, 0, 1]] * (MAX_CLICKS + 1)},
        {"box": "all"},
        {"box": [0, 9, 0, 1, 0, 1]},
    ],
)
def test_prompts_that_mean_nothing_are_refused(given: Any) -> None:
    with pytest.raises(UserError):
        asked(prompts={"liver": given}).canonical(SHAPE, SPACING)
