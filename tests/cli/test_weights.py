"""The commands on weights: what they say, and that what they refuse changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dualclickmed.cli import app as cli
from dualclickmed.weights import files as weights
from dualclickmed.weights.download import manifest
from typer.testing import CliRunner

from tests.support import published


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in ("weights", *arguments)])


def refusal(*arguments: object) -> str:
    """The sentence of a refused command."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return str(result.stderr.strip().splitlines()[-1])


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    published.use_small_sizes(monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "sam med3d.pth"
    torch.save({"model_state_dict": published.sam_med3d()}, path)
    return path


def test_import_use_list_probe_and_export(source: Path, tmp_path: Path) -> None:
    options = ("--model-dir", tmp_path / "model")
    result = run("import", source, "--as", "global", "--name", "mine", *options)
    assert result.exit_code == 0, result.output
    assert "Recognised: SAM-Med3D. Wrote" in result.stdout
    assert "converted: image_encoder.patch_embed.proj.weight (16^3 to 8^3, area-resampled)" in result.stdout
    assert "more (all in the card)" in result.stdout and "weights use mine" in result.stdout

    used = run("use", "mine", *options)
    assert used.stdout.strip() == "Served now: global expert from mine, local expert from local-compact"
    listed = run("list", *options).stdout
    assert [line.split()[1] for line in listed.splitlines() if "mine" in line] == ["*"]

    arrays = {"image": np.zeros((1, 1, 64, 64, 64)), "points": np.zeros((1, 1, 3)), "labels": np.ones((1, 1))}
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]
    probed = run("probe", "mine", "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz", *options)
    assert "embedding (1, 48, 8, 8, 8), logits (1, 1, 32, 32, 32)" in probed.stdout
    assert np.load(tmp_path / "out.npz")["logits"].shape == (1, 1, 32, 32, 32)

    exported = run("export", "mine", "--to", tmp_path / "back.pth", *options)
    assert exported.stdout.strip() == f"Wrote {tmp_path / 'back.pth'}"
    assert set(torch.load(tmp_path / "back.pth", weights_only=True)) == {"model_state_dict"}
    assert "global-compact" in run("use", "--default", *options).stdout


def test_refusals_are_sentences_and_leave_nothing(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    options = ("--model-dir", folder)
    assert "--as takes global or local, but 'both' came" in refusal(
        "import", source, "--as", "both", *options
    )
    assert "import it with --as global" in refusal("import", source, "--as", "local", *options)
    assert "can't be read (No such file" in refusal("import", tmp_path / "no.pth", "--as", "global", *options)

    class Malicious:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "marker"),)

    torch.save({"model_state_dict": Malicious()}, source)
    assert "it refers to posix.mkdir. Nothing of it was executed" in refusal(
        "import", source, "--as", "global"
    )
    assert not (tmp_path / "marker").exists() and not folder.exists()

    assert "Give the name of weights to serve, or --default" in refusal("use", *options)
    assert "Give the name of weights to serve, or --default" in refusal("use", "a", "--default", *options)
    assert f"There are no weights 'a' in '{folder}'; there are: none." in refusal("use", "a", *options)
    assert "There are no weights 'a'" in refusal("export", "a", "--to", tmp_path / "b.pth", *options)


def test_download_without_a_name_shows_a_table_with_every_licence() -> None:
    lines = [" ".join(line.split("│")) for line in run("download").stdout.splitlines()]
    text = " ".join(" ".join(lines).split())
    for entry in manifest().values():
        assert entry.name in text and " ".join(f"Licence: {entry.licence}".split()) in text
    assert all(len(line) <= 100 for line in lines) and "dualclickmed weights download NAME" in text
    (commercial,) = [entry for entry in manifest().values() if entry.name == "nv-segment-ct"]
    assert commercial.kind == "local" and "NVIDIA Open Model License" in commercial.licence
    assert commercial.url.startswith("https://huggingface.co/nvidia/NV-Segment-CT/")


def test_download_shows_the_licence_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = run("download").stdout
    assert "sam-med3d-turbo" in listed and "vista3d" in listed
    options = ("--model-dir", tmp_path / "model")
    result = run("download", "vista3d", *options)
    assert result.exit_code == 2
    shown = result.stderr
    assert "Licence: NVIDIA licence for the weights: research and evaluation only" in shown
    assert "From: https://developer.download.nvidia.com/" in shown and "checked by: MD5" in shown
    assert "read the licence and pass --yes" in shown
    assert "--accept-unverified" in refusal("download", "sam-med3d-turbo", "--yes", *options)
    assert "no download 'sam'" in refusal("download", "sam", *options)
    assert not (tmp_path / "model").exists()


def test_a_download_reports_what_it_computed(
    monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path
) -> None:
    from dualclickmed.weights import download

    data = source.read_bytes()
    monkeypatch.setattr(download, "fetch", lambda entry, part, progress: part.write_bytes(data))
    options = ("--yes", "--accept-unverified", "--model-dir", tmp_path / "model")
    result = run("download", "sam-med3d-turbo", *options)
    assert result.exit_code == 0, result.output
    card = weights.read_card(tmp_path / "model" / "sam-med3d-turbo.safetensors")
    assert f"SHA-256 {card['source']['sha256']}" in result.stdout and "unverified" in result.stdout
    assert "Recognised: SAM-Med3D." in result.stdout
    assert json.dumps(card["source"]["verified"]) == "false"
