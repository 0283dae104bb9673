"""3D Slicer's panel during a training: its form in Qt, its own code, a server of ours.

The picture is written to `build/browser`; docs/learning.md shows it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)

from tests.support.live import serving
from tests.support.trainings import IMAGES, make_patients, start_training, submit, told, until

from .conftest import PICTURES, REPOSITORY
from .slicer_panel import panel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_panel_of_a_training(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    shutil.copytree(REPOSITORY / "model", folder / "weights")
    with serving(folder, make_patients) as server, panel(server.url, tmp_path) as shown:
        shown.fetch()
        assert shown.bar("activeLearningProgressBar").value() == 0
        for image in IMAGES[:4]:
            submit(server, image, "ann", ("liver", "spleen"))
        shown.fetch()
        assert shown.bar("activeLearningProgressBar").value() == 80
        assert shown.widget.ui.trainingButton.enabled
        assert not shown.widget.ui.stopTrainingButton.enabled

        start_training(server, steps=400, rate=0.0)
        until(server, lambda: told(server).get("epoch", 0) >= 20)
        shown.fetch()
        before = told(server)
        shown.widget.monitorTraining()
        after = told(server)
        done, accuracy = (shown.bar(f"{name}ProgressBar").value() for name in ("training", "accuracy"))
        assert 100 * before["epoch"] // before["total_epochs"] <= done
        assert done <= 100 * after["epoch"] // after["total_epochs"]
        assert accuracy == int(100 * before["best_metric"])
        assert not shown.widget.ui.trainingButton.enabled
        assert shown.widget.ui.stopTrainingButton.enabled
        shown.save(PICTURES / "slicer-training.png")

        server.http.delete(f"{server.url}/train/", timeout=60).raise_for_status()
        until(server, lambda: told(server)["state"] == "cancelled")
        shown.fetch()
        assert shown.widget.ui.trainingButton.enabled
