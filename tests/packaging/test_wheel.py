"""The wheel in an environment of its own, as somebody gets it who has no clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from dualclickmed.demo.sample import ORGANS
from dualclickmed.evaluation.metrics import dice

from tests.support.live import Server, free_port, running
from tests.support.requirements import lines
from tests.support.scripts import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LIVER_BOX = "32,128,36,114,50,98"


def called(*command: str | Path, cwd: Path) -> str:
    """What a command printed; it must succeed. Nothing of this environment reaches it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DUALCLICKMED"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="module")
def installed(folder: Path) -> Path:
    """The folder `bin` of an environment with the wheel, its extras, and nothing else by hand."""
    wheel = called(ROOT / "scripts" / "wheel.sh", folder, cwd=ROOT).splitlines()[-1]
    called(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    programs = folder / "env" / "bin"
    stand_ins = [line for line in lines("requirements.txt") if "+standin" in line]
    called(
        *(programs / "python", "-m", "pip", "install", "--quiet", "--no-compile"),
        *("--find-links", ROOT / "stand-ins" / "wheels", "--constraint", ROOT / "constraints.txt"),
        *(f"{wheel}[server,train,eval,viewers]", *stand_ins),
        cwd=folder,
    )
    return programs


@pytest.fixture(scope="module")
def served(installed: Path, folder: Path) -> Iterator[Server]:
    called(installed / "dualclickmed", "sample", "--out", folder / "studies", cwd=folder)
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", folder / "studies", folder, folder, folder / "server.log")
    command = [str(installed / "dualclickmed"), "serve", "--studies", str(server.studies)]
    command += ["--port", str(port), "--conf", "nninteractive=0"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DUALCLICKMED"))}
    environment |= {"XDG_DATA_HOME": str(folder / "data"), "MONAI_LABEL_SESSION_PATH": str(folder / "s")}
    with running(command, server, environment, "/health"):
        yield server


def truth(folder: Path) -> np.ndarray:
    (file,) = (folder / "studies-truth").glob("*.nii.gz")
    return np.asarray(nib.load(file).dataobj) == ORGANS.index("liver") + 1


def test_the_package_is_complete(installed: Path, folder: Path) -> None:
    program = (
        "import json, dualclickmed, pathlib; from importlib.metadata import distribution as d;"
        "home = pathlib.Path(dualclickmed.__file__).parent; "
        "print(json.dumps([str(home), (home / 'py.typed').exists(), d('dualclickmed').version]))"
    )
    home, typed, version = json.loads(called(installed / "python", "-c", program, cwd=folder))
    assert Path(home).is_relative_to(folder) and typed
    assert called(installed / "dualclickmed", "--version", cwd=folder) == f"dualclickmed {version}\n"
    assert "Redistributions in binary form" in (Path(home) / "viewers/page/niivue-licence.txt").read_text()


def test_the_sample_is_segmented(installed: Path, served: Server, folder: Path) -> None:
    out = folder / "liver.nii.gz"
    image = served.studies / "trunk_ct.nii.gz"
    called(installed / "dualclickmed", "segment", image, "--box", LIVER_BOX, "--out", out, cwd=folder)
    assert dice(np.asarray(nib.load(out).dataobj) > 0, truth(folder)) > 0.7


def test_a_click_over_http_finds_its_organ(served: Server, folder: Path) -> None:
    asked = {"label": "liver", "roi": [32, 127, 36, 113, 50, 97], "background": [[53, 99, 68]]}
    answer = served.infer("dualclickmed", "trunk_ct", asked)
    assert answer.status_code == 200, answer.text
    path = folder / "answer.nrrd"
    path.write_bytes(answer.content)
    mask, _ = nrrd.read(str(path))
    assert dice(mask > 0, truth(folder)) > 0.6


def test_the_page_opens_without_the_network(served: Server) -> None:
    page = served.get("/page/")
    assert (
        page.status_code == 200
        and "niivue.js" in page.text
        and "http://" not in page.text.replace("http://www.w3.org", "")
    )
    drawing = served.get("/page/niivue.js")
    assert drawing.status_code == 200 and "javascript" in drawing.headers["content-type"]
    assert len(drawing.content) > 1_000_000
