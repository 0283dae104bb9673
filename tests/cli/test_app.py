"""The command line: it writes what the Python API gives, and what it refuses, it refuses in one sentence."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dualclickmed import __version__
from dualclickmed.cli import app as cli
from dualclickmed.imaging.intensity import CHOICES
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import PRESETS
from dualclickmed.predictor import Predictor
from dualclickmed.weights import files as weights
from matplotlib import image as images
from typer.testing import CliRunner

from tests.support.live import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
AFFINE = np.array([[-2.0, 0, 0, 40], [0, 0, -1.5, 30], [0, 3.0, 0, -20], [0, 0, 0, 1]])
"""Raw axes towards L, S and P: a click lands elsewhere if any order or sign is lost."""
MILLILITRES = 2 * 1.5 * 3 / 1000


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both experts, untrained: enough to tell one mask from another."""
    folder = tmp_path_factory.mktemp("model dir")
    torch.manual_seed(3)
    weights.save_expert(
        build_global("compact"), "global", folder / "global-compact.safetensors", {"steps": 0}
    )
    weights.save_expert(build_local("compact"), "local", folder / "local-compact.safetensors", {"steps": 34})
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    array = rng.normal(-100, 60, (36, 28, 32)).astype(np.int16)
    array[8:20, 6:18, 10:26] += 200
    array[:2] = -1000
    path = tmp_path_factory.mktemp("with space") / "image of one.nii.gz"
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    """The sentence of a refused command."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    return lines[0].removeprefix("Error: ")


def test_segment_writes_what_the_predictor_gives(model_dir: Path, image: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_weights(model_dir=model_dir, device="cpu")
    predictor.set_image(image)
    expected = predictor.predict(background=[(2, 3, 4)], box=(8, 20, 6, 18, 10, 26), intensity="bone")
    assert expected.any() and not expected.all()
    prompts = ["--box", "20,8, 6,18, 10,26", "--background", "2,3,4", "--window", "bone", "--device", "cpu"]

    out = tmp_path / "new folder" / "mask.nii.gz"
    result = run("segment", image, *prompts, "--out", out, "--model-dir", model_dir)
    assert result.exit_code == 0, result.output
    written = nib.load(out)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
    np.testing.assert_allclose(written.affine, AFFINE)
    size = f"object: {expected.sum() * MILLILITRES:.1f} ml, {expected.sum()} voxels, global expert"
    assert result.stdout.startswith(size) and str(out) in result.stdout

    seg = tmp_path / "mask.seg.nrrd"
    run("segment", image, *prompts, "--out", seg, "--model-dir", model_dir, "--name", "left lobe")
    read = sitk.ReadImage(str(seg))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read).transpose(2, 1, 0), expected)
    assert read.GetMetaData("Segment0_Name") == "left lobe"
    np.testing.assert_allclose(read.GetOrigin(), [-40, -30, -20])


def test_segment_from_points_with_a_picture(model_dir: Path, image: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_weights(model_dir=model_dir, device="cpu")
    predictor.set_image(image)
    points, outside = [(12, 10, 16), (15, 14, 20)], [(30, 25, 30)]
    expected = predictor.predict(points, outside)

    out, picture = tmp_path / "mask.nrrd", tmp_path / "new" / "picture.png"
    arguments = [part for point in points for part in ("--point", ",".join(map(str, point)))]
    result = run(
        *("segment", image, *arguments, "--background", "30,25,30", "--device", "cpu"),
        *("--out", out, "--picture", picture, "--model-dir", model_dir),
    )
    assert result.exit_code == 0, result.output
    assert "local expert" in result.stdout
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(out))).transpose(2, 1, 0)
    np.testing.assert_array_equal(mask, expected)
    assert mask[12, 10, 16] == mask[15, 14, 20] == 1
    assert mask[30, 25, 30] == 0
    # The foreground marker of the first click.
    green = np.array([0x39, 0xFF, 0x6A]) / 255
    assert (np.abs(images.imread(picture)[..., :3] - green).max(axis=-1) < 0.02).sum() > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "1,2"], "--point takes 3 whole numbers with commas between them, but '1,2' came."),
        (["--background", "1,2,x"], "--background takes 3 whole numbers"),
        (["--box", "1,2,3,4,5"], "--box takes 6 whole numbers"),
        (["--point", "1,2,3.5"], "--point takes 3 whole numbers"),
        ([], "At least one click or a box is needed"),
        (["--background", "1,2,3"], "foreground"),
        (["--point", "36,2,3"], "outside"),
        (["--point", "-1,2,3"], "outside"),
        (["--point", "1,2,3", "--background", "1,2,3"], "both"),
        (["--box", "40,50,0,5,0,5"], "box"),
        (["--box", "4,4,0,5,0,5"], "box"),
        (["--point", "1,2,3", "--strategy", "best"], "strategy"),
        (["--point", "1,2,3", "--window", "wide"], "soft tissue"),
        (["--point", "1,2,3", "--modality", "xray"], "xray"),
        (["--point", "1,2,3", "--device", "tpu"], "tpu"),
    ],
)
def test_segment_refuses_prompts_and_choices(
    arguments: list[str], message: str, model_dir: Path, image: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mask.nii.gz"
    assert message in refusal("segment", image, *arguments, "--out", out, "--model-dir", model_dir)
    assert not out.exists()


def test_segment_refuses_files(model_dir: Path, image: Path, tmp_path: Path) -> None:
    prompts = ("--point", "12,10,16")
    out = tmp_path / "mask.nii.gz"
    nowhere = tmp_path / "nowhere.nii.gz"
    assert "nowhere.nii.gz" in refusal("segment", nowhere, *prompts, "--out", out, "--model-dir", model_dir)
    text = tmp_path / "text.nii.gz"
    text.write_text("not an image")
    assert "text.nii.gz" in refusal("segment", text, *prompts, "--out", out, "--model-dir", model_dir)
    assert ".seg.nrrd" in refusal("segment", image, *prompts, "--out", tmp_path / "mask.stl")
    picture = ("--picture", tmp_path / "a.gif")
    assert "written as .png" in refusal("segment", image, *prompts, "--out", out, *picture)
    missing = refusal("segment", image, *prompts, "--out", out, "--model-dir", tmp_path)
    assert f"The weights '{tmp_path / 'global-compact.safetensors'}' do not exist" in missing
    assert not out.exists()


def test_missing_options_end_with_code_2(image: Path) -> None:
    result = run("segment", image)
    assert result.exit_code == 2
    assert "--out" in result.stderr


def test_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dualclickmed.demo import sample

    small = (np.zeros((2, 3, 4), np.int16), np.ones((2, 3, 4), np.uint8), np.eye(4))
    seeds: list[int] = []
    monkeypatch.setattr(sample, "make_trunk", lambda seed: seeds.append(seed) or small)
    result = run("sample", "--out", tmp_path / "a b", "--seed", "7")
    assert (result.exit_code, seeds) == (0, [7])
    assert nib.load(tmp_path / "a b" / "trunk_ct.nii.gz").shape == (2, 3, 4)
    assert (tmp_path / "a b-truth" / "labels.json").is_file()
    assert "true labels of 14 organs" in result.stdout


def test_weights_list_and_verify(model_dir: Path, tmp_path: Path) -> None:
    listed = run("weights", "list", "--model-dir", model_dir)
    assert listed.exit_code == 0
    assert "local" in listed.stdout and " 34 " in listed.stdout and listed.stdout.count(" ok ") == 2
    verified = run("weights", "verify", "--model-dir", model_dir)
    assert (verified.exit_code, verified.stdout.count(": ok (")) == (0, 2)
    digest = weights.read_card(model_dir / "local-compact.safetensors")["sha256"]
    assert digest[:12] in run("weights", "verify", model_dir / "local-compact.safetensors").stdout

    damaged = tmp_path / "model"
    shutil.copytree(model_dir, damaged)
    with (damaged / "local-compact.safetensors").open("ab") as stream:
        stream.write(b"more")
    result = run("weights", "verify", "--model-dir", damaged)
    assert result.exit_code == 2
    assert "is not the file that its card describes" in result.stderr
    assert "Error: 1 of 2 weight files can't be used." in result.stderr
    assert result.stdout.count(": ok (") == 1
    listed = run("weights", "list", "--model-dir", damaged)
    assert "unusable" in listed.stdout and "is not the file" in listed.stderr


def test_weights_of_an_empty_or_missing_folder(tmp_path: Path) -> None:
    listed = run("weights", "list", "--model-dir", tmp_path).stdout.split()
    assert f"No weights in '{tmp_path}'." in " ".join(listed)  # long paths begin a line
    assert f"no weights to check in '{tmp_path}'" in refusal("weights", "verify", "--model-dir", tmp_path)
    nowhere = tmp_path / "nowhere"
    assert f"folder of weights '{nowhere}' does not exist" in refusal(
        "weights", "list", "--model-dir", nowhere
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Namespace]:
    """What the server would have been started with."""
    from monailabel.main import Main

    calls: list[Namespace] = []
    monkeypatch.setattr(Main, "action_start_server", lambda _, arguments: calls.append(arguments))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.delenv("MONAI_LABEL_AUTO_UPDATE_SCORING", raising=False)
    return calls


def test_serve_hands_on_to_monai_label(started: list[Namespace], model_dir: Path, tmp_path: Path) -> None:
    studies = tmp_path / "my studies"
    studies.mkdir()
    port = free_port()
    result = run(
        *("serve", "--studies", studies, "--port", port, "--labels", "liver, big spleen", "--device", "cpu"),
        *("--model-dir", model_dir, "--conf", "cache_gb=1", "--conf", "strategy=a=b"),
    )
    assert result.exit_code == 0, result.output
    (arguments,) = started
    assert (arguments.app, arguments.studies) == (str(REPOSITORY / "apps/dualclickmed"), str(studies))
    assert (arguments.host, arguments.port) == ("127.0.0.1", port)
    assert dict(arguments.conf) == {
        "device": "cpu",
        "labels": "liver, big spleen",
        "model_dir": str(model_dir),
        "cache_gb": "1",
        "strategy": "a=b",
        "nninteractive": "1527",
    }
    assert os.environ["MONAI_LABEL_AUTO_UPDATE_SCORING"] == "false"
    assert os.environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert f"http://127.0.0.1:{port}" in result.stderr and "log-in" not in result.stderr
    # OHIF shows nothing of a folder.
    assert "OHIF" not in result.stderr


def test_serve_accepts_a_dicomweb_address(started: list[Namespace], model_dir: Path) -> None:
    address = "http://127.0.0.1:8042/dicom-web"
    port = free_port()
    result = run("serve", "--studies", address, "--port", port, "--model-dir", model_dir)
    assert started[0].studies == address
    assert f"http://127.0.0.1:{port}/ohif/" in result.stderr


def test_serve_tells_that_an_open_address_has_no_log_in(
    started: list[Namespace], model_dir: Path, tmp_path: Path
) -> None:
    options = ("--host", "0.0.0.0", "--port", free_port(), "--model-dir", model_dir)
    result = run("serve", "--studies", tmp_path, *options)
    assert "there is no log-in" in result.stderr
    assert started[0].host == "0.0.0.0"


def test_serve_refuses(started: list[Namespace], model_dir: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "no where"
    message = refusal("serve", "--studies", nowhere, "--model-dir", model_dir)
    assert f"The studies folder '{nowhere}' does not exist" in message and f"--out '{nowhere}'" in message
    (tmp_path / "one.nii.gz").write_bytes(b"")
    message = refusal("serve", "--studies", tmp_path / "one.nii.gz", "--model-dir", model_dir)
    assert message.endswith(f"is a file; --studies takes the folder that holds the images: '{tmp_path}'.")
    for file in model_dir.glob("global-*"):
        shutil.copy(file, tmp_path)
    message = refusal("serve", "--studies", tmp_path, "--model-dir", tmp_path)
    assert message.startswith(f"The weights '{tmp_path / 'local-compact.safetensors'}' do not exist")
    options = ("--studies", tmp_path, "--model-dir", model_dir)
    assert "--conf takes KEY=VALUE, but 'labels' came" in refusal("serve", *options, "--conf", "labels")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} can't be listened on" in refusal("serve", *options, "--port", port)
    assert started == []


def test_help_names_every_choice() -> None:
    overview = run("--help").stdout
    for command in ("serve", "sample", "segment", "train", "evaluate", "weights"):
        assert f" {command} " in overview
    text = " ".join(run("segment", "--help").stdout.replace("│", " ").split())
    assert all(choice in text for choice in CHOICES)
    assert all(preset in text for preset in PRESETS)


@pytest.mark.parametrize("command", [["train"], ["evaluate"]])
def test_commands_that_are_imported_late_have_their_own_help(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"Usage: root {' '.join(command)} " in result.stdout or f" {' '.join(command)} [" in result.stdout


def test_version() -> None:
    assert run("--version").stdout == f"dualclickmed {__version__}\n"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(folder: Path, seed: int) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("dualclickmed.demo.sample.write_sample", broken)
    result = run("sample", "--out", tmp_path)
    assert isinstance(result.exception, RuntimeError)


def process(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=path,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_main_py_uses_its_own_package_wherever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "dualclickmed").mkdir()
    (tmp_path / "dualclickmed" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    main = str(REPOSITORY / "main.py")
    assert process(main, "--version", path=tmp_path).stdout == f"dualclickmed {__version__}\n"
    refused = process(main, "serve", "--studies", "no such folder", path=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: The studies folder 'no such folder' does not exist;")
    assert refused.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processor time of a child while it runs")
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_long_commands_show_from_the_first_second_that_they_work(command: str, tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    given = {"evaluate": ["--cases", "cases"], "predict": ["--input", "cases", "--output", "out"]}[command]
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "main.py"), command, *given],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "Loading PyTorch and MONAI\n"
        # Processor time, since this machine may be busy.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        assert (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") < 1.0
    finally:
        process.kill()
        process.communicate()


def test_main_py_without_its_packages_says_how_to_get_them(tmp_path: Path) -> None:
    # Without site, as an interpreter that is not the environment's.
    refused = process("-S", str(REPOSITORY / "main.py"), "--help", path=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "has no package '" in refused.stderr and "source .venv/bin/activate" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from dualclickmed.cli import app as cli;"
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0;"
        "print({'torch', 'numpy', 'monai', 'monailabel', 'matplotlib'} & set(sys.modules))"
    )
    assert process("-c", program, path=tmp_path).stdout == "set()\n"
