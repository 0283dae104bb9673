"""Larger weights from smaller ones: what they answer, what their card says, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from dualclickmed.cli import app as cli
from dualclickmed.errors import WeightsError
from dualclickmed.networks.build import build_global
from dualclickmed.networks.configs import GlobalConfig
from dualclickmed.weights import files as weights
from dualclickmed.weights.grow import grow
from dualclickmed.weights.lineage import trained_images
from typer.testing import CliRunner

from tests.support import published

SMALL = GlobalConfig(
    image_size=16, mask_size=16, unet_channels=(16, 32), unet_blocks=(1, 1), patch=8, hold_edges=True
)
SEEN = {"command": "train one", "steps": 10, "samples": 70, "hours": 1.5}
CARD = {**SEEN, "seed": 4, "measured": {"dice": 0.5}}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    network = build_global(SMALL)
    network.load_state_dict(published.drawn(network, 1))
    path = tmp_path / "small.safetensors"
    data = {"what": "volumes", "trained": ["sha256:1"]}
    weights.save_expert(network, "global", path, {**CARD, "data": data})
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["weights", "grow", *(str(argument) for argument in arguments)])


def test_the_command_writes_weights_that_can_be_trained_further(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "large.safetensors"
    sizes = ("--channels", "32,48", "--blocks", "2,2")
    result = run("small", "--out", out, *sizes, "--model-dir", tmp_path)
    assert result.exit_code == 0, result.output
    card = weights.verify(out)
    assert (card["config"]["unet_channels"], card["config"]["unet_blocks"]) == ([32, 48], [2, 2])
    assert {key: card[key] for key in ("steps", "samples", "hours", "seed")} == {
        "steps": 10, "samples": 70, "hours": 1.5, "seed": 0,
    }  # fmt: skip
    assert card["measured"] == {}
    assert card["command"] == (
        f"python main.py weights grow small --out '{out}' --channels 32,48 --blocks 2,2 --seed 0 "
        f"--model-dir {tmp_path}"
    )
    small_card = json.loads(small.with_suffix(".json").read_text())
    assert card["parents"] == [{"file": "small.safetensors", "sha256": small_card["sha256"], **SEEN}]
    assert trained_images(out) == {"sha256:1"}


def test_sizes_that_are_not_named_stay(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "seeing.safetensors"
    result = run("small", "--out", out, "--walks", "--model-dir", tmp_path)
    assert result.exit_code == 0, result.output
    card = weights.verify(out)
    sizes = (card["config"]["unet_channels"], card["config"]["unet_blocks"], card["config"]["walks"])
    assert sizes == ([16, 32], [1, 1], True)
    assert card["command"] == (
        f"python main.py weights grow small --out {out} --walks --seed 0 --model-dir {tmp_path}"
    )


def test_the_answers_are_those_of_the_smaller_one(small: Path, tmp_path: Path) -> None:
    out = grow(small, tmp_path / "large.safetensors", (32, 32), (1, 2))
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    points, labels = torch.tensor([[[8.0, 8, 8], [3, 4, 5]]]), torch.tensor([[2, 1]])
    answers = []
    for path in (small, out):
        network: Any = weights.load_expert("global", path)
        with torch.inference_mode():
            answers.append(network.decode(network.encode(image), points, labels, None))
    assert float(answers[0].std()) > 0.1
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-3, atol=1e-3)


def test_the_seed_decides_the_new_weights_alone(small: Path, tmp_path: Path) -> None:
    one, again, other = (
        safetensors.torch.load_file(
            grow(small, tmp_path / f"{name}.safetensors", (32, 32), (1, 1), seed=seed)
        )
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["stem.weight"][16:], other["stem.weight"][16:])
    assert torch.equal(one["stem.weight"][:16], other["stem.weight"][:16])


def refusal(path: Path, out: Path, channels: tuple[int, ...] = (32, 32)) -> str:
    """The sentence of a refusal that has changed no file."""
    before = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(WeightsError) as caught:
        grow(path, out, channels, (1, 1))
    assert {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} == before
    return str(caught.value)


def test_what_cannot_grow_is_refused_and_nothing_is_written(small: Path, tmp_path: Path) -> None:
    assert refusal(small, small) == f"'{small}' exists; remove it or choose another file."
    assert "none may shrink" in refusal(small, tmp_path / "out.safetensors", (16, 16))
    published_one = tmp_path / "published.safetensors"
    network = build_global(published.SMALL_GLOBAL)
    weights.save_expert(network, "global", published_one, {})
    assert refusal(published_one, tmp_path / "out.safetensors") == (
        f"Only the U-Net of the compact global expert can grow, but '{published_one}' holds another network."
    )


def test_the_command_refuses_what_are_no_numbers(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = run("small", "--out", out, "--channels", "64;128", "--blocks", "1,2", "--model-dir", tmp_path)
    assert result.exit_code == 2
    assert "--channels takes whole numbers above 0, such as 64,128,192, but '64;128' came." in " ".join(
        result.stderr.split()
    )
    assert not out.exists()
