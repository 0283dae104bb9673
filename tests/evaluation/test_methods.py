"""Methods by name: ours, peers, and a file of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dualclickmed.errors import UserError
from dualclickmed.evaluation import classical
from dualclickmed.evaluation.methods import MethodSettings, from_file, make
from dualclickmed.evaluation.names import name_of
from dualclickmed.experts import DEFAULT_STRATEGY, STRATEGIES
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.prompts import Prompts
from dualclickmed.imaging.volume import from_array
from dualclickmed.weights.files import card_path, default_path

VOLUME = from_array(np.random.default_rng(0).integers(0, 255, (12, 14, 16)).astype(np.uint8))
OWN = """
import numpy as np

def segment(volume, prompts):
    mask = np.zeros(volume.shape, bool)
    mask[prompts.box.voxels(volume.shape)] = True
    return mask
"""


def test_names_in_tables() -> None:
    assert name_of("ours") == DEFAULT_STRATEGY == "fused"
    assert [name_of(s) for s in STRATEGIES] == list(STRATEGIES)
    assert name_of("sam-med3d:some/where.pth") == "sam-med3d"
    assert name_of("boxes=methods/boxes.py") == "boxes"


@pytest.mark.parametrize(
    "text", ["", "best", "paper:x", "sam-med3d", "vista3d:", "graph-cut:1", "ours=a.py", "=a.py"]
)
def test_unknown_names_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UserError, match="method"):
        name_of(text)


def test_the_same_method_twice_is_refused() -> None:
    with pytest.raises(UserError, match="'fused' was named twice"):
        make(["ours", "fused"], MethodSettings())


def test_our_strategies_share_their_weights_and_name_them() -> None:
    made = make(["ours", "global", "ellipsoid"], MethodSettings())
    assert [m.name for m in made] == ["fused", "global", "ellipsoid"]
    assert made[0].method.expert is made[1].method.expert
    for kind in ("global", "local"):
        card = json.loads(card_path(default_path(kind)).read_text())
        assert made[0].facts["weights"][kind]["sha256"] == card["sha256"]
    assert made[2].method is classical.ellipsoid


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "boxes.py").write_text(OWN)
    (made,) = make([f"boxes={tmp_path / 'boxes.py'}"], MethodSettings())
    box = Box((1, 2, 3), (4, 6, 8))
    assert made.name == "boxes" and made.method(VOLUME, Prompts(box=box)).sum() == 3 * 4 * 5
    (tmp_path / "made.py").write_text(
        OWN.replace("def segment", "def inner") + "\ndef make():\n    return inner\n"
    )
    assert from_file(tmp_path / "made.py")(VOLUME, Prompts(box=box)).sum() == 3 * 4 * 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "must define segment"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("segment = 3", "must define"),
    ],
)
def test_a_file_that_is_no_method_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=message):
        from_file(tmp_path / "own.py")
    with pytest.raises(UserError, match="no file"):
        from_file(tmp_path / "absent.py")


def test_nninteractive_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pip install nninteractive"):
        make([f"nninteractive:{tmp_path}"], MethodSettings())
