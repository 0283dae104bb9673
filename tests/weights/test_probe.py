"""The probe: exactly what the network gives, and sentences for arrays that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from dualclickmed.errors import UserError
from dualclickmed.networks.global_network import GlobalNetwork
from dualclickmed.networks.local_network import LocalNetwork
from dualclickmed.weights import files as weights
from dualclickmed.weights.probe import probe, probe_file

from tests.support import published

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small networks with the published formulas, every weight drawn."""
    folder = tmp_path_factory.mktemp("model")
    found = {}
    for kind, config, seed in (("global", published.SMALL_GLOBAL, 1), ("local", published.SMALL_LOCAL, 2)):
        shape = weights.outline(config)
        found[kind] = folder / f"{kind}-paper.safetensors"
        weights.save_tensors(published.drawn(shape, seed), cast(Any, kind), config, found[kind])
    return found


def arrays(side: int) -> Arrays:
    rng = np.random.default_rng(3)
    return {
        "image": rng.normal(size=(1, 1, side, side, side)).astype(np.float32),
        "points": rng.uniform(0, side - 1, (1, 5, 3)),
        "labels": np.array([[1, 0, 1, 1, 0]]),
    }


def test_global_answers_are_the_networks_own(files: dict[str, Path], tmp_path: Path) -> None:
    given = arrays(64) | {"mask": np.random.default_rng(4).normal(size=(1, 1, 32, 32, 32)) * 5}
    np.savez(tmp_path / "in.npz", **given)  # type: ignore[arg-type]
    probe_file(files["global"], tmp_path / "in.npz", tmp_path / "new" / "out.npz")

    network = cast(GlobalNetwork, weights.load_expert("global", files["global"]))
    with torch.inference_mode():
        features = network.encode(torch.from_numpy(given["image"]))
        logits = network.decode(
            features,
            torch.from_numpy(given["points"]).float(),
            torch.from_numpy(given["labels"]),
            torch.from_numpy(given["mask"]).float(),
        )
        without = network.decode(
            features, torch.from_numpy(given["points"]).float(), torch.from_numpy(given["labels"])
        )
    with np.load(tmp_path / "new" / "out.npz", allow_pickle=False) as found:
        assert sorted(found.files) == ["embedding", "logits"]
        assert (found["embedding"].shape, found["logits"].shape) == ((1, 48, 8, 8, 8), (1, 1, 32, 32, 32))
        assert {found[name].dtype for name in found.files} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(found["embedding"], features.embedding.numpy())
        np.testing.assert_array_equal(found["logits"], logits.numpy())
        assert not np.allclose(found["logits"], without.numpy())


def test_local_answers_are_the_networks_own(files: dict[str, Path], tmp_path: Path) -> None:
    given = arrays(32)
    np.savez_compressed(tmp_path / "in.npz", **given)  # type: ignore[arg-type]
    probe_file(files["local"], tmp_path / "in.npz", tmp_path / "out.npz")
    network = cast(LocalNetwork, weights.load_expert("local", files["local"]))
    with torch.inference_mode():
        expected = network.decode(
            network.encode(torch.from_numpy(given["image"])),
            torch.from_numpy(given["points"]).float(),
            torch.from_numpy(given["labels"]),
        )
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert found.files == ["logits"]
        np.testing.assert_array_equal(found["logits"], expected.numpy())


def test_points_are_in_the_published_convention(files: dict[str, Path]) -> None:
    """Written from the published prompt encoder: points in array order plus a half, over the grid's side."""
    network = cast(GlobalNetwork, weights.load_expert("global", files["global"]))
    encoder = network.prompt_encoder
    point = torch.tensor([[[3.0, 20.0, 41.0]]])
    matrix = cast(torch.Tensor, encoder.pe_layer.positional_encoding_gaussian_matrix)
    angle = 2 * np.pi * ((2 * (point + 0.5) / 64 - 1) @ matrix)
    published_token = torch.cat([angle.sin(), angle.cos(), angle.sin()], dim=-1)
    published_token = published_token + cast(torch.Tensor, encoder.point_embeddings[1].weight)
    token = encoder(point, torch.tensor([[1]]), None, ()).tokens[:, :1]
    torch.testing.assert_close(token, published_token, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("global", {"points": None}, "The input lacks points; it holds image, labels"),
        ("global", {"boxes": np.zeros((1, 6))}, "The global network takes no boxes"),
        ("local", {"mask": np.zeros((1, 1, 32, 32, 32))}, "The local network takes no mask"),
        ("global", {"points": np.zeros((5, 3))}, r"'points' must be \(1, N, 3\), but its shape is \(5, 3\)"),
        (
            "global",
            {"labels": np.ones((1, 4))},
            r"'labels' must be of shape \(1, 5\), but its shape is \(1, 4\)",
        ),
        (
            "global",
            {"labels": np.full((1, 5), -1)},
            "may hold 0 and 1, but -1 came; leave padding points out",
        ),
        ("local", {"labels": np.full((1, 5), 0.5)}, "may hold 0 and 1, but 0.5 came"),
        ("global", {"image": np.zeros((1, 1, 32, 32, 32))}, r"'image' must be of shape \(1, 1, 64, 64, 64\)"),
        ("local", {"image": np.zeros((1, 1, 32, 32, 30))}, "sides that are multiples of 4, but its shape is"),
        (
            "global",
            {"image": np.full((1, 1, 64, 64, 64), np.nan)},
            "'image' holds values that are not finite",
        ),
        ("global", {"image": np.full((1, 1, 64, 64, 64), 1e300)}, "'image' holds values that are not finite"),
        ("global", {"image": np.full((1, 1, 64, 64, 64), "a")}, "'image' must hold numbers"),
        ("global", {"mask": np.zeros((1, 1, 64, 64, 64))}, r"'mask' must be of shape \(1, 1, 32, 32, 32\)"),
    ],
)
def test_arrays_that_do_not_fit_are_explained(
    files: dict[str, Path], kind: weights.Kind, change: dict[str, Any], message: str
) -> None:
    given = {k: v for k, v in (arrays(64 if kind == "global" else 32) | change).items() if v is not None}
    network = cast("GlobalNetwork | LocalNetwork", weights.load_expert(kind, files[kind]))
    with pytest.raises(UserError, match=message):
        probe(network, given)


def test_files_that_are_not_arrays_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    source, out = tmp_path / "in.npz", tmp_path / "out.npz"
    with pytest.raises(UserError, match="does not exist"):
        probe_file(files["global"], source, out)
    for content in (b"", b"text", b"PK\x03\x04" + b"\0" * 40):
        source.write_bytes(content)
        with pytest.raises(UserError, match=r"can't be read as \.npz of plain arrays"):
            probe_file(files["global"], source, out)
    np.savez(source, image=np.array([{"code": 1}], dtype=object))
    with pytest.raises(UserError, match=r"can't be read as \.npz of plain arrays"):
        probe_file(files["global"], source, out)
    with pytest.raises(UserError, match=r"written as \.npz"):
        probe_file(files["global"], source, tmp_path / "out.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz"]
