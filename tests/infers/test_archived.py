"""Which segmentation of an archive is the last one of a series."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from dualclickmed.errors import UserError
from dualclickmed.infers.archived import Segmentations

IMAGE, OTHER = "1.2.3", "1.2.4"


class Archive:
    """A DICOMweb client that knows segmentations by uid: what they refer to, and when they were made."""

    def __init__(self, stored: dict[str, tuple[str, str, str]]) -> None:
        self.stored = stored
        self.asked: list[str] = []

    def search_for_series(self, study_instance_uid: str, search_filters: dict[str, str]) -> list[Any]:
        assert (study_instance_uid, search_filters) == ("9", {"Modality": "SEG"})
        return [{"0020000E": {"vr": "UI", "Value": [uid]}} for uid in self.stored]

    def retrieve_series_metadata(self, study: str, uid: str) -> list[Any]:
        self.asked.append(f"header {uid}")
        image, date, time = self.stored[uid]
        referred = {"vr": "SQ", "Value": [{"0020000E": {"vr": "UI", "Value": [image]}}]}
        return [
            {
                "00081115": referred,
                "00080023": {"vr": "DA", "Value": [date]},
                "00080033": {"vr": "TM", "Value": [time]},
            }
        ]

    def retrieve_series(self, study: str, uid: str) -> list[Any]:
        self.asked.append(f"file {uid}")
        return [SimpleNamespace(save_as=lambda path, enforce_file_format: Path(path).write_text(uid))]


def studies(archive: Any, folder: Path, study: str = "9") -> Any:
    return SimpleNamespace(
        _client=archive,
        _datastore=SimpleNamespace(image_path=lambda: str(folder)),
        get_image_info=lambda image: {"StudyInstanceUID": study} if study else {},
    )


def test_the_newest_of_the_series_counts_and_is_fetched_once(tmp_path: Path) -> None:
    archive = Archive(
        {
            "7.1": (IMAGE, "20260102", "080000"),
            "7.2": (IMAGE, "20260102", "080000.5"),
            "7.3": (IMAGE, "20260101", "230000"),
            "7.4": (OTHER, "20270101", "000000"),
        }
    )
    segmentations = Segmentations()
    for _ in range(2):
        path = segmentations.newest(studies(archive, tmp_path), IMAGE)
        assert path is not None
        assert path.read_text() == "7.2"
    assert sorted(archive.asked) == ["file 7.2", *(f"header 7.{n}" for n in range(1, 5))]
    # Another server, or program, stores a newer one.
    archive.stored["7.5"] = (IMAGE, "20260103", "070000")
    newer = segmentations.newest(studies(archive, tmp_path), IMAGE)
    assert newer is not None
    assert newer.read_text() == "7.5"
    assert [file.name for file in newer.parent.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("stored", "study"), [({}, "9"), ({"7.4": (OTHER, "20260101", "120000")}, "9"), ({}, "")]
)
def test_none_is_no_mistake(stored: dict[str, tuple[str, str, str]], study: str, tmp_path: Path) -> None:
    assert Segmentations().newest(studies(Archive(stored), tmp_path, study), IMAGE) is None


def test_an_archive_that_is_down_is_told(tmp_path: Path) -> None:
    class Down:
        def search_for_series(self, **query: Any) -> list[Any]:
            raise requests.ConnectionError("no route")

    with pytest.raises(UserError, match="did not give the segmentations of this image: no route"):
        Segmentations().newest(studies(Down(), tmp_path), IMAGE)
