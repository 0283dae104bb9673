"""Learning on a DICOMweb archive, over HTTP: labels become DICOM SEGs, train, and the new weights answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.weights.files import default_path, read_card

from tests.support.dicoms import LAYOUTS, Archive, orthanc, write_series
from tests.support.live import Server, serving
from tests.support.trainings import IMAGES, make_wrong_weights, start_training, told, wait_for

SHAPE, SPACING = (40, 36, 30), (1.0, 1.1, 1.5)
NAMES = ("front part", "spleen")
"""Submitted in this order; the server knows the second one alone."""
BOX = [6, 20, 8, 22, 7, 21]


def a_patient(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image with a bright and a dark cuboid, and the label of both."""
    rng = np.random.default_rng(seed)
    image, label = rng.normal(100, 5, SHAPE), np.zeros(SHAPE, np.uint8)
    for value, (start, grey) in enumerate((((6, 8, 7), 170), ((22, 14, 12), 40)), start=1):
        part = tuple(slice(a + s, a + s + 11) for a, s in zip(start, rng.integers(0, 4, 3), strict=True))
        label[part], image[part] = value, grey
    return image.round().astype(np.int16), label


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="module")
def patients(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The labels of the series in the archive, by their UIDs, in the order of their pixels."""
    folder, found = tmp_path_factory.mktemp("series"), {}
    for seed in range(len(IMAGES)):
        image, label = a_patient(seed)
        made = write_series(
            folder / str(seed), image, SPACING, LAYOUTS["axial"], "CT", description=f"patient {seed}"
        )
        archive.add(made.folder)
        found[made.uid] = label
    return found


def image_of(server: Server, uid: str, folder: Path) -> nib.Nifti1Image:
    """A series as the server hands it to its clients."""
    answer = server.get(f"/datastore/image?image={uid}")
    assert answer.status_code == 200, answer.text
    path = folder / f"{uid}.nii.gz"
    path.write_bytes(answer.content)
    return nib.load(path)


def submit(server: Server, uid: str, label: np.ndarray, folder: Path) -> Any:
    image = image_of(server, uid, folder)
    # What lies in the image is where the label says: the bright cuboid is brighter than anything else.
    values = np.asarray(image.dataobj)
    assert values.shape == label.shape
    assert values[label == 1].min() > values[label == 0].max() > values[label == 2].max()
    path = folder / "label.nii.gz"
    nib.save(nib.Nifti1Image(label, image.affine), path)
    info = {"label_info": [{"name": name, "idx": 9} for name in NAMES], "client_id": "ann"}
    answer = server.http.put(
        f"{server.url}/datastore/label",
        params={"image": uid, "tag": "final"},
        files={"params": (None, json.dumps(info)), "label": ("label.nii.gz", path.read_bytes())},  # type: ignore[arg-type]
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["learning"]


def click(server: Server, uid: str) -> bytes:
    answer = server.infer("dualclickmed_object", uid, {"roi": BOX})
    assert answer.status_code == 200, answer.text
    return answer.content


def trained_on(server: Server, uids: list[str]) -> None:
    """A training that ends, publishes, and knows its images and labels by their names."""
    assert start_training(server).status_code == 200
    task = wait_for(server, "ERROR", "DONE")
    assert task["status"] == "DONE", server.log.read_text()[-5000:]
    state = told(server)
    assert (state["state"], state["waiting"]) == ("published", []), state
    card = read_card(default_path("global", directory=server.weights))
    assert card["parent"]["name"] == "global-compact"
    assert sorted(card["data"]["labels"]) == sorted(NAMES)
    assert sorted([*card["data"]["trained"], *card["data"]["held_out"]]) == sorted(uids)
    before, after = card["measured"]["before"]["labels"], card["measured"]["after"]["labels"]
    assert before.keys() == after.keys() == set(NAMES)
    assert np.mean(list(after.values())) > np.mean(list(before.values()))


@pytest.mark.timeout(600)
def test_labels_of_an_archive_train_and_what_was_learned_answers(
    archive: Archive, patients: dict[str, np.ndarray], tmp_path: Path
) -> None:
    uids = list(patients)
    folder = tmp_path / "first"
    make_wrong_weights(folder / "weights")
    environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache")}
    with serving(folder, archive.dicomweb, environment=environment) as server:
        before = click(server, uids[0])
        for uid, label in patients.items():
            meant = submit(server, uid, label, tmp_path)
            voxels = {name: about["voxels"] for name, about in meant["labels"].items()}
            assert voxels == {name: (label == value).sum() for value, name in enumerate(NAMES, start=1)}
        waiting = server.get("/info/").json()["learning"]
        assert sorted(waiting["waiting"]["global"]) == sorted(uids)
        assert waiting["by"] == {"ann": len(uids)}
        assert sum(len(archive.segmentations(study)) for study in archive.studies()) == len(uids)
        trained_on(server, uids)
        # The same request, without a restart.
        after = click(server, uids[0])
        assert after != before

    # A server that has nothing but the archive learns the same from its DICOM SEGs.
    folder = tmp_path / "second"
    make_wrong_weights(folder / "weights")
    environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache")}
    with serving(folder, archive.dicomweb, environment=environment) as server:
        assert click(server, uids[0]) == before
        trained_on(server, uids)
        assert click(server, uids[0]) != before
