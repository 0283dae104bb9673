"""Series of an archive: whole or not at all, once however many ask, and lists that stay new."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from dualclickmed.errors import UserError
from dualclickmed.server import archive
from dualclickmed.server.archive import SEGMENTATIONS, DicomStudies, Fresh

UID = "1.2.3"


class Client:
    """As much of an archive as is asked here."""

    base_url = "http://archive/dicom-web"

    def search_for_series(self, search_filters: Any) -> list[dict[str, Any]]:
        return [
            {
                "0020000E": {"vr": "UI", "Value": [UID]},
                "0020000D": {"vr": "UI", "Value": ["1.2"]},
                "00080060": {"vr": "CS", "Value": ["CT"]},
            }
        ]


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> list[str]:
    """Pretends to download two slices, slowly, and to convert them."""
    done: list[str] = []

    def download(study: Any, series: str, folder: str, client: Any, frames: bool) -> None:
        if series != UID:
            raise IndexError
        Path(folder).mkdir(parents=True)
        for number in range(2):
            time.sleep(0.05)
            (Path(folder) / f"{number}.dcm").write_bytes(b"slice")
        done.append(series)

    def convert(folder: Path, target: Path) -> list[str]:
        assert len(list(folder.iterdir())) == 2, "a series that is not whole was converted"
        target.write_bytes(b"image")
        return ["slanted"]

    monkeypatch.setattr(archive, "dicom_web_download_series", download)
    monkeypatch.setattr(archive, "series_to_nifti", convert)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return done


@pytest.fixture
def studies(tmp_path: Path) -> Any:
    made = DicomStudies(client=Client(), search_filter={"Modality": "CT"}, cache_path=str(tmp_path))
    yield made


def test_a_series_is_downloaded_once_for_all_who_ask(
    studies: Any, downloads: list[str], temporary: Path
) -> None:
    with ThreadPoolExecutor(8) as several:
        found = set(several.map(studies.get_image_uri, [UID] * 8))
    assert downloads == [UID]
    (path,) = found
    assert Path(path).read_bytes() == b"image"
    assert studies.get_image_info(UID)["Modality"] == "CT"
    assert studies.get_image_info(UID)["notes"] == ["slanted"]
    # The converted file was stored under the series' name.
    assert list(temporary.iterdir()) == []


def test_a_segmentation_of_the_archive_becomes_its_images_label(
    studies: Any, downloads: list[str], monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    def convert(folder: Path, target: Path) -> dict[str, int]:
        target.write_bytes(b"label of " + folder.name.encode())
        return {"liver": 1}

    monkeypatch.setattr(archive, "segments_to_nifti", convert)
    studies.get_image_uri(UID)
    path = Path(studies.get_label_uri(UID, "final", UID))
    assert path.name == f"{UID}.nii.gz" and path.read_bytes() == b"label of 1.2.3"
    assert studies.get_label_info(UID, "final")["label_names"] == {"liver": 1}
    # What is there already is not asked for again.
    assert studies.get_label_uri("7.7", "final", UID) == str(path)
    assert list(temporary.iterdir()) == []


def test_what_cannot_be_read_of_an_archive_is_passed_over_before_a_training(
    studies: Any, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, whole = "1.2.4", Client.search_for_series
    both = {UID: "8.1", bad: "8.2"}

    def search(self: Client, search_filters: Any) -> list[dict[str, Any]]:
        (one,) = whole(self, search_filters)
        if search_filters == {"Modality": "SEG"}:
            return [{**one, "0020000E": {"vr": "UI", "Value": [label]}} for label in both.values()]
        return [{**one, "0020000E": {"vr": "UI", "Value": [image]}} for image in both]

    def metadata(self: Client, study: str, label: str) -> list[dict[str, Any]]:
        image = next(image for image, own in both.items() if own == label)
        return [{"00081115": {"vr": "SQ", "Value": [{"0020000E": {"vr": "UI", "Value": [image]}}]}}]

    def download(study: Any, series: str, folder: str, client: Any, frames: bool) -> None:
        Path(folder).mkdir(parents=True)
        for number in range(2):
            (Path(folder) / f"{number}.dcm").write_bytes(series.encode())

    def convert(folder: Path, target: Path) -> list[str]:
        if folder.name == bad:
            raise UserError("slices are missing")
        target.write_bytes(b"image")
        return []

    monkeypatch.setattr(Client, "search_for_series", search)
    monkeypatch.setattr(Client, "retrieve_series_metadata", metadata, raising=False)
    monkeypatch.setattr(archive, "dicom_web_download_series", download)
    monkeypatch.setattr(archive, "series_to_nifti", convert)
    monkeypatch.setattr(archive, "segments_to_nifti", lambda folder, target: {"liver": 1})
    (pair,) = studies.datalist()
    assert Path(pair["image"]).name == Path(pair["label"]).name == f"{UID}.nii.gz"


def test_a_download_that_fails_leaves_nothing(
    studies: Any, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = archive.dicom_web_download_series

    def cut(study: Any, series: str, folder: str, client: Any, frames: bool) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "0.dcm").write_bytes(b"slice")
        raise requests.ConnectionError("gone")

    monkeypatch.setattr(archive, "dicom_web_download_series", cut)
    with pytest.raises(requests.ConnectionError):
        studies.get_image_uri(UID)
    folder = Path(studies._datastore_path)
    assert not (folder / UID).exists()
    assert list(folder.glob("*.part")) == []
    monkeypatch.setattr(archive, "dicom_web_download_series", whole)
    assert Path(studies.get_image_uri(UID)).read_bytes() == b"image"


def test_half_a_series_of_a_killed_server_is_cleared(tmp_path: Path, downloads: list[str]) -> None:
    first = DicomStudies(client=Client(), search_filter={}, cache_path=str(tmp_path))
    part = Path(first._datastore_path) / ".0123.part"
    part.mkdir()
    (part / "0.dcm").write_bytes(b"slice")
    DicomStudies(client=Client(), search_filter={}, cache_path=str(tmp_path))
    assert not part.exists()


def test_half_a_segmentation_of_a_killed_server_is_cleared(tmp_path: Path) -> None:
    first = DicomStudies(client=Client(), search_filter={}, cache_path=str(tmp_path))
    folder = Path(first._datastore.image_path()) / SEGMENTATIONS
    folder.mkdir()
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    for name in (f".0123.{finished.pid}.tmp", "7.2.dcm"):
        (folder / name).write_bytes(b"a segmentation")
    DicomStudies(client=Client(), search_filter={}, cache_path=str(tmp_path))
    assert [path.name for path in folder.iterdir()] == ["7.2.dcm"]


@pytest.mark.parametrize("image", ["../x", "/etc", "", "..", "a/b"])
def test_ids_that_lead_elsewhere_are_refused(studies: Any, downloads: list[str], image: str) -> None:
    before = sorted(Path(studies._datastore_path).parent.rglob("*"))
    for call in (
        lambda: studies.get_image_uri(image),
        lambda: studies.get_label_uri(image, "final"),
        lambda: studies.save_label(image, "x.nii.gz", "final", {}),
        lambda: studies.get_label_uri(UID, "../x"),
    ):
        with pytest.raises(UserError):
            call()
    assert sorted(Path(studies._datastore_path).parent.rglob("*")) == before


def test_a_series_that_is_not_there_is_told(studies: Any, downloads: list[str]) -> None:
    with pytest.raises(UserError, match=r"no series '9\.9'"):
        studies.get_image_uri("9.9")


def test_a_list_is_asked_for_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ask() -> list[str]:
        asked.append(1)
        if len(asked) == 3:
            raise requests.ConnectionError("down")
        return [str(len(asked))]

    fresh = Fresh(ask)
    assert fresh.get() == fresh.get() == ["1"]
    fresh.forget()
    assert fresh.get() == ["2"]
    # An archive that is down for a moment does not empty the list.
    fresh.forget()
    assert fresh.get() == ["2"]
    monkeypatch.setattr(archive, "LIST_SECONDS", 0.0)
    fresh.forget()
    assert fresh.get() == ["4"]


def test_a_list_that_was_never_known_is_not_made_up() -> None:
    def ask() -> list[str]:
        raise requests.ConnectionError("down")

    with pytest.raises(requests.ConnectionError):
        Fresh(ask).get()
