"""A server's address and files, a small generated study, untrained weights, and how to start and stop."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
import torch
from dualclickmed.demo.archive import end_group
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import PRESETS
from dualclickmed.weights.files import default_path, save_expert
from nibabel.eulerangles import euler2mat

APP = Path(__file__).parents[2] / "apps" / "dualclickmed"
START_SECONDS = 400
# No spaces: the `monailabel` script would break the argument at them.
LABELS = ("liver", "spleen", "kidney", "tumor")

CT_SHAPE = (64, 70, 30)
SMALL_SHAPE = (40, 33, 26)
"""Raw extent (i, j, k) of the oriented images; no two sides are equal."""
ORIENTATIONS = [
    (axes, signs)
    for number, (axes, signs) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    )
    # Every axis order with one of the eight combinations of signs; the unit tests have all 48.
    if number % 8 == number // 8 * 3 % 8
]


def orientation_id(orientation: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
    axes, signs = orientation
    return "".join("RAS"[axis] if sign > 0 else "LPI"[axis] for axis, sign in zip(axes, signs, strict=True))


@dataclass
class Server:
    """A running server and where its files are."""

    url: str
    studies: Path
    weights: Path
    temporary: Path
    log: Path

    def __post_init__(self) -> None:
        self.pid = 0
        self.http = requests.Session()
        # No proxy between the tests and the loopback address.
        self.http.trust_env = False

    def get(self, path: str) -> requests.Response:
        return self.http.get(self.url + path, timeout=60)

    def infer(
        self,
        task: str,
        image: str | None,
        params: dict[str, Any],
        output: str | None = "image",
        files: dict[str, Any] | None = None,
        session: str | None = None,
    ) -> requests.Response:
        query = {"image": image, "output": output, "session_id": session}
        # A part without a file name is how every client sends the parameters.
        form = {"params": (None, json.dumps(params)), **(files or {})}
        return self.http.post(f"{self.url}/infer/{task}", params=query, files=form, timeout=120)


def an_image(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """CT-like values in raw order: noise about soft tissue and a denser block in the middle."""
    image = np.random.default_rng(seed).normal(20, 30, shape)
    middle = tuple(slice(n // 3, 2 * n // 3) for n in shape)
    image[middle] += 150
    image[0] = -1000
    return image.round().astype(np.int16)


def an_affine(axes: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """Raw axis n runs along the world's axis ``axes[n]``, anisotropic and slightly oblique."""
    affine = np.eye(4)
    turned = euler2mat(0.05, 0.03, 0.02)
    oriented = np.zeros((3, 3))
    oriented[axes, range(3)] = np.asarray(signs)
    affine[:3, :3] = turned @ oriented @ np.diag([0.8, 1.1, 2.5])
    affine[:3, 3] = (-12.5, 30.25, 101.0)
    return affine


def save(studies: Path, name: str, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), studies / f"{name}.nii.gz")


def make_studies(studies: Path) -> None:
    studies.mkdir()
    save(studies, "ct", an_image(CT_SHAPE), np.diag([-0.9, -0.9, 3.0, 1.0]))
    for number, orientation in enumerate(ORIENTATIONS):
        save(studies, orientation_id(orientation), an_image(SMALL_SHAPE, number), an_affine(*orientation))
    save(studies, "slice", an_image((40, 40, 1)))
    save(studies, "flat", an_image((40, 40, 1))[:, :, 0])
    save(studies, "series", np.stack([an_image((16, 16, 16))] * 3, axis=-1))
    holes = an_image((16, 16, 16)).astype(np.float32)
    holes[3, 4, 5] = np.nan
    save(studies, "holes", holes)
    (studies / "damaged.nii.gz").write_bytes(b"\x1f\x8b not an image")
    (studies / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def make_weights(folder: Path) -> None:
    """Small untrained networks: the global one finds the ellipsoid in its box, the local one nonsense.

    The click guarantee has to put every click right, and an ellipsoid shows where a box has landed.
    """
    torch.manual_seed(7)
    config, local_config = PRESETS["transformer"]
    assert config.ellipsoid_prior
    global_network = build_global(dataclasses.replace(config, depth=1))
    for parameter in global_network.mask_decoder.parameters():
        torch.nn.init.zeros_(parameter)
    small = {"space_to_depth": 4, "blocks_down": (1, 1), "init_filters": 8, "out_channels": 8}
    local_network = build_local(
        dataclasses.replace(local_config, **small, feature_size=16, detail_channels=2)
    )
    save_expert(global_network, "global", default_path("global", directory=folder), {})
    save_expert(local_network, "local", default_path("local", directory=folder), {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(server: Server, process: subprocess.Popen[bytes], up: str = "/info/") -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if server.get(up).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.2)
    pytest.fail(f"The server did not start:\n{server.log.read_text()[-4000:]}")


@contextmanager
def serving(
    folder: Path,
    studies: Callable[[Path], None] | str = make_studies,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    up: str = "/info/",
) -> Iterator[Server]:
    """A server of its own, with untrained weights.

    Args:
        folder: for its files; what lies there already is used.
        studies: makes the studies, or is an archive's address.
        settings: for ``--conf``.
        environment: variables in addition.
        up: what it answers to anybody once it is up.
    """
    folder.mkdir(exist_ok=True)
    names = ("studies", "weights", "temporary", "log.txt")
    started = Server(f"http://127.0.0.1:{free_port()}", *(folder / name for name in names))
    if not started.weights.exists():
        make_weights(started.weights)
    if callable(studies) and not started.studies.exists():
        studies(started.studies)
    started.temporary.mkdir(exist_ok=True)
    variables = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DUALCLICKMED_MODEL_DIR": str(started.weights),
        "TMPDIR": str(started.temporary),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        **(environment or {}),
    }
    command = ["monailabel", "start_server", "--app", str(APP)]
    command += ["--studies", str(started.studies) if callable(studies) else studies]
    command += ["--host", "127.0.0.1", "--port", started.url.rpartition(":")[2]]
    # What an untrained expert answers shows where a prompt arrived; refined, it would not.
    defaults = {"labels": ",".join(LABELS), "strategy": "paper"}
    for name, value in {**defaults, **(settings or {})}.items():
        command += ["--conf", name, value]
    with running(command, started, variables, up):
        yield started


@contextmanager
def running(
    command: Sequence[str], server: Server, environment: Mapping[str, str], up: str = "/info/"
) -> Iterator[Server]:
    """Start a server's process, wait until it answers, and end it afterwards."""
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=server.log.parent, start_new_session=True
        )
        try:
            server.pid = process.pid
            wait_until_up(server, process, up)
            yield server
        finally:
            end_group(process)
