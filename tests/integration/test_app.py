"""The app as MONAI Label builds it, in every process of its own as well as in the server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.others.class_utils import get_class_of_subclass_from_file

from tests.support.live import APP, Server


@pytest.fixture(scope="module")
def app_class() -> Any:
    found = get_class_of_subclass_from_file("main", str(APP / "main.py"), "MONAILabelApp")
    assert found.__name__ == "DualClickMed"
    return found


@pytest.fixture
def app(app_class: Any, tmp_path: Path) -> Any:
    """An app without weights."""
    conf = {"labels": "liver,my tumor", "model_dir": str(tmp_path / "none"), "device": "cpu"}
    return app_class(str(APP), str(tmp_path / "studies"), conf)


def test_building_the_app_loads_nothing(app: Any) -> None:
    assert isinstance(app, MONAILabelApp)
    assert app.segmenter.experts._loaded == {}
    assert "warm-up" not in [thread.name for thread in threading.enumerate()]


def test_without_weights_no_task_is_offered_and_the_reason_is_given(app: Any) -> None:
    info = app.info()
    assert info["models"] == {}
    assert "Not ready" in info["description"]
    assert "global-compact.safetensors' do not exist" in info["description"]
    assert not app._infers["dualclickmed"].is_valid()
    assert info["labels"] == ["background", "liver", "my tumor"]


def test_warming_up_without_weights_ends_quietly(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    app._warm_up(reader=None)
    assert "Not ready" in caplog.text


@pytest.mark.parametrize(
    ("conf", "message"),
    [({"labels": "liver,liver"}, "'liver' comes twice"), ({"strategy": "best"}, "must be one of paper")],
)
def test_bad_settings_stop_the_start(
    app_class: Any, tmp_path: Path, conf: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        app_class(str(APP), str(tmp_path), conf)


def test_the_server_warms_up_by_itself(server: Server) -> None:
    server.infer("dualclickmed", "ct", {"liver": [[27, 30, 19]]})
    assert "[warm-up]" in server.log.read_text()
