"""Rounds with a real training: a tiny U-Net, from two corrections to answers, by one process or by two."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from dualclickmed.byte_cache import ByteCache
from dualclickmed.configs.options import ServerOptions
from dualclickmed.experts.loading import load_experts
from dualclickmed.imaging.volume import from_array
from dualclickmed.learning import gate, together
from dualclickmed.learning.curve import Trial, score
from dualclickmed.learning.record import FAILED, PUBLISHED, Record
from dualclickmed.networks.build import build_global
from dualclickmed.networks.configs import GlobalConfig
from dualclickmed.trainers import tasks
from dualclickmed.trainers.tasks import ExpertTrainer
from dualclickmed.training.recipes import load_recipe
from dualclickmed.training.sources import LabelledCase
from dualclickmed.weights.files import default_path, read_card, save_expert, select, verify
from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore
from safetensors.torch import load_file

GUIDE = Path(__file__).parents[2] / "docs" / "learning.md"
SIDE = 16
UNET = GlobalConfig(
    image_size=SIDE, mask_size=SIDE, box_label=2, unet_channels=(8, 16), unet_blocks=(1, 1), hold_edges=True
)
PARENT = "global-compact"
SHAPE = (30, 28, 26)
IMAGES = ("a", "b")
REQUEST = {"device": "cpu", "steps": 12, "replay": 0, "minutes": 5, "rate": 0.08}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A U-Net for which the ellipsoid in the box is what is outside the object: the one thing to learn."""
    torch.manual_seed(3)
    network: Any = build_global(UNET)
    with torch.no_grad():
        network.prior_gain.fill_(-0.3)
    folder = tmp_path / "model"
    save_expert(network, "global", folder / f"{PARENT}.safetensors")
    return folder


@pytest.fixture
def studies(tmp_path: Path) -> LocalDatastore:
    """Two images with a final label each."""
    folder = tmp_path / "studies"
    folder.mkdir()
    truth = np.zeros(SHAPE, dtype=np.uint8)
    truth[6:16, 8:18, 7:19] = 1
    nib.save(nib.Nifti1Image(truth, np.eye(4)), tmp_path / "label.nii.gz")
    for name in IMAGES:
        noise = np.random.default_rng(sum(name.encode())).integers(0, 9, SHAPE)
        image = nib.Nifti1Image((60 * truth + noise).astype(np.int16), np.eye(4))
        nib.save(image, folder / f"{name}.nii.gz")
    datastore = LocalDatastore(str(folder), auto_reload=False)
    for name in IMAGES:
        info = {"label_info": [{"name": "nodule"}]}
        datastore.save_label(name, str(tmp_path / "label.nii.gz"), "final", info)
    return datastore


@pytest.fixture(autouse=True)
def small_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small volume instead of the generated ones, which take most of the time of so small a training."""
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[5:14, 5:14, 5:14] = True
    objects = gate.Objects(["ct"], [from_array((mask * 100).astype(np.uint8))], [mask])
    monkeypatch.setattr(gate, "generated_objects", lambda: objects)


def trainer(tmp_path: Path, models: Path, preset: str | None = None) -> ExpertTrainer:
    return ExpertTrainer(
        "global", Record(tmp_path / "learning"), ServerOptions(model_dir=models, preset=preset)
    )


def dice(tmp_path: Path, path: Path) -> float:
    """Of a box on the first image, by weights as they are served."""
    image = tmp_path / "studies" / f"{IMAGES[0]}.nii.gz"
    case = LabelledCase("a", image, tmp_path / "label.nii.gz", {1: "nodule"})
    expert = load_experts(path, None, "cpu", ByteCache(1 << 20))
    return score(expert, Trial.of("global"), [case], 0).mean()["nodule"][0]


@pytest.mark.parametrize("chosen", ["weights use", "preset"])
def test_a_u_net_learns_from_two_corrections(
    chosen: str, tmp_path: Path, models: Path, studies: LocalDatastore
) -> None:
    preset = "compact" if chosen == "preset" else None
    if preset is None:
        select(PARENT, models)
    parent = default_path("global", preset, models)
    before, kept = dice(tmp_path, parent), parent.read_bytes()
    result = trainer(tmp_path, models, preset)(REQUEST, studies)
    assert (result["state"], result["weights"]) == (PUBLISHED, "global-learned-0001")
    published = models / "global-learned-0001.safetensors"
    card = verify(published)
    assert card["parent"]["name"] == PARENT
    assert GlobalConfig.from_dict(card["config"]) == UNET
    # Prompts are those that a U-Net was trained with, so that it unlearns none of them.
    recipe = load_recipe("global-compact")
    assert {name: card["recipe"][name] for name in ("clicks", "clicked", "hold_edges")} == {
        name: getattr(recipe, name) for name in ("clicks", "clicked", "hold_edges")
    }
    assert card["data"]["trained"] == list(IMAGES)
    assert dice(tmp_path, published) > before
    assert result["after"]["labels"]["nodule"][0] > result["before"]["labels"]["nodule"][0]
    # What is served now is the new weights, unless the server was told to keep to a preset.
    assert default_path("global", preset, models) == (parent if preset else published)
    assert parent.read_bytes() == kept


def test_the_transforms_of_a_class_of_ones_own_train(
    tmp_path: Path, models: Path, studies: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of docs/learning.md, as it stands there."""
    (code,) = re.findall(
        r"```python\n(.*?class OurTrainer.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
    )
    names: dict[str, Any] = {
        "__name__": "dualclickmed.trainers.ours",
        "__package__": "dualclickmed.trainers",
    }
    exec(code, names)
    seen = []
    contrast = names["RandAdjustContrastd"]
    monkeypatch.setattr(contrast, "__call__", lambda self, data: seen.append(data["image"].shape) or data)
    select(PARENT, models)
    options = ServerOptions(model_dir=models)
    task = names["OurTrainer"]("global", Record(tmp_path / "learning"), options)
    task({**REQUEST, "steps": 2}, studies)
    assert seen == [(1, SIDE, SIDE, SIDE)] * 2


@pytest.mark.timeout(600)
def test_two_processes_learn_what_one_does(
    tmp_path: Path, models: Path, studies: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`multi_gpu` as torchrun carries it out, by gloo on the CPU; each process has half of the batch."""
    # Few small steps: whether they gain anything is not the question.
    monkeypatch.setattr(gate, "WORSE", 1.0)
    few = {**REQUEST, "steps": 3, "rate": 0.01}
    select(PARENT, models)
    one = trainer(tmp_path / "one", models)({**few, "train_batch_size": 2}, studies)
    select(PARENT, models)
    monkeypatch.setattr(tasks, "gpus", lambda: ["cuda:0", "cuda:1"])
    task = trainer(tmp_path / "two", models)
    two = task({**few, "multi_gpu": True, "dataloader": "ThreadDataLoader"}, studies)
    assert (one["state"], two["state"]) == (PUBLISHED, PUBLISHED)
    (note,) = two["notes"]
    assert note.startswith("'dataloader' changes nothing")
    assert task.stats()["epoch"] == few["steps"]
    start, first, second = (
        {key: value.float() for key, value in load_file(models / f"{name}.safetensors").items()}
        for name in (PARENT, one["weights"], two["weights"])
    )
    moved = torch.cat([(first[key] - start[key]).reshape(-1) for key in start])
    apart = torch.cat([(first[key] - second[key]).reshape(-1) for key in start])
    assert float(moved.norm()) > 0.1
    assert float(apart.norm()) < 0.1 * float(moved.norm())
    samples = [read_card(models / f"{result['weights']}.safetensors")["samples"] for result in (one, two)]
    assert samples[0] == samples[1]


@pytest.mark.timeout(600)
def test_a_process_that_fails_fails_the_training(
    tmp_path: Path, models: Path, studies: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    select(PARENT, models)
    monkeypatch.setattr(tasks, "gpus", lambda: ["cuda:0", "cuda:1"])
    monkeypatch.setattr(together, "_plain", lambda case: {"image": "nowhere", "label": "nowhere", "id": "x"})
    task = trainer(tmp_path, models)
    with pytest.raises(HTTPException, match="A training by 2 processes failed"):
        task({**REQUEST, "multi_gpu": True}, studies)
    assert task.stats()["state"] == FAILED
    assert default_path("global", directory=models).stem == PARENT
