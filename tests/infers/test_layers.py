"""What an existing segmentation keeps, what clicks change in it, and which label wins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from dualclickmed.errors import PromptError, TooLargeError, UserError
from dualclickmed.experts import Result
from dualclickmed.imaging import facts
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import VolumeCache, from_array
from dualclickmed.infers.layers import Layers, layered

LABELS = LabelMap(("liver", "spleen", "kidney"))
SHAPE = (12, 14, 16)
VOLUME = from_array(np.zeros(SHAPE, np.int16), (2.0, 1.0, 1.0))


def block(*edges: int) -> npt.NDArray[np.bool_]:
    """z0, z1, y0, y1, x0, x1; half-open."""
    mask = np.zeros(SHAPE, dtype=np.bool_)
    z0, z1, y0, y1, x0, x1 = edges
    mask[z0:z1, y0:y1, x0:x1] = True
    return mask


def clicks(*points: tuple[int, int, int], outside: tuple[tuple[int, int, int], ...] = ()) -> Prompts:
    return Prompts((*map(Click, points), *(Click(p, False) for p in outside)))


class Experts:
    """Answer with blocks about the foreground clicks, later labels on top, and note what they were asked."""

    def __init__(self, reach: int = 2) -> None:
        self.reach = reach
        self.asked: list[dict[str, Prompts]] = []

    def __call__(self, prompts: Mapping[str, Prompts]) -> Result:
        self.asked.append(dict(prompts))
        labels = np.zeros(SHAPE, dtype=np.uint8)
        values = {label: value for value, label in enumerate(prompts, start=1)}
        for label, given in prompts.items():
            for z, y, x in given.foreground:
                r = self.reach
                part = labels[max(z - r, 0) : z + r + 1, max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1]
                part[...] = values[label]
            if given.box is not None:
                labels[given.box.voxels(SHAPE)] = values[label]
            for index in given.background:
                if labels[index] == values[label]:
                    labels[index] = 0
        for label, given in prompts.items():
            for index in given.foreground:
                labels[index] = values[label]
        return Result(labels, values, dict.fromkeys(values, "local"), [], {"decode": 1.0})


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Liver and spleen, as the server numbers them, as a file of the volume's grid."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[block(1, 6, 1, 7, 1, 7)] = 1
    labels[block(7, 11, 8, 13, 8, 14)] = 2
    path = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(VOLUME.to_raw_array(labels), VOLUME.affine), path)
    return path


LIVER, SPLEEN = block(1, 6, 1, 7, 1, 7), block(7, 11, 8, 13, 8, 14)


def settled(prompts: dict[str, Prompts], experts: Experts | None = None, **layers: Any) -> Any:
    return layered(experts or Experts(), VOLUME, prompts, Layers(labels=LABELS, **layers))


def test_without_anything_existing_the_experts_answer_as_they_are() -> None:
    experts = Experts()
    given = {"liver": clicks((3, 3, 3)), "spleen": clicks((8, 8, 8))}
    found = settled(given, experts)
    np.testing.assert_array_equal(found.result.labels, Experts()(given).labels)
    assert found.before is None
    assert experts.asked == [given]


@pytest.mark.parametrize("existing", ["keep", "correct"])
def test_a_label_without_clicks_is_taken_over_and_no_other_changes_it(stored: Path, existing: str) -> None:
    """The kidney's clicks lie at the spleen's edge and would reach into it."""
    found = settled({"kidney": clicks((6, 10, 10))}, existing=existing, path=stored)
    result = found.result
    np.testing.assert_array_equal(result.mask("liver"), LIVER)
    np.testing.assert_array_equal(result.mask("spleen"), SPLEEN)
    expected = block(4, 9, 8, 13, 8, 13) & ~SPLEEN & ~LIVER
    np.testing.assert_array_equal(result.mask("kidney"), expected)
    assert result.strategies == {"kidney": "local", "liver": "kept", "spleen": "kept"}
    np.testing.assert_array_equal(found.before == result.values["liver"], LIVER)
    np.testing.assert_array_equal(found.before != 0, LIVER | SPLEEN)


def test_keep_makes_a_clicked_label_anew(stored: Path) -> None:
    found = settled({"liver": clicks((3, 3, 3))}, existing="keep", path=stored)
    np.testing.assert_array_equal(found.result.mask("liver"), block(1, 6, 1, 6, 1, 6))
    np.testing.assert_array_equal(found.result.mask("spleen"), SPLEEN)


def test_ignore_takes_nothing_over(stored: Path) -> None:
    found = settled({"kidney": clicks((6, 10, 10))}, existing="ignore", path=stored)
    assert found.result.values == {"kidney": 1}
    assert found.before is None


def test_a_click_inside_a_corrected_label_changes_nothing(stored: Path) -> None:
    experts = Experts()
    found = settled({"liver": clicks((3, 3, 3))}, experts, existing="correct", path=stored)
    np.testing.assert_array_equal(found.result.mask("liver"), LIVER)
    np.testing.assert_array_equal(experts.asked[0]["liver"].mask, LIVER)


def test_a_click_beside_a_corrected_label_adds_what_hangs_together_with_it(stored: Path) -> None:
    """The experts would add two parts: one about the click outside, one about the click inside."""
    given = {"liver": clicks((10, 2, 2), (3, 3, 6))}
    found = settled(given, existing="correct", path=stored)
    about_the_click = block(8, 12, 0, 5, 0, 5)
    np.testing.assert_array_equal(found.result.mask("liver"), LIVER | about_the_click)


def test_a_background_click_alone_takes_away_what_hangs_together_with_it(stored: Path) -> None:
    experts = Experts(reach=1)
    given = {"liver": clicks(outside=((1, 1, 1),)), "spleen": clicks(outside=((1, 1, 1),))}
    found = settled(given, experts, existing="correct", path=stored)
    after = found.result.mask("liver")
    assert not after[1, 1, 1]
    assert not (after & ~LIVER).any()
    # The experts were told where the label is, and asked about this label alone.
    assert experts.asked[0].keys() == {"liver"}
    (inside,) = experts.asked[0]["liver"].foreground
    assert after[inside]
    np.testing.assert_array_equal(found.result.mask("spleen"), SPLEEN)


def test_a_background_click_outside_everything_is_refused(stored: Path) -> None:
    given = {"liver": clicks(outside=((0, 0, 15),))}
    with pytest.raises(PromptError, match="a background click inside a label of the existing"):
        settled(given, existing="correct", path=stored)


def test_a_box_makes_a_corrected_label_anew(stored: Path) -> None:
    given = {"liver": Prompts(box=Box((1, 1, 9), (4, 5, 13)))}
    found = settled(given, existing="correct", path=stored)
    np.testing.assert_array_equal(found.result.mask("liver"), block(1, 4, 1, 5, 9, 13))


def test_a_click_in_a_finished_label_is_refused_in_the_clients_own_numbers(stored: Path) -> None:
    """(z, y, x) = (8, 9, 10) is the voxel [10, 9, 8] of the file."""
    with pytest.raises(
        PromptError, match=r"\[10, 9, 8\] was clicked as 'kidney', but it belongs to 'spleen'"
    ):
        settled({"kidney": clicks((8, 9, 10))}, existing="keep", path=stored)


def test_two_corrected_labels_share_no_voxel_and_every_click_holds(stored: Path) -> None:
    given = {"liver": clicks((8, 9, 9)), "spleen": clicks((2, 2, 2))}
    result = settled(given, existing="correct", path=stored).result
    assert result.mask("liver")[8, 9, 9]
    assert result.mask("spleen")[2, 2, 2]


def test_a_new_label_takes_nothing_from_one_that_is_corrected(stored: Path) -> None:
    """The kidney's clicks lie beside the spleen, which was clicked as well and agrees with its click."""
    given = {"kidney": clicks((6, 10, 10)), "spleen": clicks((9, 10, 10))}
    result = settled(given, existing="correct", path=stored).result
    np.testing.assert_array_equal(result.mask("spleen"), SPLEEN)
    np.testing.assert_array_equal(result.mask("kidney"), block(4, 7, 8, 13, 8, 13))


def test_undo_is_one_click_less(stored: Path) -> None:
    once = settled({"liver": clicks((3, 3, 7))}, existing="correct", path=stored)
    twice = settled({"liver": clicks((3, 3, 7), (10, 2, 2))}, existing="correct", path=stored)
    again = settled({"liver": clicks((3, 3, 7))}, existing="correct", path=stored)
    assert (twice.result.labels != once.result.labels).any()
    np.testing.assert_array_equal(again.result.labels, once.result.labels)


def test_with_first_a_later_label_never_changes_an_earlier_one() -> None:
    liver = clicks((4, 4, 4))
    alone = settled({"liver": liver}).result.mask("liver")
    given = {"liver": liver, "spleen": clicks((7, 4, 4))}
    likelier = settled(given).result
    assert (likelier.mask("liver") != alone).any()
    first = settled(given, overlap="first", order=("liver", "spleen")).result
    np.testing.assert_array_equal(first.mask("liver"), alone)
    np.testing.assert_array_equal(first.mask("spleen"), block(5, 10, 2, 7, 2, 7) & ~alone)
    assert first.stages == {"decode": 2.0}
    other = settled(given, overlap="first", order=("spleen", "liver")).result
    np.testing.assert_array_equal(other.mask("spleen"), block(5, 10, 2, 7, 2, 7))


def test_locked_labels_come_before_all_others() -> None:
    given = {"liver": clicks((7, 4, 4)), "spleen": clicks((4, 4, 4))}
    result = settled(given, locked=("spleen",)).result
    np.testing.assert_array_equal(result.mask("spleen"), block(2, 7, 2, 7, 2, 7))
    assert result.values == {"liver": 1, "spleen": 2}


def test_a_later_label_cannot_be_clicked_inside_an_earlier_one() -> None:
    given = {"liver": clicks((4, 4, 4)), "spleen": clicks((4, 4, 5))}
    with pytest.raises(PromptError, match=r"\[5, 4, 4\] was clicked as 'spleen', but it belongs to 'liver'"):
        settled(given, overlap="first", order=("liver", "spleen"))


def test_a_locked_label_needs_clicks() -> None:
    with pytest.raises(PromptError, match="'spleen' has none"):
        settled({"liver": clicks((4, 4, 4))}, locked=("spleen",))


def test_names_that_come_along_count(stored: Path) -> None:
    info = {"label_info": [{"name": "Cyst A", "idx": 2}, {"name": "Spleen", "idx": 7}]}
    result = settled({"liver": clicks((10, 2, 2))}, existing="keep", path=stored, info=info).result
    np.testing.assert_array_equal(result.mask("Cyst A"), LIVER)
    np.testing.assert_array_equal(result.mask("spleen"), SPLEEN)


@pytest.mark.parametrize("required", [True, False])
def test_a_file_that_cannot_be_used(tmp_path: Path, required: bool) -> None:
    """An uploaded one is refused; a stored one must not keep anybody from clicking."""
    path = tmp_path / "label.nii.gz"
    path.write_bytes(b"not an image")
    given = {"liver": clicks((4, 4, 4))}
    if required:
        with pytest.raises(UserError, match="packed with gzip"):
            settled(given, existing="keep", path=path, required=True)
        return
    found = settled(given, existing="keep", path=path)
    assert found.result.values == {"liver": 1}
    assert len(found.notes) == 1
    assert "packed with gzip" in found.notes[0]


def test_corners_for_an_expert_that_needs_a_box_are_no_clicks() -> None:
    """Nor do they lie in a label that is finished; the third click is a click."""
    experts = Experts()
    prompts = {"kidney": clicks((6, 2, 2), (3, 5, 6), (4, 4, 4), outside=((0, 0, 0),))}
    layered(experts, VOLUME, prompts, Layers(LABELS, corners=True))
    (asked,) = experts.asked
    assert asked["kidney"].box == Box((3, 2, 2), (7, 6, 7))
    assert asked["kidney"].foreground == [(4, 4, 4)]
    assert asked["kidney"].background == [(0, 0, 0)]


def test_corners_may_lie_in_a_finished_label(stored: Path) -> None:
    prompts = {"kidney": clicks((2, 2, 2), (9, 9, 9))}
    kept = Layers(LABELS, "keep", stored, corners=True)
    found = layered(Experts(), VOLUME, prompts, kept).result
    np.testing.assert_array_equal(found.mask("liver"), block(1, 6, 1, 7, 1, 7))
    assert found.mask("kidney")[6, 7, 7]
    with pytest.raises(PromptError, match="belongs to 'liver'"):
        layered(Experts(), VOLUME, prompts, Layers(LABELS, "keep", stored))


def test_clicks_for_a_label_that_is_corrected_are_no_corners(stored: Path) -> None:
    experts = Experts()
    prompts = {"liver": clicks((3, 3, 8), (2, 2, 2))}
    layered(experts, VOLUME, prompts, Layers(LABELS, "correct", stored, corners=True))
    (asked,) = experts.asked
    assert (asked["liver"].box, asked["liver"].foreground) == (None, [(3, 3, 8), (2, 2, 2)])


def test_a_background_click_in_a_label_that_nothing_else_is_about_is_answered_with_a_note(
    stored: Path,
) -> None:
    both = clicks((9, 2, 2), outside=((3, 3, 3), (0, 13, 15)))
    done = settled({"kidney": both}, existing="correct", path=stored)
    assert np.array_equal(done.result.mask("liver"), LIVER)
    (note,) = done.notes
    clicked = VOLUME.to_raw([(3, 3, 3)])[0].tolist()
    assert note.startswith(f"The background click {clicked} lies in 'liver', which no other click is about")
    # What is kept is not to be corrected, and alone the click means the label that it lies in.
    assert settled({"kidney": both}, existing="keep", path=stored).notes == []
    alone = clicks(outside=((3, 3, 3),))
    done = settled({"liver": alone, "kidney": alone}, existing="correct", path=stored)
    assert done.notes == [] and not done.result.mask("liver")[3, 3, 3]


def test_the_bound_of_the_process_holds_for_existing_labels_and_cached_images(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = int(np.prod(SHAPE))
    monkeypatch.setattr(facts, "_default", facts.ReadLimits(image_bytes=voxels))
    assert Layers(LABELS, "keep", stored).read(VOLUME).names
    assert VolumeCache(1 << 20).get(stored).shape == SHAPE
    facts.limit_to(facts.ReadLimits(image_bytes=voxels - 1))
    with pytest.raises(TooLargeError):
        Layers(LABELS, "keep", stored).read(VOLUME)
    with pytest.raises(TooLargeError):
        VolumeCache(1 << 20).get(stored)
