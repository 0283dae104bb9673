"""What version 0.1.0 wrote is read: a studies folder, a learning record, weights with their cards.

`tests/support/written_by_0_1` was written by that version itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dualclickmed.byte_cache import ByteCache
from dualclickmed.configs.options import ServerOptions
from dualclickmed.experts.loading import load_experts, training_scope_of
from dualclickmed.experts.scope import Example, ScopedGlobalExpert
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.label_files import read_labels
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.imaging.prompts import Prompts
from dualclickmed.imaging.volume import load_volume
from dualclickmed.learning.record import PUBLISHED, Record
from dualclickmed.server.studies import Studies
from dualclickmed.trainers.learning import Learning
from dualclickmed.weights.files import default_path, load_expert, verify
from dualclickmed.weights.lineage import roll_back

WRITTEN = Path(__file__).parents[1] / "support" / "written_by_0_1"
LEARNED = "global-learned-0001"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return shutil.copytree(WRITTEN, tmp_path / "written")


def opened(written: Path) -> Studies:
    return Studies(str(written / "studies"), extensions=("*.nii.gz",))


def test_the_studies_hold_the_images_and_labels(written: Path) -> None:
    studies = opened(written)
    assert sorted(studies.list_images()) == ["case_1", "case_2"]
    assert studies.get_labeled_images() == ["case_1"]
    assert studies.get_labels_by_image_id("case_2").keys() == {"original"}
    volume = load_volume(studies.get_image_uri("case_1"))
    info = studies.get_label_info("case_1", "final")
    named = read_labels(Path(studies.get_label_uri("case_1", "final")), volume, info, LabelMap(()))
    assert named.voxels == {"lesion": 18}
    truth = np.asarray(nib.load(written / "studies" / "labels" / "final" / "case_1.nii.gz").dataobj)
    np.testing.assert_array_equal(volume.to_raw_array(named.mask("lesion")), truth == 1)


def test_the_record_tells_who_submitted_and_what_was_trained(written: Path) -> None:
    record = Record(written / "studies" / "learning")
    first, second = record.submissions()
    assert (first.image, first.who, first.labels, first.clicks) == ("case_1", "anna", ("lesion",), 4)
    assert first.prediction == {"task": "dualclickmed", "weights": {"global": "global-compact"}}
    assert (second.who, second.clicks) == ("ben", None)
    assert record.path_of(first).is_file()
    (training,) = record.trainings()
    assert (training.kind, training.state, training.versions) == ("global", PUBLISHED, (first.version,))
    assert training.detail["weights"] == LEARNED
    assert record.labels() == ["lesion"]


def test_learning_goes_on_from_both(written: Path) -> None:
    studies = opened(written)
    learning = Learning(studies, written / "studies", ServerOptions())
    assert learning.final().keys() == {"case_1"}
    assert "lesion" in learning.options.labels.names
    label = shutil.copyfile(studies.get_label_uri("case_1", "final"), written / "again.nii.gz")
    info = {"client_id": "carl", "label_info": [{"name": "lesion", "idx": 1}]}
    studies.save_label("case_2", str(label), "final", info)
    assert {image: its.who for image, its in learning.final().items()} == {"case_1": "ben", "case_2": "carl"}


def test_weights_are_whole_and_their_cards_say_what_they_were_trained_on(written: Path) -> None:
    models = written / "model"
    served = default_path("global", directory=models)
    assert served.stem == LEARNED
    card = verify(served)
    assert card["parent"]["name"] == "global-first"
    scope = training_scope_of(served)
    assert scope is not None
    sides, patient = (20.0, 20.0, 20.0), (300.0, 200.0, 350.0)
    assert scope.examples == [Example("lesion", "ct", (0.5, 0.5, 0.5), sides, patient, 4000.0)]
    network = load_expert("global", served)
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())
    assert roll_back("global", models) == (LEARNED, "global-first")
    assert default_path("global", directory=models).stem == "global-first"


def test_what_was_not_trained_goes_to_the_origin(written: Path) -> None:
    served = default_path("global", directory=written / "model")
    expert = load_experts(served, None, "cpu", ByteCache(1 << 20)).global_expert
    assert isinstance(expert, ScopedGlobalExpert)
    volume = load_volume(written / "studies" / "case_1.nii.gz", "mr")
    assert expert.expert_for(volume, Prompts((), Box((1, 1, 1), (4, 4, 4)))) is expert.origin
