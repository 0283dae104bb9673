"""What the page may ask for."""

from __future__ import annotations

from typing import Any

import pytest
from dualclickmed.errors import UserError
from dualclickmed.imaging.prompts import Click
from dualclickmed.viewers.page_requests import MAX_CLICKS, Asked

SHAPE = (4, 5, 6)


def asked(**changes: Any) -> Asked:
    sent = {"labels": ["liver", "left kidney"], "prompts": {"liver": {"inside": [[0, 0, 0]]}}}
    return Asked.read(sent | changes)


def test_clicks_and_boxes_become_canonical() -> None:
    given = {"inside": [[0, 4, 3]], "outside": [[5, 0, 0]], "box": [1, 3, 0, 2, 2, 4]}
    prompts = asked(prompts={"left kidney": given}).canonical(SHAPE)["left kidney"]
    assert prompts.clicks == (Click((3, 0, 5), True), Click((0, 4, 0), False))
    assert prompts.box is not None
    assert (prompts.box.lo, prompts.box.hi) == ((2.0, 3.0, 3.0), (4.0, 5.0, 5.0))


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
        {"prompts": {"spleen": {"inside": [[0, 0, 0]]}}},
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
        {"inside": "everywhere"},
        {"inside": [[0, 0]]},
        {"inside": [[0, 0, 0.5]]},
        {"inside": [[True, 0, 0]]},
        {"inside": [[6, 0, 0]]},
        {"outside": [[0, 0, -1]]},
        {"inside": [[0, 0, 0]] * (MAX_CLICKS + 1)},
        {"box": "all"},
        {"box": [0, 9, 0, 1, 0, 1]},
    ],
)
def test_prompts_that_mean_nothing_are_refused(given: Any) -> None:
    with pytest.raises(UserError):
        asked(prompts={"liver": given}).canonical(SHAPE)
