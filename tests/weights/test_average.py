"""The mean of weight files: its values, what its card says, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from dualclickmed.cli import app as cli
from dualclickmed.errors import WeightsError
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import GlobalConfig
from dualclickmed.weights import files as weights
from dualclickmed.weights.average import average
from dualclickmed.weights.lineage import trained_images
from torch import Tensor
from typer.testing import CliRunner

from tests.support import published

FREQUENCIES = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def write(path: Path, draw: int, config: GlobalConfig = published.SMALL_GLOBAL, **card: Any) -> Path:
    """Weights of a small global network at random, whose frequencies are those of every other."""
    state = published.drawn(build_global(config), draw)
    state[FREQUENCIES] = published.drawn(build_global(config), 0)[FREQUENCIES]
    network = build_global(config)
    network.load_state_dict(state)
    weights.save_expert(network, "global", path, card)
    return path


@pytest.fixture
def first(tmp_path: Path) -> Path:
    card = {"command": "train one", "steps": 10, "samples": 70, "hours": 1.5}
    more = {"seed": 4, "before": {"steps": 3}, "measured": {"dice": 0.5}, "recipe": {"rate": 1}}
    return write(tmp_path / "a.safetensors", 1, **card, **more)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    card = {"command": "train two", "steps": 20, "samples": 60, "hours": 0.5, "data": "volumes"}
    return write(tmp_path / "b.safetensors", 2, **card, measured={"dice": 0.6})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(folder: Path, paths: list[Path], out: Path) -> str:
    """The sentence of a mean that was refused and has changed no file."""
    before = files(folder)
    with pytest.raises(WeightsError) as caught:
        average(paths, out)
    assert files(folder) == before
    return str(caught.value)


@pytest.mark.parametrize("count", [2, 3])
def test_parameters_are_the_float32_mean_stored_as_float16(
    first: Path, second: Path, tmp_path: Path, count: int
) -> None:
    paths = [first, second, write(tmp_path / "c.safetensors", 3)][:count]
    out = average(paths, tmp_path / "new folder" / "mean.safetensors")

    parents = [safetensors.torch.load_file(path) for path in paths]
    stored = safetensors.torch.load_file(out)
    assert stored.keys() == parents[0].keys()
    for name, value in stored.items():
        if name == FREQUENCIES:
            assert value.dtype == torch.float32
            assert torch.equal(value, parents[0][name])
        else:
            expected = sum((parent[name].float() for parent in parents), torch.zeros(())) / count
            assert value.dtype == torch.float16
            torch.testing.assert_close(value, expected.half(), rtol=0, atol=0)
    assert weights.verify(out)["preset"] == "custom"
    loaded: dict[str, Tensor] = weights.load_expert("global", out).state_dict()
    assert torch.equal(loaded[FREQUENCIES], parents[0][FREQUENCIES])


def test_large_values_do_not_overflow_on_the_way(tmp_path: Path) -> None:
    def constant(name: str, value: float) -> Path:
        network = build_global(published.SMALL_GLOBAL)
        state = published.drawn(network, 0)
        network.load_state_dict(state)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(value)
        weights.save_expert(network, "global", tmp_path / name)
        return tmp_path / name

    out = average(
        [constant("a.safetensors", 60000.0), constant("b.safetensors", 50016.0)],
        tmp_path / "mean.safetensors",
    )
    tensors = safetensors.torch.load_file(out)
    assert {float(v) for name, t in tensors.items() if name != FREQUENCIES for v in t.unique()} == {55008.0}


def test_a_local_expert_is_averaged_as_well(tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2):
        network = build_local(published.SMALL_LOCAL)
        state = published.drawn(network, seed)
        state["point_head.pe_layer.positional_encoding_gaussian_matrix"].fill_(0.5)
        network.load_state_dict(state)
        paths.append(tmp_path / f"{seed}.safetensors")
        weights.save_expert(network, "local", paths[-1])
    out = average(paths, tmp_path / "mean.safetensors")
    name = "image_encoder.encoder.conv_init.weight"
    old, new = (weights.load_expert("local", path).state_dict()[name] for path in paths)
    stored = weights.load_expert("local", out).state_dict()[name]
    torch.testing.assert_close(stored, ((old + new) / 2).half().float(), rtol=0, atol=0)


def test_the_card_names_the_parents_and_nothing_that_was_measured_on_them(
    first: Path, second: Path, tmp_path: Path
) -> None:
    out = average([first, second], tmp_path / "mean.safetensors", "weights average a b")
    card = weights.read_card(out)
    created, version = card.pop("created"), card.pop("version")
    assert re.match(r"\d{4}-\d\d-\d\dT", created) and version
    assert card == {
        "kind": "global",
        "preset": "custom",
        "config": json.loads(json.dumps(published.SMALL_GLOBAL.to_dict())),
        "sha256": weights.hashlib.sha256(out.read_bytes()).hexdigest(),
        "command": "weights average a b",
        "steps": 20,
        "samples": 70,
        "seed": None,
        "measured": {},
        "licence": "Apache-2.0",
        "data": "not stated; volumes",
        "parents": [
            {
                "file": "a.safetensors",
                "sha256": weights.read_card(first)["sha256"],
                "command": "train one",
                "steps": 10,
                "samples": 70,
                "hours": 1.5,
                "licence": "Apache-2.0",
                "before": {"steps": 3},
            },
            {
                "file": "b.safetensors",
                "sha256": weights.read_card(second)["sha256"],
                "command": "train two",
                "steps": 20,
                "samples": 60,
                "hours": 0.5,
                "licence": "Apache-2.0",
                "data": "volumes",
            },
        ],
    }


def test_what_the_parents_do_not_say_stays_unknown_and_every_licence_counts(tmp_path: Path) -> None:
    one = write(tmp_path / "a.safetensors", 1, licence="research only")
    two = write(tmp_path / "b.safetensors", 2)
    card = weights.read_card(average([one, two], tmp_path / "mean.safetensors"))
    assert (card["steps"], card["samples"], card["command"]) == (None, None, None)
    assert card["licence"] == "research only; Apache-2.0"
    assert [parent["hours"] for parent in card["parents"]] == [None, None]


def test_a_mean_of_means_keeps_the_first_parents(first: Path, second: Path, tmp_path: Path) -> None:
    inner = average([first, second], tmp_path / "mean.safetensors")
    third = write(tmp_path / "c.safetensors", 3)
    card = weights.read_card(average([inner, third], tmp_path / "outer.safetensors"))
    assert [parent["command"] for parent in card["parents"][0]["parents"]] == ["train one", "train two"]
    assert "parents" not in card["parents"][1]


def test_images_that_a_parent_was_trained_on_stay_known(first: Path, tmp_path: Path) -> None:
    data = {"what": "labels of the annotators", "trained": ["scan 2", "scan 1"], "held_out": ["scan 3"]}
    learned = write(tmp_path / "learned.safetensors", 2, data=data)
    out = average([first, learned], tmp_path / "elsewhere" / "mean.safetensors")
    assert weights.read_card(out)["data"] == {
        "what": "not stated; labels of the annotators",
        "trained": ["scan 1", "scan 2"],
    }
    assert trained_images(out) == {"scan 1", "scan 2"}


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_files_are_refused(first: Path, tmp_path: Path, count: int) -> None:
    message = refusal(tmp_path, [first][:count], tmp_path / "mean.safetensors")
    assert message == f"A mean is taken of two or more weight files, but {count} came; name more."


def test_the_same_weights_twice_are_refused(first: Path, second: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(first.read_bytes())
    weights.card_path(copy).write_bytes(weights.card_path(first).read_bytes())
    message = refusal(tmp_path, [first, second, copy], tmp_path / "mean.safetensors")
    assert message == f"'{first}' and '{copy}' hold the same weights; name each file once."


def test_weights_of_both_experts_are_refused(first: Path, tmp_path: Path) -> None:
    local = tmp_path / "local.safetensors"
    weights.save_expert(build_local(published.SMALL_LOCAL), "local", local)
    assert refusal(tmp_path, [first, local], tmp_path / "mean.safetensors") == (
        f"'{first}' holds weights of the global expert and '{local}' of the local expert; a mean is taken of "
        "one kind."
    )


def test_configurations_that_differ_are_named_with_what_differs(first: Path, tmp_path: Path) -> None:
    changed = {**published.SMALL_GLOBAL.to_dict(), "decoder_mlp": 48, "iou_head": 8}
    other = write(tmp_path / "b.safetensors", 2, GlobalConfig.from_dict(changed))
    assert refusal(tmp_path, [first, other], tmp_path / "mean.safetensors") == (
        f"'{first}' and '{other}' are of different configurations: decoder_mlp (32 and 48), iou_head (0 and "
        "8); a mean is taken of one configuration."
    )


def test_weights_of_another_lineage_are_refused(first: Path, tmp_path: Path) -> None:
    network = build_global(published.SMALL_GLOBAL)
    network.load_state_dict(published.drawn(network, 5))
    other = tmp_path / "b.safetensors"
    weights.save_expert(network, "global", other)
    assert f"'{first}' and '{other}' differ in '{FREQUENCIES}'" in refusal(
        tmp_path, [first, other], tmp_path / "mean.safetensors"
    )


@pytest.mark.parametrize("name", ["mean.safetensors", "mean.json"])
def test_an_output_that_exists_is_refused(first: Path, second: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    message = refusal(tmp_path, [first, second], tmp_path / "mean.safetensors")
    assert message == f"'{tmp_path / name}' exists; remove it or choose another file."


def test_a_parent_is_not_the_output(first: Path, second: Path, tmp_path: Path) -> None:
    assert f"'{first}' exists" in refusal(tmp_path, [first, second], first)


def test_another_ending_is_refused(first: Path, second: Path, tmp_path: Path) -> None:
    message = refusal(tmp_path, [first, second], tmp_path / "mean.pth")
    assert "must end in .safetensors, but it is 'mean.pth'" in message


def test_a_missing_card_is_named(first: Path, second: Path, tmp_path: Path) -> None:
    weights.card_path(second).unlink()
    message = refusal(tmp_path, [first, second], tmp_path / "mean.safetensors")
    assert f"'{second}' has no card: 'b.json' is missing beside it" in message


def test_a_damaged_parent_is_refused(first: Path, second: Path, tmp_path: Path) -> None:
    second.write_bytes(second.read_bytes()[:-1])
    message = refusal(tmp_path, [first, second], tmp_path / "mean.safetensors")
    assert f"'{second}'" in message and "is not the file that its card describes" in message


def test_a_full_disk_leaves_nothing(
    first: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "fsync", full_disk)
    message = refusal(tmp_path, [first, second], tmp_path / "mean.safetensors")
    assert message == f"'{tmp_path / 'mean.safetensors'}' can't be written: No space left on device."


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["weights", "average", *(str(argument) for argument in arguments)])


def test_the_command_takes_names_and_files_and_says_how_to_repeat_it(
    first: Path, second: Path, tmp_path: Path
) -> None:
    out = tmp_path / "to" / "the mean.safetensors"
    result = run("a", second, "--out", out, "--model-dir", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.replace("\n", " ").strip() == (
        f"Wrote {out} and its card: the mean of 2 files. Nothing is measured on it yet."
    )
    card = weights.verify(out)
    assert card["command"] == (
        f"python main.py weights average a {second} --out '{out}' --model-dir {tmp_path}"
    )
    assert [parent["file"] for parent in card["parents"]] == ["a.safetensors", "b.safetensors"]

    again = run("a", second, "--out", out, "--model-dir", tmp_path)
    assert again.exit_code == 2
    assert f"'{out}' exists; remove it or choose another file." in again.stderr


def test_the_command_refuses_in_sentences(first: Path, tmp_path: Path) -> None:
    for names, expected in ((["a"], "but 1 came; name more."), (["a", "c"], "There are no weights 'c' in ")):
        result = run(*names, "--out", tmp_path / "mean.safetensors", "--model-dir", tmp_path)
        assert result.exit_code == 2
        assert expected in result.stderr
    assert sorted(files(tmp_path)) == ["a.json", "a.safetensors"]
