"""How far annotators agree, in voxels and millimetres, and one label out of several."""

from __future__ import annotations

import numpy as np
import pytest
from dualclickmed.configs.consensus import LAST, MAJORITY, STAPLE
from dualclickmed.errors import UserError
from dualclickmed.imaging.label_files import NamedLabels
from dualclickmed.imaging.volume import from_array
from dualclickmed.learning.agreement import compare, consensus, disagreement, facts

SHAPE = (12, 12, 12)
SPACING = (2.0, 1.0, 1.0)


def slab(start: int, stop: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[start:stop, 2:10, 2:10] = True
    return mask


def drawn(**masks: np.ndarray) -> NamedLabels:
    return NamedLabels([m.astype(np.uint16) for m in masks.values()], [{1: name} for name in masks])


VOLUME = from_array(np.arange(12**3, dtype=np.int16).reshape(SHAPE), SPACING)


def test_dice_and_millimetres_of_a_shifted_slab() -> None:
    (pair,) = compare({"ann": drawn(liver=slab(2, 8)), "bob": drawn(liver=slab(3, 9))}, VOLUME)
    assert (pair.label, pair.one, pair.other) == ("liver", "ann", "bob")
    assert pair.dice == pytest.approx(10 / 12, abs=1e-4)
    # One slice of 2 mm further on each face, nothing at the sides but near the ends.
    assert pair.hausdorff == 2.0
    assert pair.distance is not None and 0 < pair.distance < 2.0


def test_equal_masks_and_labels_that_one_has_not_drawn() -> None:
    versions = {"ann": drawn(liver=slab(2, 8), cyst=slab(9, 11)), "bob": drawn(liver=slab(2, 8))}
    liver, cyst = compare(versions, VOLUME)
    assert (liver.dice, liver.distance, liver.hausdorff) == (1.0, 0.0, 0.0)
    assert (cyst.dice, cyst.distance, cyst.hausdorff) == (0.0, None, None)
    told = facts([liver, cyst], versions)
    assert told["annotators"] == ["ann", "bob"]
    assert told["disputed_voxels"] == {"liver": 0, "cyst": 2 * 64}


def test_the_map_counts_those_who_see_it_otherwise() -> None:
    versions = {
        "ann": drawn(liver=slab(2, 8)),
        "bob": drawn(liver=slab(2, 8)),
        "cy": drawn(liver=slab(3, 9), cyst=slab(0, 1)),
    }
    found = disagreement(versions, "liver")
    assert (found[2, 5, 5], found[8, 5, 5], found[5, 5, 5], found[0, 5, 5]) == (1, 1, 0, 0)
    assert disagreement(versions)[0, 5, 5] == 1
    with pytest.raises(UserError, match="Nobody has drawn 'spleen'"):
        disagreement(versions, "spleen")


def test_the_last_one_and_the_majority() -> None:
    versions = {
        "ann": drawn(liver=slab(2, 8), cyst=slab(9, 11)),
        "bob": drawn(liver=slab(2, 8)),
        "cy": drawn(liver=slab(4, 9), cyst=slab(9, 10)),
    }
    assert consensus(versions, LAST) is versions["cy"]
    found = consensus(versions, MAJORITY)
    np.testing.assert_array_equal(found.mask("liver"), slab(2, 8))
    np.testing.assert_array_equal(found.mask("cyst"), slab(9, 10))
    assert len(found.layers) == 1
    assert found.notes == ["Made of the labels of ann, bob, cy by the rule 'majority'."]
    two = {"ann": drawn(liver=slab(2, 5)), "bob": drawn(liver=slab(6, 9))}
    with pytest.raises(UserError, match="no voxel of any label in common"):
        consensus(two, MAJORITY)


def test_staple_believes_those_who_are_borne_out() -> None:
    """Four good annotators and one whose label lies beside the object."""
    rng = np.random.default_rng(0)
    truth = slab(2, 8)
    versions = {}
    for who in range(4):
        mask = truth.copy()
        mask[2 + int(rng.integers(0, 2)), 2:10, 2:10] &= bool(rng.integers(0, 2))
        versions[f"good {who}"] = drawn(liver=mask)
    versions["bad"] = drawn(liver=slab(7, 11))
    found = consensus(versions, STAPLE).mask("liver")
    assert not found[9:].any()
    assert found[4:8, 2:10, 2:10].all()
    same = {who: drawn(liver=truth) for who in ("ann", "bob")}
    np.testing.assert_array_equal(consensus(same, STAPLE).mask("liver"), truth)
