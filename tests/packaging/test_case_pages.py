"""The pictures of docs/figures.md: whole objects of volumes that can be made anew, with their masks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.support.scripts import script

pages = script("scripts/case_pages.py")


@pytest.mark.parametrize("look", ["pet", "us"])
def test_objects_are_whole_and_the_same_each_time(look):
    first, second = list(pages.objects(look, 2))
    again = next(pages.objects(look, 1))
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.volume.array, again.volume.array)
    assert not np.array_equal(first.volume.array, second.volume.array)
    for task in (first, second):
        mask = task.labels > 0
        assert mask.sum() >= pages.LEAST_VOXELS
        assert mask[1:-1, 1:-1, 1:-1].sum() == mask.sum()


def test_a_page_shows_masks_in_their_colours(tmp_path: Path):
    task = next(pages.objects("pet", 1))
    truth = task.labels > 0
    nothing = np.zeros_like(truth)
    pages.draw(
        tmp_path / "page.png", {"PET": pages.Shown(task, [truth, nothing, nothing, truth], [1, 0, 0, 1])}
    )
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    rows = len(pages.ROWS)
    # Colour is where a row has a mask, and nowhere else.
    height = picture.shape[0] // rows
    parts = [picture[at * height : (at + 1) * height] for at in range(rows)]
    assert coloured(parts[1]) > 500
    assert coloured(parts[2]) < 50 and coloured(parts[3]) < 50
    assert coloured(parts[4]) > 500


def test_the_table_is_written_by_the_writer_of_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "figures.md"
    page.write_text("before\n<!-- figures: cases -->\nold\n<!-- /figures -->\nafter\n")
    for name, value in {"PAGES": (page,), "REPOSITORY": tmp_path}.items():
        monkeypatch.setitem(pages.write_blocks.__globals__, name, value)
    monkeypatch.setattr(pages, "LOOKS", ())
    monkeypatch.setattr(pages, "draw", lambda path, columns: None)
    monkeypatch.setattr(pages.Predictor, "from_weights", lambda: SimpleNamespace(expert=None))
    monkeypatch.setattr(sys, "argv", ["case_pages.py", "--out", str(tmp_path)])
    pages.main()
    assert page.read_text() == (
        f"before\n<!-- figures: cases -->\n{pages.TABLE_HEAD}\n<!-- /figures -->\nafter\n"
    )


def coloured(part: np.ndarray) -> int:
    """Pixels that are not grey."""
    return int((part.max(axis=-1) - part.min(axis=-1) > 30).sum())
