"""The plot of what learning saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from dualclickmed.learning.curve import MOST_PANELS, draw, draw_together

LABELS = tuple(f"organ {n}" for n in range(MOST_PANELS + 1))


def point(images: int, labels: tuple[str, ...]) -> dict[str, Any]:
    """Dice rises with the label's number, and by 0.1 with a click."""
    return {
        "images": images,
        "mean": {name: [0.1 * n, 0.1 * n + 0.1] for n, name in enumerate(labels)},
        "clicks_to": {
            target: {name: float(n) for n, name in enumerate(labels)} for target in ("0.85", "0.9")
        },
    }


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(plt, "close", lambda figure: None)
    yield plt
    monkeypatch.undo()
    plt.close("all")


@pytest.mark.parametrize(
    ("labels", "titles"), [(LABELS[:2], list(LABELS[:2])), (LABELS, [f"mean of {len(LABELS)} labels"])]
)
def test_few_labels_have_a_panel_each_and_many_one_of_their_mean(
    labels: tuple[str, ...], titles: list[str], kept: Any, tmp_path: Path
) -> None:
    points = [point(0, labels), point(5, labels)]
    draw("box", points, tmp_path / "curve.png")
    axes = kept.gcf().axes
    assert [axis.get_title() for axis in axes] == [*titles, "clicks needed"]
    shown = axes[0].lines[0].get_ydata()
    assert list(shown) == pytest.approx([0.0, 0.1] if len(labels) == 2 else [0.2, 0.3])
    needed = axes[-1].lines[0].get_ydata()
    assert list(needed) == pytest.approx([0, 0] if len(labels) == 2 else [2, 2])

    draw_together({"box": points, "click": points}, tmp_path / "together.png")
    assert [axis.get_title() for axis in kept.gcf().axes] == titles
