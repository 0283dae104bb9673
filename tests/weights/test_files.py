"""Weight files: what is stored, what comes back, and what is said about damaged ones."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import safetensors.torch
import torch
from dualclickmed.errors import WeightsError
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import PRESETS
from dualclickmed.weights import files as weights
from dualclickmed.weights.cards import command_line
from torch import nn

FREQUENCIES = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


@pytest.fixture(scope="module")
def networks() -> dict[weights.Kind, nn.Module]:
    torch.manual_seed(5)
    return {"global": build_global("transformer"), "local": build_local("compact")}


@pytest.fixture(scope="module")
def original(networks: dict[weights.Kind, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "global-compact.safetensors"
    weights.save_expert(networks["global"], "global", path, {"steps": 12})
    return path


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """Weights that a test may damage."""
    for file in (original, weights.card_path(original)):
        shutil.copy(file, tmp_path)
    return tmp_path / original.name


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors and make the card agree, so that only the names and shapes are wrong."""
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    card = weights.read_card(path)
    card["sha256"] = weights.hashlib.sha256(path.read_bytes()).hexdigest()
    weights.card_path(path).write_text(json.dumps(card))


def edit_card(path: Path, **fields: Any) -> None:
    card = weights.read_card(path) | fields
    weights.card_path(path).write_text(
        json.dumps({key: value for key, value in card.items() if value is not ...})
    )


@pytest.mark.parametrize("kind", weights.KINDS)
def test_loaded_parameters_are_the_saved_ones_rounded_to_float16(
    networks: dict[weights.Kind, nn.Module], kind: weights.Kind, tmp_path: Path
) -> None:
    path = tmp_path / "made here" / f"{kind}.safetensors"
    weights.save_expert(networks[kind], kind, path)
    loaded = weights.load_expert(kind, path)

    assert not loaded.training
    assert loaded.config == PRESETS["transformer"][weights.KINDS.index(kind)]
    parameters = dict(networks[kind].named_parameters())
    for name, value in networks[kind].state_dict().items():
        expected = value.half().float() if name in parameters else value
        torch.testing.assert_close(loaded.state_dict()[name], expected, rtol=0, atol=0)


def test_parameters_are_float16_on_disk_and_buffers_keep_their_type(saved: Path) -> None:
    stored = safetensors.torch.load_file(saved)
    assert stored[FREQUENCIES].dtype == torch.float32
    assert {value.dtype for name, value in stored.items() if name != FREQUENCIES} == {torch.float16}


def test_saving_twice_gives_the_same_bytes(saved: Path, networks: dict[weights.Kind, nn.Module]) -> None:
    before = saved.read_bytes()
    weights.save_expert(networks["global"], "global", saved)
    assert saved.read_bytes() == before
    assert sorted(path.name for path in saved.parent.iterdir()) == [
        "global-compact.json",
        "global-compact.safetensors",
    ]


def test_card_holds_what_was_given_and_what_is_known(
    saved: Path, networks: dict[weights.Kind, nn.Module]
) -> None:
    given = {"steps": 7, "measured": {"dice": 0.5}, "kind": "local", "preset": "wrong", "sha256": "wrong"}
    weights.save_expert(networks["global"], "global", saved, given)
    card = weights.read_card(saved)
    assert (card["kind"], card["preset"]) == ("global", "transformer")
    assert card["sha256"] == weights.hashlib.sha256(saved.read_bytes()).hexdigest()
    assert card["config"] == json.loads(json.dumps(PRESETS["transformer"][0].to_dict()))
    assert (card["steps"], card["measured"], card["licence"]) == (7, {"dice": 0.5}, "Apache-2.0")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", card["created"])


def test_a_failed_write_leaves_the_old_files(
    saved: Path, networks: dict[weights.Kind, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}

    def full_disk(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(weights.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        weights.save_expert(networks["global"], "global", saved, {"steps": 13})
    assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    network = build_global("transformer")
    name, parameter = next(iter(network.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[0] = value
    with pytest.raises(WeightsError, match=re.escape(f"'{name}' holds values that are not finite")):
        weights.save_expert(network, "global", tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_other_networks_and_endings_are_refused(
    tmp_path: Path, networks: dict[weights.Kind, nn.Module]
) -> None:
    with pytest.raises(WeightsError, match=r"must end in \.safetensors, but it is 'a\.pt'"):
        weights.save_expert(networks["global"], "global", tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"local expert was to be saved, .* is a GlobalConfig"):
        weights.save_expert(networks["global"], "local", tmp_path / "a.safetensors")


def test_weights_of_the_other_expert_are_refused(saved: Path) -> None:
    with pytest.raises(WeightsError, match="weights of the global expert, but the local expert was asked"):
        weights.load_expert("local", saved)


def test_missing_files_are_named(saved: Path) -> None:
    nowhere = saved.with_name("nowhere.safetensors")
    with pytest.raises(WeightsError, match=re.escape(f"The weights '{nowhere}' do not exist")):
        weights.load_expert("global", nowhere)
    weights.card_path(saved).unlink()
    with pytest.raises(WeightsError, match=r"has no card: 'global-compact\.json' is missing"):
        weights.load_expert("global", saved)


def test_every_damaged_byte_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        saved.write_bytes(damaged)
        with pytest.raises(WeightsError, match="is not the file that its card describes"):
            weights.load_expert("global", saved)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60])
def test_a_file_of_another_kind_is_never_unpickled(saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    edit_card(saved, sha256=weights.hashlib.sha256(content).hexdigest())
    with pytest.raises(WeightsError, match="is not a readable safetensors file"):
        weights.load_expert("global", saved)


def test_names_and_shapes_that_differ_are_listed(saved: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["head.weight"] = tensors.pop(FREQUENCIES)
        name = next(name for name in sorted(tensors) if tensors[name].shape == (160,))
        tensors[name] = tensors[name][:7].clone()

    rewrite(saved, change)
    with pytest.raises(WeightsError) as caught:
        weights.load_expert("global", saved)
    for part in (
        f"missing {FREQUENCIES};",
        "unexpected head.weight;",
        "(expected (160,), found (7,))",
        "Use weights of this preset",
    ):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match="does not fit the network"):
        weights.verify(saved)


def test_long_lists_of_names_are_cut(saved: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in sorted(tensors)[:9]:
            del tensors[name]

    rewrite(saved, change)
    with pytest.raises(WeightsError, match=r"missing .* and 5 more"):
        weights.load_expert("global", saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "huge"}, "unknown preset 'huge'; known are paper, compact"),
        ({"kind": "both"}, "names the kind 'both'; known are global and local"),
        ({"config": {"wheels": 4}}, "describes a network that this version can't build .*wheels"),
        ({"config": [1]}, "describes a network that this version can't build"),
        ({"sha256": ..., "config": ...}, "lacks config, sha256"),
    ],
)
def test_unusable_cards_are_explained(saved: Path, fields: dict[str, Any], message: str) -> None:
    edit_card(saved, **fields)
    with pytest.raises(WeightsError, match=message):
        weights.load_expert("global", saved)


@pytest.mark.parametrize("text", ["", "{", '{"kind": "glo', "\x00\x01"])
def test_a_card_that_is_not_json_is_explained(saved: Path, text: str) -> None:
    weights.card_path(saved).write_text(text)
    with pytest.raises(WeightsError, match="can't be read as JSON"):
        weights.load_expert("global", saved)


def test_a_card_of_another_json_type_is_explained(saved: Path) -> None:
    weights.card_path(saved).write_text("[1, 2]")
    with pytest.raises(WeightsError, match="lacks kind, preset, config, sha256"):
        weights.load_expert("global", saved)


def test_a_command_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/main.py", "train", "global", "--data", "my cases"])
    assert command_line() == "python main.py train global --data 'my cases'"


def test_default_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUALCLICKMED_MODEL_DIR", raising=False)
    repository = Path(__file__).resolve().parents[2]
    assert weights.default_path("global") == repository / "model" / "global-compact.safetensors"
    monkeypatch.setenv("DUALCLICKMED_MODEL_DIR", str(tmp_path))
    assert weights.default_path("local", "paper") == tmp_path / "local-paper.safetensors"
    assert weights.default_path("local", directory=tmp_path / "a") == tmp_path / "a/local-compact.safetensors"
    with pytest.raises(WeightsError, match="Unknown kind of expert 'middle'"):
        weights.default_path("middle")


def test_verify_returns_the_card_and_draws_no_random_numbers(saved: Path) -> None:
    state = torch.get_rng_state()
    assert weights.verify(saved)["steps"] == 12
    assert torch.equal(torch.get_rng_state(), state)


def test_listing_tells_good_files_from_bad_ones(saved: Path) -> None:
    bad = saved.with_name("bad.safetensors")
    bad.write_bytes(b"123")
    first, second = weights.list_weights(saved.parent)
    assert (first.path, first.nbytes, first.card) == (bad, 3, None)
    assert first.problem is not None and "'bad.json' is missing" in first.problem
    assert (second.path, second.problem) == (saved, None)
    assert second.card is not None and second.card["steps"] == 12
    with pytest.raises(WeightsError, match=r"folder of weights '.*nowhere' does not exist"):
        weights.list_weights(saved.parent / "nowhere")


def test_shipped_weights_are_whole_and_small() -> None:
    """The repository's own files: both compact experts are there and stay within 32 MB together."""
    files = weights.list_weights(Path(__file__).resolve().parents[2] / "model")
    assert [file.problem for file in files if file.problem is not None] == []
    compact = {file.path.stem: file.nbytes for file in files if file.path.stem.endswith("-compact")}
    assert sorted(compact) == ["global-compact", "local-compact"]
    assert sum(compact.values()) <= 32e6


def pair_of(saved: Path, networks: dict[weights.Kind, nn.Module]) -> Path:
    """A folder with both shipped files and another global one."""
    weights.save_expert(networks["local"], "local", saved.with_name("local-compact.safetensors"))
    weights.save_expert(networks["global"], "global", saved.with_name("mine.safetensors"), {"steps": 99})
    return saved.parent


def test_a_selection_is_kept_and_undone(saved: Path, networks: dict[weights.Kind, nn.Module]) -> None:
    folder = pair_of(saved, networks)
    assert weights.select("mine", folder) == {"global": "mine", "local": "local-compact"}
    assert weights.default_path("global", directory=folder) == folder / "mine.safetensors"
    assert weights.default_path("local", directory=folder) == folder / "local-compact.safetensors"
    assert weights.default_path("global", "compact", folder) == saved
    assert weights.select("local-compact", folder) == {"global": "mine", "local": "local-compact"}
    assert weights.select("global-compact.safetensors", folder)["global"] == "global-compact"
    assert not (folder / weights.SELECTION).exists()
    weights.select("mine", folder)
    assert weights.select(None, folder) == {"global": "global-compact", "local": "local-compact"}
    assert weights.selection(folder) == {}


def test_only_weights_that_can_be_used_are_selected(
    saved: Path, networks: dict[weights.Kind, nn.Module]
) -> None:
    folder = pair_of(saved, networks)
    weights.select("mine", folder)
    before = (folder / weights.SELECTION).read_text()
    with pytest.raises(
        WeightsError, match=r"no weights 'other' in .*; there are: global-compact, local-compact, mine"
    ):
        weights.select("other", folder)
    with pytest.raises(WeightsError, match="named by letters"):
        weights.select("../mine", folder)
    (folder / "mine.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="is not the file that its card describes"):
        weights.select("mine", folder)
    assert (folder / weights.SELECTION).read_text() == before


@pytest.mark.parametrize("text", ["", "[]", '{"global": "../../etc/passwd"}', '{"middle": "a"}'])
def test_a_damaged_selection_is_explained(text: str, saved: Path) -> None:
    (saved.parent / weights.SELECTION).write_text(text)
    with pytest.raises(WeightsError, match="which says which weights are served, can't be used"):
        weights.default_path("global", directory=saved.parent)
    assert weights.default_path("global", "compact", saved.parent) == saved


def test_a_running_segmenter_takes_up_a_selection(
    saved: Path, networks: dict[weights.Kind, nn.Module]
) -> None:
    """The prior's sign turns the masks around, so that both the weights and the embeddings must be new."""
    from dualclickmed.configs.options import ServerOptions
    from dualclickmed.imaging.geometry import Box
    from dualclickmed.imaging.prompts import Prompts
    from dualclickmed.infers.segmenter import Segmenter, SegmentRequest

    folder = pair_of(saved, networks)
    turned = build_global("transformer")
    turned.load_state_dict(networks["global"].state_dict())
    for network, gain in ((networks["global"], 20.0), (turned, -20.0)):
        with torch.no_grad():
            network.prior_gain.fill_(gain)  # type: ignore[operator]
    weights.save_expert(networks["global"], "global", saved)
    weights.save_expert(turned, "global", folder / "mine.safetensors")
    image = folder / "image.nii.gz"
    noise = np.random.default_rng(0).normal(size=(40, 40, 40)) * 50
    nib.save(nib.Nifti1Image(noise.astype(np.int16), np.eye(4)), image)

    def mask(segmenter: Segmenter) -> np.ndarray[Any, Any]:
        prompts = {"object": Prompts((), Box((10, 10, 10), (30, 30, 30)))}
        return segmenter.segment(SegmentRequest(image, lambda *_: prompts, "global", "cpu")).result.labels

    running = Segmenter(ServerOptions(model_dir=folder))
    first = mask(running)
    assert first[20, 20, 20] == 1
    weights.select("mine", folder)
    second = mask(running)
    assert (first != second).mean() > 0.05
    np.testing.assert_array_equal(second, mask(Segmenter(ServerOptions(model_dir=folder))))
    np.testing.assert_array_equal(mask(Segmenter(ServerOptions(model_dir=folder, preset="compact"))), first)
    (folder / weights.SELECTION).write_text("{")
    assert "can't be used" in str(running.experts.problem())
    weights.select(None, folder)
    assert running.experts.problem() is None
    np.testing.assert_array_equal(mask(running), first)


def test_the_outline_of_a_network_loads_no_compiler() -> None:
    """Random values on the meta device would import it, which takes longer than the rest of a start."""
    program = (
        "import sys; from dualclickmed.networks.configs import PRESETS;"
        "from dualclickmed.weights.files import outline;"
        "[outline(config) for pair in PRESETS.values() for config in pair];"
        "print('torch._dynamo' in sys.modules)"
    )
    # MONAI's optional parts bring it along as well.
    program = "from dualclickmed.server.starting import import_monai; import_monai();" + program
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280)
    assert done.stdout == "False\n", done.stderr


def test_a_former_name_of_a_preset_is_read(saved: Path) -> None:
    edit_card(saved, preset="unet")
    assert weights.load_expert("global", saved).config == PRESETS["transformer"][0]
