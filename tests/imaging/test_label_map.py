from __future__ import annotations

from dualclickmed.imaging.label_map import LabelMap


def test_names_that_requests_use_otherwise_are_not_admitted() -> None:
    known = LabelMap(("liver",), frozenset({"roi"}))
    assert known.admits("anterior")
    assert not known.admits("roi")
    assert not known.admits("a,b")
    assert not known.admits("")
