"""Readers of labelled cases, what a case holds, and the coreset."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dualclickmed.errors import UserError
from dualclickmed.training.sources import (
    LabelledCase,
    WeightedSource,
    challenge_cases,
    coreset,
    find_training_cases,
    folder_cases,
    list_cases,
    load_case,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cases import SPACING, challenge_file, decathlon, volume_and_labels, write_nifti


def test_images_and_labels_of_one_name_in_two_folders(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "Task01", 2)
    write_nifti(root / "imagesTr" / "unlabelled.nii.gz", volume_and_labels()[0])
    (root / "imagesTr" / "._case_00.nii.gz").write_bytes(b"a Mac was here")
    (root / "dataset.json").write_text(
        json.dumps({"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "3": "spleen"}})
    )
    cases = folder_cases(root)
    assert [c.id for c in cases] == ["Task01/case_00", "Task01/case_01"]
    assert cases[0].names == {1: "liver", 3: "spleen"}
    assert {c.modality for c in cases} == {"ct"} and {c.dataset for c in cases} == {"Task01"}


def test_nnunet_names(tmp_path: Path) -> None:
    image, labels = volume_and_labels()
    for channel in (0, 1):
        write_nifti(tmp_path / "imagesTr" / f"a_{channel:04}.nii.gz", image)
    write_nifti(tmp_path / "labelsTr" / "a.nii.gz", labels)
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "tumour": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    [case] = folder_cases(tmp_path)
    assert case.image.name == "a_0000.nii.gz" and case.names == {1: "tumour"} and case.modality == "mri"


def test_what_was_submitted_to_a_server_trains(tmp_path: Path) -> None:
    image, labels = volume_and_labels()
    for name in ("My case", "other", "unlabelled"):
        write_nifti(tmp_path / f"{name}.nii.gz", image)
    for name in ("My case", "other"):
        write_nifti(tmp_path / "labels" / "final" / f"{name}.nii.gz", labels)
    final = {"ext": ".nii.gz", "info": {"label_names": {"liver": 1, "spleen": 3}}}
    objects = {"My case": {"labels": {"final": final}}, "other": {"labels": {}}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    first, second = find_training_cases(tmp_path)
    assert (first.image, first.names) == (tmp_path / "My case.nii.gz", {1: "liver", 3: "spleen"})
    assert first.label == tmp_path / "labels" / "final" / "My case.nii.gz"
    assert (second.image, second.names) == (tmp_path / "other.nii.gz", {})
    (tmp_path / "datastore_v2.json").write_text("half a re")
    assert [case.names for case in find_training_cases(tmp_path)] == [{}, {}]


def test_image_and_label_side_by_side(tmp_path: Path) -> None:
    image, labels = volume_and_labels()
    write_nifti(tmp_path / "pet" / "one" / "image.nii.gz", image)
    write_nifti(tmp_path / "pet" / "one" / "label.nii", labels)
    (tmp_path / "pet" / "one" / "meta.json").write_text(json.dumps({"labels": {"1": "lesion"}}))
    [case] = find_training_cases(tmp_path)
    assert case.id == "pet/one" and case.modality == "pet" and case.names == {1: "lesion"}


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_case_is_the_image_with_its_labels_in_canonical_order(tmp_path: Path, ending: str) -> None:
    image, labels = volume_and_labels()
    paths = []
    for name, array in (("image", image), ("label", labels)):
        picture = sitk.GetImageFromArray(array.T)
        picture.SetSpacing(SPACING)
        paths.append(tmp_path / (name + ending))
        sitk.WriteImage(picture, str(paths[-1]))
    volume, found = load_case(LabelledCase("a", *paths))
    assert found.dtype == np.uint16
    assert np.array_equal(volume.array, image.T) and np.array_equal(found, labels.T)


def test_labels_follow_the_image_into_another_orientation(tmp_path: Path) -> None:
    image, labels = volume_and_labels()
    affine = np.array([[0, 0, 2.0, 0], [0.8, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 0, 1]])
    case = LabelledCase(
        "a",
        write_nifti(tmp_path / "i.nii.gz", image, affine),
        write_nifti(tmp_path / "l.nii.gz", labels, affine),
    )
    volume, found = load_case(case)
    for value in (1, 3):
        assert np.allclose(volume.array[found == value].mean(), image[labels == value].mean())


def test_a_challenge_file_s_objects_stay_unread(tmp_path: Path) -> None:
    file = challenge_file(tmp_path / "CT" / "CT_Organs_0001.npz")
    [case] = challenge_cases(tmp_path)
    assert (case.id, case.modality, case.dataset) == ("CT/CT_Organs_0001", "ct", "Organs")
    volume, labels = load_case(case)
    assert volume.spacing == SPACING[::-1] and volume.modality == "ct"
    with np.load(file) as arrays:
        assert np.array_equal(labels, arrays["gts"]) and np.array_equal(volume.array, arrays["imgs"])


def test_lists_in_csv_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,label,modality,dataset\nx/i.nii.gz,x/l.nii.gz,MR,ours\n")
    [case] = list_cases(tmp_path / "a.csv")
    assert case == LabelledCase(
        "i", tmp_path / "x/i.nii.gz", tmp_path / "x/l.nii.gz", modality="mr", dataset="ours"
    )
    rows = [{"image": "i.mha", "label": "l.mha"}, {"image": "b/i.mha", "label": "b/l.mha"}]
    (tmp_path / "b.json").write_text(json.dumps({"training": rows, "labels": {"1": "liver"}}))
    cases = find_training_cases(tmp_path / "b.json")
    assert len({c.id for c in cases}) == 2 and cases[0].names == {1: "liver"} and cases[0].dataset == "b"


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.csv", "image,mask\na,b\n", "Row 1 .* must name an image and a label"),
        ("a.csv", "", "lists no cases"),
        ("a.json", "{", "can't be read"),
        ("a.json", '{"validation": []}', "lists no cases"),
        ("a.json", '[{"image": "a", "label": "b", "modality": "xray"}]', "modality must be one of"),
    ],
)
def test_a_damaged_list_is_refused(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint):
        list_cases(tmp_path / name)


def test_folders_without_cases_are_refused(tmp_path: Path) -> None:
    for reader in (folder_cases, challenge_cases, find_training_cases):
        with pytest.raises(UserError, match=r"no .*case|no folder"):
            reader(tmp_path)
        with pytest.raises(UserError, match="no folder"):
            reader(tmp_path / "nowhere")


def test_what_is_wrong_with_a_case_is_said(tmp_path: Path) -> None:
    image, labels = volume_and_labels()
    good = write_nifti(tmp_path / "i.nii.gz", image)
    moved = np.diag([*SPACING, 1.0])
    moved[0, 3] = 5
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8bnot an image")
    np.savez(tmp_path / "half.npz", imgs=labels)
    np.savez(tmp_path / "grid.npz", imgs=labels, gts=labels[1:])
    wrong = {
        "no foreground": write_nifti(tmp_path / "empty.nii.gz", 0 * labels),
        "one grid": write_nifti(tmp_path / "short.nii.gz", labels[1:]),
        "differ by more": write_nifti(tmp_path / "moved.nii.gz", labels, moved),
        "0 to 65535": write_nifti(tmp_path / "negative.nii.gz", labels.astype(np.int16) - 1),
        "whole numbers": write_nifti(tmp_path / "half.nii.gz", labels.astype(np.float32) * 0.7),
        "is damaged": tmp_path / "broken.nii.gz",
        "there is no missing": tmp_path / "missing.nii.gz",
    }
    for complaint, path in wrong.items():
        with pytest.raises(UserError, match=f"Case 'the case': .*{complaint}"):
            load_case(LabelledCase("the case", good, path))
    for complaint, name in (("lacks gts", "half"), ("one grid", "grid"), ("can't be read", "missing")):
        path = tmp_path / f"{name}.npz"
        with pytest.raises(UserError, match=complaint):
            load_case(LabelledCase("the case", path, path))


def test_a_source_needs_cases_and_a_weight() -> None:
    with pytest.raises(UserError, match="at least one case"):
        WeightedSource([])
    with pytest.raises(UserError, match="positive"):
        WeightedSource("generated", 0)


def many(**counts: int) -> list[LabelledCase]:
    """`ct_a=5` stands for five cases of modality ct and data set a."""
    return [
        LabelledCase(f"{name}_{number}", Path("i"), Path("l"), {}, name.split("_")[0], name.split("_")[1])
        for name, count in counts.items()
        for number in range(count)
    ]


def test_a_coreset_is_balanced_by_modality_and_data_set() -> None:
    cases = many(ct_a=600, ct_b=40, mr_a=300, pet_a=6, us_a=54)
    chosen = coreset(cases, 0.1)
    assert len(chosen) == 100
    by_modality = Counter(c.modality for c in chosen)
    # PET has only six; what it lacks is shared by the others.
    assert by_modality["pet"] == 6 and sorted(by_modality.values()) == [6, 31, 31, 32]
    by_set = Counter(c.dataset for c in chosen if c.modality == "ct")
    assert abs(by_set["a"] - by_set["b"]) <= 1


def test_a_coreset_does_not_depend_on_the_order_but_on_the_seed() -> None:
    cases = many(ct_a=50, mr_a=50)
    assert {c.id for c in coreset(cases, 0.2)} == {c.id for c in coreset(cases[::-1], 0.2)}
    assert {c.id for c in coreset(cases, 0.2)} != {c.id for c in coreset(cases, 0.2, seed=1)}
    with pytest.raises(UserError, match="above 0"):
        coreset(cases, 0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0.01, 1))
def test_a_coreset_has_the_asked_number_and_no_group_is_left_out_for_another(counts, share) -> None:
    cases = many(**{f"{'mct'[i % 3]}_{i}": count for i, count in enumerate(counts)})
    chosen = coreset(cases, share)
    assert len(chosen) == int(np.ceil(share * len(cases) - 1e-9))
    taken = Counter(c.modality for c in chosen)
    there = Counter(c.modality for c in cases)
    for modality in there:
        for other in there:
            # One has more than another only where the other is used up, or by one that can't be divided.
            assert taken[modality] <= taken[other] + 1 or taken[other] == there[other]
