"""Which images a simulated annotator labels next."""

from __future__ import annotations

from pathlib import Path

import pytest
from dualclickmed.errors import UserError
from dualclickmed.learning import annotator
from dualclickmed.learning.annotator import Annotator
from dualclickmed.learning.prior import Prior
from dualclickmed.learning.scoring import Score
from dualclickmed.training.sources import LabelledCase

POOL = [LabelledCase(name, Path(name), Path(name), {1: "x"}) for name in "abcde"]


def names(cases: list[LabelledCase]) -> str:
    return "".join(case.id for case in cases)


def test_in_order_or_at_random_by_the_seed() -> None:
    assert names(Annotator((2,)).arranged(POOL)) == "abcde"
    drawn = [names(Annotator((2,), "random", seed).arranged(POOL)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[2]) == list("abcde")
    # Nothing was learned yet: all begin alike.
    assert names(Annotator((2,), "expected_clicks", 1).arranged(POOL)) == drawn[0]
    assert names(Annotator((2,), "expected_clicks").chosen(POOL, 2, Prior(), Path())) == "ab"


def test_by_score_and_those_without_one_last(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"b": Score(0.1, 5.0, 0), "d": Score(0.9, 7.0, 0), "e": Score(0.5, 7.0, 0)}
    monkeypatch.setattr(annotator, "load_experts", lambda *_: None)
    monkeypatch.setattr(annotator, "default_path", lambda kind, directory: directory / kind)
    monkeypatch.setattr(annotator, "load_case", lambda case: (case.id, None))
    monkeypatch.setattr(annotator, "score_image", lambda image, prior, expert: scores.get(image))
    learned = Prior({"version": []})
    by = {order: Annotator((2,), order) for order in annotator.ORDERS}
    assert names(by["expected_clicks"].chosen(POOL, 4, learned, Path())) == "deba"
    assert names(by["disagreement"].chosen(POOL, 2, learned, Path())) == "de"
    assert names(by["random"].chosen(POOL, 2, learned, Path())) == "ab"


@pytest.mark.parametrize(("at", "order"), [((), "first"), ((3, 2), "first"), ((9,), "first"), ((2,), "best")])
def test_what_cannot_be_labelled_so_is_said(at: tuple[int, ...], order: str) -> None:
    with pytest.raises(UserError, match=r"rising numbers|labelled by one of"):
        Annotator(at, order).checked(5)
