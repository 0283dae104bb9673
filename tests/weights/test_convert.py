"""Published checkpoints: what becomes of every tensor, and what is refused without a trace."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from dualclickmed.errors import WeightsError
from dualclickmed.networks.build import build_global
from dualclickmed.networks.configs import GlobalConfig
from dualclickmed.weights import convert as checkpoints
from dualclickmed.weights import files as weights
from dualclickmed.weights.checkpoints import read_tensors
from dualclickmed.weights.convert import convert, export_expert, import_checkpoint
from torch import Tensor

from tests.support import published

PATCH = "image_encoder.patch_embed.proj.weight"
HYPERNETWORK = "mask_decoder.output_hypernetworks_mlps."


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    published.use_small_sizes(monkeypatch)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def imported(
    path: Path, kind: weights.Kind, folder: Path, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The stored tensors and the card."""
    target, _ = import_checkpoint(path, kind, directory=folder, **options)
    return safetensors.torch.load_file(target), weights.read_card(target)


def test_the_global_variant_is_taken_as_it_is(tmp_path: Path, model_dir: Path) -> None:
    state = published.global_variant()
    source = tmp_path / "authors global.pth"
    torch.save({"model_state_dict": state, "epoch": 20, "losses": [0.5]}, source)
    stored, card = imported(source, "global", model_dir)
    same(stored, state)
    assert {value.dtype for value in stored.values()} == {torch.float32}
    assert (card["kind"], card["config"]["patch"]) == ("global", 8)
    assert card["source"] == {
        "file": "authors global.pth",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "bytes": source.stat().st_size,
        "format": "SAM-Med3D, 64-voxel variant",
    }
    assert (card["converted"], card["dropped"], card["initialised"]) == ([], [], [])
    assert sorted(path.name for path in model_dir.iterdir()) == [
        "global-paper.json",
        "global-paper.safetensors",
    ]
    loaded = weights.load_expert("global", model_dir / "global-paper.safetensors")
    same(dict(loaded.state_dict()), state)


def test_a_variant_with_a_quality_head_keeps_it(tmp_path: Path, model_dir: Path) -> None:
    state = published.global_variant(dataclasses.replace(published.SMALL_GLOBAL, iou_head=12))
    source = tmp_path / "a.pth"
    torch.save({"model_state_dict": state}, source)
    stored, card = imported(source, "global", model_dir)
    same(stored, state)
    assert card["config"]["iou_head"] == 12


def test_sam_med3d_is_converted(tmp_path: Path, model_dir: Path) -> None:
    state = published.sam_med3d()
    source = tmp_path / "sam_med3d_turbo.pth"
    torch.save(
        {"model_state_dict": state, "args": argparse.Namespace(lr=1e-4), "dices": [np.float64(0.5)]}, source
    )
    stored, card = imported(source, "global", model_dir)

    assert card["source"]["format"] == "SAM-Med3D"
    torch.testing.assert_close(
        stored["mask_decoder.mask_tokens.weight"], state["mask_decoder.mask_tokens.weight"][:1]
    )
    for kind in (2, 3):
        assert not stored[f"{published.POINTS}{kind}.weight"].any()
    changed = {
        PATCH,
        "mask_decoder.mask_tokens.weight",
        f"{published.POINTS}2.weight",
        f"{published.POINTS}3.weight",
    }
    kept = stored.keys() - changed
    same({name: stored[name] for name in kept}, {name: state[name] for name in kept})

    gone = state.keys() - stored.keys()
    assert sorted(card["dropped"]) == sorted(gone)
    assert gone == {
        name
        for name in state
        if name.startswith(tuple(f"{HYPERNETWORK}{i}." for i in (1, 2, 3))) or "iou_pred" in name
    }
    assert [line.split()[0] for line in card["converted"]] == [PATCH, "mask_decoder.mask_tokens.weight"]
    assert [line.split()[0] for line in card["initialised"]] == sorted(changed)[-2:]


def test_the_resampled_patch_embedding_answers_constant_and_doubled_images_alike() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 1, 16, 16, 16), torch.randn(5)
    small = checkpoints.resampled_patch_embedding(weight, 8)
    assert small.shape == (5, 1, 8, 8, 8)

    def answer(kernel: Tensor, image: Tensor) -> Tensor:
        return torch.nn.functional.conv3d(image, kernel, bias, stride=kernel.shape[-1])

    constant = answer(weight, torch.full((1, 1, 16, 16, 16), 1.7))
    torch.testing.assert_close(
        answer(small, torch.full((1, 1, 8, 8, 8), 1.7)), constant, rtol=1e-5, atol=1e-4
    )
    # Any image on the coarse grid gives what the fine grid gives of the same image.
    coarse = torch.randn(1, 1, 16, 16, 16)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(answer(small, coarse), answer(weight, fine), rtol=1e-5, atol=1e-4)


def test_a_dropped_patch_embedding_is_drawn_anew_and_said_so() -> None:
    state = published.sam_med3d()
    first = convert("global", state, "a.pth", drop_patch_embedding=True)
    again = convert("global", state, "a.pth", drop_patch_embedding=True)
    new = first.tensors[PATCH]
    assert new.shape == (24, 1, 8, 8, 8)
    assert torch.equal(new, again.tensors[PATCH])
    # As torch.nn.Conv3d: uniform within 1 / sqrt(inputs).
    assert 0.9 * 512**-0.5 < new.abs().max() <= 512**-0.5
    assert PATCH in first.dropped and first.initialised[0].startswith(f"{PATCH} (at random")
    torch.testing.assert_close(
        first.tensors["image_encoder.patch_embed.proj.bias"], state["image_encoder.patch_embed.proj.bias"]
    )


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "under model": lambda state: {"model": state, "epoch": 3},
    "bare": lambda state: state,
    "with module prefixes": lambda state: {
        "model": {f"module.{name}": value for name, value in state.items()}
    },
    "MONAI 1.3 names": lambda state: published.monai_13_names(state),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vista3d_is_taken_without_its_automatic_branch(layout: str, tmp_path: Path, model_dir: Path) -> None:
    state = published.vista3d().state_dict()
    source = tmp_path / "model.pt"
    torch.save(LAYOUTS[layout](state), source)
    stored, card = imported(source, "local", model_dir)
    dropped = ("class_head.", "image_encoder.up_layers_auto.")
    used = {name: value for name, value in state.items() if not name.startswith(dropped) and name in stored}
    same(stored, used)
    lost = {name for name in state.keys() - stored.keys() if not name.startswith(dropped)}
    assert all(name.startswith(checkpoints._LOCAL_UNUSED) for name in lost)
    assert {name for name in state if name.startswith(dropped)} <= set(card["dropped"])
    assert card["initialised"] == []
    if layout == "MONAI 1.3 names":
        assert card["source"]["format"] == "VISTA3D, names of the MONAI 1.3 bundle"
        assert len(card["converted"]) == 8
        assert any("output_add_hypernetworks_mlps.1" in name for name in card["dropped"])


def test_an_imported_vista3d_gives_monais_own_masks(tmp_path: Path, model_dir: Path) -> None:
    network = published.vista3d()
    source = tmp_path / "model.pt"
    torch.save(network.state_dict(), source)
    path, _ = import_checkpoint(source, "local", directory=model_dir)
    ours = weights.load_expert("local", path)
    torch.manual_seed(4)
    image, points = torch.rand(1, 1, 32, 32, 32), torch.tensor([[[3.0, 9.0, 30.0], [20.0, 5.0, 1.0]]])
    labels = torch.tensor([[1, 0]])
    with torch.inference_mode():
        expected = network(image, point_coords=points, point_labels=labels)
        found = ours.decode(ours.encode(image), points, labels)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_safetensors_and_half_precision_sources(tmp_path: Path, model_dir: Path) -> None:
    state = {name: value.half() for name, value in published.global_variant().items()}
    source = tmp_path / "a.safetensors"
    safetensors.torch.save_file(state, source)
    stored, card = imported(source, "global", model_dir)
    same(stored, {name: value.float() for name, value in state.items()})
    assert card["converted"] == ["all tensors of float16 (to float32)"]


def test_half_stores_parameters_as_float16(tmp_path: Path, model_dir: Path) -> None:
    source = tmp_path / "a.pth"
    torch.save(published.global_variant(), source)
    stored, card = imported(source, "global", model_dir, half=True, name="small")
    assert {value.dtype for name, value in stored.items() if "gaussian" not in name} == {torch.float16}
    assert card["converted"] == ["all parameters (to float16)"]


def test_a_legacy_checkpoint_is_read(tmp_path: Path) -> None:
    state = published.global_variant()
    source = tmp_path / "old.pth"
    torch.save({"model_state_dict": state}, source, _use_new_zipfile_serialization=False)
    same(read_tensors(source), state)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("kind", weights.KINDS)
def test_import_of_an_export_gives_the_same(
    kind: weights.Kind, ending: str, tmp_path: Path, model_dir: Path
) -> None:
    state = (
        published.global_variant()
        if kind == "global"
        else published.drawn(published.small_local_network(), 5)
    )
    source = tmp_path / "a.pth"
    torch.save(state, source)
    path, _ = import_checkpoint(source, kind, directory=model_dir)
    out = export_expert(path, tmp_path / "out" / f"published{ending}")
    if ending != ".safetensors":
        plain = torch.load(out, weights_only=True)
        same(plain["model_state_dict"] if kind == "global" else plain, state)
    again, _ = import_checkpoint(out, kind, "again", model_dir)
    assert again.read_bytes() == path.read_bytes()


def test_export_refuses(tmp_path: Path, model_dir: Path) -> None:
    compact = model_dir / "global-compact.safetensors"
    weights.save_expert(build_global("compact"), "global", compact)
    with pytest.raises(WeightsError, match="holds the preset compact, which has no published layout"):
        export_expert(compact, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"written as \.pth, \.pt, \.safetensors, but"):
        export_expert(compact, tmp_path / "a.onnx")
    (tmp_path / "there.pth").write_text("mine")
    with pytest.raises(WeightsError, match="exists; remove it or choose another"):
        export_expert(compact, tmp_path / "there.pth")
    assert (tmp_path / "there.pth").read_text() == "mine"


class Malicious:
    """Would write a file if it were unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"echo executed > '{self.marker}'",)


def save_legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_plain(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_plain])
def test_a_pickle_with_code_is_refused_by_name_and_not_executed(
    save: Callable[[Any, Path], None], tmp_path: Path, model_dir: Path
) -> None:
    marker, source = tmp_path / "marker", tmp_path / "model.pth"
    save({"model_state_dict": published.global_variant(), "extra": Malicious(marker)}, source)
    with pytest.raises(
        WeightsError, match=r"refused, because it holds more than tensors: it refers to .*system"
    ):
        import_checkpoint(source, "global", directory=model_dir)
    assert not marker.exists()
    assert list(model_dir.iterdir()) == []


def test_whole_modules_and_programs_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), source)
    with pytest.raises(WeightsError, match=r"it refers to torch\.nn\.modules\.linear\.Linear"):
        read_tensors(source)
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), source)
    with pytest.raises(WeightsError, match="TorchScript program"):
        read_tensors(source)


@pytest.mark.parametrize("ending", ["pth", "legacy.pth", "safetensors"])
def test_a_truncated_file_is_refused_at_any_length(ending: str, tmp_path: Path, model_dir: Path) -> None:
    state = published.global_variant()
    whole = tmp_path / f"whole.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(state, whole)
    else:
        torch.save(state, whole, _use_new_zipfile_serialization=ending == "pth")
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{ending}"
    for length in (0, 1, 4, 9, 100, 5000, len(data) // 2, len(data) - 30, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=f"'{cut}'"):
            import_checkpoint(cut, "global", directory=model_dir)
    assert list(model_dir.iterdir()) == []


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: path.write_text("<html>not found</html>"),
            "not a checkpoint: it begins with b'<html>no'",
        ),
        (lambda path: path.write_text("version https://git-lfs"), "not a checkpoint"),
        (write_zip, "truncated, damaged or of another format"),
        (lambda path: torch.save([torch.zeros(2)], path), "holds a list and not a dictionary of tensors"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no tensors by name; it holds 'epoch'"),
        (
            lambda path: torch.save({"a": torch.zeros(2)}, path),
            r"not a checkpoint of SAM-Med3D .*missing image_encoder",
        ),
    ],
)
def test_renamed_and_other_files_are_refused(
    write: Callable[[Path], Any], message: str, tmp_path: Path, model_dir: Path
) -> None:
    source = tmp_path / "model.pth"
    write(source)
    with pytest.raises(WeightsError, match=message):
        import_checkpoint(source, "global", directory=model_dir)
    assert list(model_dir.iterdir()) == []


def test_other_architectures_are_refused_with_the_names_that_differ(tmp_path: Path) -> None:
    state = published.global_variant()
    with pytest.raises(WeightsError, match="looks like a global network; import it with --as global"):
        convert("local", state, "a.pth")
    with pytest.raises(WeightsError, match="looks like a local network; import it with --as local"):
        convert("global", published.vista3d().state_dict(), "a.pth")
    larger = published.global_variant(dataclasses.replace(published.SMALL_GLOBAL, depth=3))
    with pytest.raises(WeightsError, match=r"unexpected image_encoder\.blocks\.2\.attn\..* and 11 more"):
        convert("global", larger, "a.pth")
    missing = {name: value for name, value in state.items() if name != "mask_decoder.iou_token.weight"}
    with pytest.raises(WeightsError, match=r"missing mask_decoder\.iou_token\.weight"):
        convert("global", missing, "a.pth")
    other = state | {"image_encoder.pos_embed": torch.zeros(1, 4, 4, 4, 24)}
    with pytest.raises(
        WeightsError, match=r"pos_embed \(expected \(1, 8, 8, 8, 24\), found \(1, 4, 4, 4, 24\)\)"
    ):
        convert("global", other, "a.pth")
    flat = state | {PATCH: torch.zeros(24, 1, 16, 16)}
    with pytest.raises(WeightsError, match=r"of another shape image_encoder\.patch_embed\.proj\.weight"):
        convert("global", flat, "sam_vit_b.pth")


@pytest.mark.parametrize("bad", [torch.zeros(1, 48, dtype=torch.long), torch.zeros(1, 48).to_sparse()])
def test_tensors_that_are_not_plain_numbers_are_refused(bad: Tensor) -> None:
    with pytest.raises(WeightsError, match="expected ordinary floating-point numbers"):
        convert("global", published.global_variant() | {"mask_decoder.iou_token.weight": bad}, "a.pth")


def test_values_that_are_not_finite_change_nothing(tmp_path: Path, model_dir: Path) -> None:
    state = published.global_variant()
    state["mask_decoder.iou_token.weight"][0, 3] = float("nan")
    source = tmp_path / "a.pth"
    torch.save(state, source)
    with pytest.raises(
        WeightsError, match=r"'mask_decoder\.iou_token\.weight' holds values that are not finite"
    ):
        import_checkpoint(source, "global", directory=model_dir)
    assert list(model_dir.iterdir()) == []


def test_names_that_share_memory_are_stored_apart(tmp_path: Path, model_dir: Path) -> None:
    state = published.global_variant()
    state[f"{published.POINTS}3.weight"] = state[f"{published.POINTS}2.weight"]
    source = tmp_path / "a.pth"
    torch.save(state, source)
    stored, _ = imported(source, "global", model_dir)
    same(stored, state)


def test_names_are_checked_and_kept(tmp_path: Path, model_dir: Path) -> None:
    source = tmp_path / "a.pth"
    torch.save(published.global_variant(), source)
    path, _ = import_checkpoint(source, "global", "mine", model_dir)
    before = path.read_bytes()
    with pytest.raises(WeightsError, match="weights 'mine' already; choose another name"):
        import_checkpoint(source, "global", "mine", model_dir)
    with pytest.raises(WeightsError, match="name of weights that ship"):
        import_checkpoint(source, "global", "global-compact", model_dir)
    with pytest.raises(WeightsError, match="letters, digits, dots"):
        import_checkpoint(source, "global", "../mine", model_dir)
    assert path.read_bytes() == before
    torch.save(published.global_variant(seed=9), source)
    import_checkpoint(source, "global", "mine", model_dir, replace=True)
    assert path.read_bytes() != before


@pytest.mark.slow
@pytest.mark.parametrize("kind", weights.KINDS)
def test_full_sizes_load_without_a_missing_or_unexpected_name(
    kind: weights.Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About 3 GB of disk and 2.5 GB of memory."""
    from dualclickmed.networks.configs import PRESETS

    monkeypatch.setattr(checkpoints, "PUBLISHED", dict(zip(weights.KINDS, PRESETS["paper"], strict=True)))
    source = tmp_path / "model.pth"
    with torch.device("meta"):
        if kind == "global":
            large = GlobalConfig(image_size=128, patch=16, mask_tokens=4, iou_head=256, point_kinds=2)
            shapes = {name: value.shape for name, value in build_global(large).state_dict().items()}
        else:
            from monai.networks.nets.vista3d import vista3d132

            shapes = {name: value.shape for name, value in vista3d132().state_dict().items()}
    torch.save({"model": {name: torch.full(shape, 0.25) for name, shape in shapes.items()}}, source)
    path, _ = import_checkpoint(source, kind, directory=tmp_path)
    card = weights.verify(path)
    assert card["preset"] == "paper"
    state = weights.load_expert(kind, path).state_dict()
    changed = {PATCH: 2.0, f"{published.POINTS}2.weight": 0.0, f"{published.POINTS}3.weight": 0.0}
    for name, value in state.items():
        assert bool((value == changed.get(name, 0.25)).all()), name
