"""Published weights are whole, selectable and undone by one command, wherever publishing is cut short."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from dualclickmed.errors import WeightsError
from dualclickmed.learning.publishing import publish
from dualclickmed.weights import files as weights
from dualclickmed.weights.files import (
    card_path,
    default_path,
    load_expert,
    read_card,
    save_expert,
    select,
    verify,
)
from dualclickmed.weights.lineage import origin_of, roll_back, trained_images

from tests.support.live import make_weights


@pytest.fixture
def models(tmp_path: Path) -> Path:
    make_weights(tmp_path / "model")
    return tmp_path / "model"


def trained_from(models: Path, folder: Path, shift: float = 0.01) -> Path:
    """Weights as a training leaves them."""
    network = load_expert("global", default_path("global", directory=models))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(shift)
    path = folder / "global-compact.safetensors"
    save_expert(network, "global", path, {"steps": 7, "seed": 3})
    return path


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_version_has_a_parent_and_is_served(models: Path, tmp_path: Path) -> None:
    parent = default_path("global", directory=models)
    before = bytes_of(models)
    name = publish(trained_from(models, tmp_path), parent, {"data": {"trained": ["a"]}}, models)
    assert name == "global-learned-0001"
    served = default_path("global", directory=models)
    assert served.stem == name
    card = verify(served)
    assert card["parent"] == {"name": "global-compact", "sha256": read_card(parent)["sha256"]}
    assert (card["steps"], card["data"]) == (7, {"trained": ["a"]})
    # What was served is as it was, to the byte.
    assert {name: bytes_of(models)[name] for name in before} == before
    trained = load_expert("global", tmp_path / "global-compact.safetensors").state_dict()
    for key, value in load_expert("global", served).state_dict().items():
        assert torch.equal(value, trained[key])


def test_versions_are_numbered_selectable_and_rolled_back(models: Path, tmp_path: Path) -> None:
    for number, shift in enumerate((0.01, 0.02), start=1):
        parent = default_path("global", directory=models)
        data = {"data": {"trained": [f"image {number}"]}}
        publish(trained_from(models, tmp_path, shift), parent, data, models)
    assert default_path("global", directory=models).stem == "global-learned-0002"
    assert trained_images(default_path("global", directory=models)) == {"image 1", "image 2"}
    assert origin_of(default_path("global", directory=models)) == models / "global-compact.safetensors"
    assert roll_back("global", models) == ("global-learned-0002", "global-learned-0001")
    assert roll_back("global", models) == ("global-learned-0001", "global-compact")
    with pytest.raises(WeightsError, match="was not made from others"):
        roll_back("global", models)
    # Nothing was removed, and the next one does not take an old number.
    select("global-learned-0002", models)
    assert default_path("global", directory=models).stem == "global-learned-0002"
    select(None, models)
    parent = default_path("global", directory=models)
    assert publish(trained_from(models, tmp_path), parent, {}, models) == "global-learned-0003"


@pytest.mark.parametrize("step", range(5))
def test_a_full_disk_or_a_crash_at_any_write_leaves_what_is_served(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Every flush to disk and every rename of publishing fails once."""
    parent, trained = default_path("global", directory=models), trained_from(models, tmp_path)
    before = load_expert("global", parent).state_dict()
    count = 0
    replace, fsync = Path.replace, os.fsync

    def fails() -> None:
        nonlocal count
        count += 1
        if count - 1 == step:
            raise OSError(errno.ENOSPC, "No space left on device")

    def failing_replace(self: Path, target: Any) -> Any:
        fails()
        return replace(self, target)

    def failing_fsync(handle: int) -> None:
        fails()
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing_replace)
        patch.setattr(weights.os, "fsync", failing_fsync)
        with pytest.raises(WeightsError, match="served still"):
            publish(trained, parent, {}, models)
    assert default_path("global", directory=models) == parent
    for key, value in load_expert("global", parent).state_dict().items():
        assert torch.equal(value, before[key])
    assert not [path for path in models.iterdir() if path.name.startswith(".")]
    # And the next one is published.
    name = publish(trained, parent, {}, models)
    verify(models / f"{name}.safetensors")
    assert json.loads(card_path(models / name).read_text())["parent"]["name"] == "global-compact"
