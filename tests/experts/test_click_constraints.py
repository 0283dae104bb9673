from __future__ import annotations

import numpy as np
import pytest
from dualclickmed.experts import click_constraints
from dualclickmed.experts.click_constraints import enforce_clicks
from dualclickmed.experts.prediction import Prediction, merge
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import Volume, from_array
from hypothesis import given, settings
from hypothesis import strategies as st


def everywhere(logits: np.ndarray) -> Prediction:
    z, y, x = (slice(0, n) for n in logits.shape)
    return Prediction((z, y, x), logits.astype(np.float32))


def neighbours(index: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    found = []
    for axis in range(3):
        for step in (-1, 1):
            other = list(index)
            other[axis] += step
            if 0 <= other[axis] < shape[axis]:
                found.append(tuple(other))
    return found


def enforce(
    volume: Volume, logits: list[np.ndarray], prompts: list[Prompts]
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int]]]:
    """Labels before and after, and the clicks that were enforced."""
    predictions = [(i + 1, everywhere(values)) for i, values in enumerate(logits)]
    before = merge(volume.shape, predictions)
    after = before.copy()
    enforced = enforce_clicks(after, volume, {i + 1: p for i, p in enumerate(prompts)}, predictions)
    return before, after, enforced


def flat(shape: tuple[int, int, int], spacing: tuple[float, float, float] = (1, 1, 1)) -> Volume:
    return from_array(np.zeros(shape, np.uint8), spacing)


def prompts_of(fg: list[tuple[int, int, int]], bg: list[tuple[int, int, int]]) -> Prompts:
    return Prompts(tuple(Click(p, True) for p in fg) + tuple(Click(p, False) for p in bg))


def test_obedience_is_left_alone():
    logits = np.full((9, 9, 9), -1.0)
    logits[3:6, 3:6, 3:6] = 1
    before, after, enforced = enforce(
        flat((9, 9, 9)), [logits], [prompts_of([(4, 4, 4)], [(0, 0, 0), (8, 8, 8)])]
    )
    np.testing.assert_array_equal(before, after)
    assert enforced == []


def test_a_disobeyed_click_gets_the_ball_of_its_own_intensity():
    image = np.full((15, 15, 15), 200, np.uint8)
    image[:, :, 7:] = 50
    _, after, enforced = enforce(
        from_array(image), [np.full(image.shape, -1.0)], [prompts_of([(7, 7, 8)], [])]
    )
    assert enforced == [(7, 7, 8)]
    distance = np.linalg.norm(np.indices(image.shape) - np.asarray([7, 7, 8])[:, None, None, None], axis=0)
    expected = (distance <= 2.5) & (image == 50)
    # The ball ends where the image changes; (7, 7, 7) is the only neighbour of the click on that side.
    np.testing.assert_array_equal(after == 1, expected)


def test_the_six_neighbours_follow_even_where_the_image_differs():
    image = np.zeros((9, 9, 9), np.uint8)
    image[4, 4, 4] = 255
    _, after, _ = enforce(from_array(image), [np.full(image.shape, -1.0)], [prompts_of([(4, 4, 4)], [])])
    expected = np.zeros(image.shape, bool)
    for voxel in [(4, 4, 4), *neighbours((4, 4, 4), image.shape)]:
        expected[voxel] = True
    np.testing.assert_array_equal(after == 1, expected)


def test_the_ball_is_round_in_millimetres():
    _, after, _ = enforce(
        flat((9, 9, 9), (4.0, 1.0, 2.0)), [np.full((9, 9, 9), -1.0)], [prompts_of([(4, 4, 4)], [])]
    )
    extent = [np.ptp(axis) // 2 for axis in np.nonzero(after)]
    # Along z only the neighbour, which is farther than the radius.
    assert extent == [1, 2, 1]
    assert after[3, 4, 4] == 1
    assert after[3, 5, 4] == 0


def test_a_background_click_takes_a_patch_away():
    before, after, enforced = enforce(
        flat((9, 9, 9)), [np.full((9, 9, 9), 1.0)], [prompts_of([], [(4, 4, 4)])]
    )
    assert enforced == [(4, 4, 4)]
    removed = np.argwhere(before != after)
    assert len(removed) == 81
    assert np.linalg.norm(removed - 4, axis=1).max() <= 2.5


def test_what_is_taken_from_one_label_goes_to_the_next_best():
    first, second, third = (np.full((9, 9, 9), value) for value in (3.0, 1.0, 2.0))
    third[:, :, 4] = -1
    _, after, _ = enforce(
        flat((9, 9, 9)),
        [first, second, third],
        [prompts_of([], [(4, 4, 4)]), Prompts(), Prompts()],
    )
    assert after[4, 4, 4] == 2
    assert after[4, 4, 5] == 3
    assert after[0, 0, 0] == 1


def test_background_for_every_label_leaves_nothing():
    _, after, _ = enforce(
        flat((9, 9, 9)),
        [np.full((9, 9, 9), 3.0), np.full((9, 9, 9), 1.0)],
        [prompts_of([], [(4, 4, 4)]), prompts_of([], [(4, 4, 4)])],
    )
    assert after[4, 4, 4] == after[4, 4, 5] == 0


def test_a_click_of_one_label_wins_over_anothers_certainty():
    _, after, enforced = enforce(
        flat((9, 9, 9)),
        [np.full((9, 9, 9), 1.0), np.full((9, 9, 9), 9.0)],
        [prompts_of([(4, 4, 4)], []), prompts_of([(0, 0, 0)], [])],
    )
    assert enforced == [(4, 4, 4)]
    assert all(after[p] == 1 for p in [(4, 4, 4), *neighbours((4, 4, 4), after.shape)])
    assert after[0, 0, 0] == 2


def test_a_lone_voxel_is_not_obedience():
    logits = np.full((9, 9, 9), -1.0)
    logits[4, 4, 4] = 1
    _, after, enforced = enforce(flat((9, 9, 9)), [logits], [prompts_of([(4, 4, 4)], [])])
    assert enforced == [(4, 4, 4)]
    assert (after == 1).sum() == 81


def test_opposite_clicks_side_by_side_both_hold():
    for value in (-1.0, 1.0):
        _, after, _ = enforce(
            flat((9, 9, 9)), [np.full((9, 9, 9), value)], [prompts_of([(4, 4, 4)], [(4, 4, 5)])]
        )
        assert after[4, 4, 4] == 1
        assert after[4, 4, 5] == 0
        assert after[4, 4, 3] == 1
        assert after[4, 4, 6] == 0


def test_a_voxel_as_near_to_both_kinds_goes_to_the_foreground():
    for value in (-1.0, 1.0):
        _, after, _ = enforce(
            flat((1, 1, 3)), [np.full((1, 1, 3), value)], [prompts_of([(0, 0, 2)], [(0, 0, 0)])]
        )
        assert after.tolist() == [[[0, 1, 1]]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (1, 9, 9), (9, 1, 1)])
def test_it_holds_in_thin_volumes(shape):
    for value, wanted in ((-1.0, [(0, 0, 0)]), (1.0, [])):
        unwanted = [] if wanted else [(0, 0, 0)]
        _, after, enforced = enforce(flat(shape), [np.full(shape, value)], [prompts_of(wanted, unwanted)])
        assert after[0, 0, 0] == len(wanted)
        assert enforced == [(0, 0, 0)]
        for p in neighbours((0, 0, 0), shape):
            assert after[p] == len(wanted)


SHAPES = st.tuples(*[st.integers(1, 7)] * 3)
SPACINGS = st.tuples(*[st.sampled_from([0.7, 1.0, 2.5, 5.0])] * 3)


@st.composite
def situations(draw):
    """A volume, two labels' random logits, and clicks that do not contradict one another."""
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    volume = from_array(rng.integers(0, 255, shape, dtype=np.uint8), draw(SPACINGS))
    bias = draw(st.sampled_from([-2.0, 0.0, 2.0]))
    logits = [rng.normal(size=shape) + bias for _ in range(2)]
    index = st.tuples(*[st.integers(0, n - 1) for n in shape])
    kinds = draw(st.dictionaries(index, st.integers(0, 4), min_size=1, max_size=8))
    # 0, 1: foreground of a label; 2, 3: background of a label; 4: background of both.
    prompts = [
        prompts_of(
            [i for i, kind in kinds.items() if kind == label],
            [i for i, kind in kinds.items() if kind in (label + 2, 4)],
        )
        for label in range(2)
    ]
    return volume, logits, prompts


@given(situations())
@settings(max_examples=200)
def test_every_click_holds_and_is_not_alone(situation):
    volume, logits, prompts = situation
    _, after, enforced = enforce(volume, logits, prompts)
    clicked = {c.index for p in prompts for c in p.clicks}
    spacing = np.asarray(volume.spacing)
    for value, given_prompts in enumerate(prompts, start=1):
        for click in given_prompts.clicks:
            assert (after[click.index] == value) == click.positive
            near = [
                p
                for p in neighbours(click.index, volume.shape)
                # Nearer to this click than to any other: nothing else has a claim to it.
                if all(
                    np.linalg.norm((np.subtract(p, click.index)) * spacing)
                    < np.linalg.norm((np.subtract(p, other)) * spacing)
                    for other in clicked - {click.index}
                )
            ]
            around = neighbours(click.index, volume.shape)
            if near:
                assert any((after[p] == value) == click.positive for p in around)
            if click.positive and click.index in enforced:
                assert all(after[p] == value for p in near)


@given(situations(), st.randoms())
@settings(max_examples=60)
def test_the_order_of_clicks_and_labels_plays_no_part(situation, random):
    volume, logits, prompts = situation
    _, expected, _ = enforce(volume, logits, prompts)
    shuffled = []
    for given_prompts in prompts:
        clicks = list(given_prompts.clicks)
        random.shuffle(clicks)
        shuffled.append(Prompts(tuple(clicks)))
    _, same, _ = enforce(volume, logits, shuffled)
    np.testing.assert_array_equal(same, expected)
    _, swapped, _ = enforce(volume, logits[::-1], shuffled[::-1])
    np.testing.assert_array_equal(np.asarray([0, 2, 1])[swapped], expected)


@given(situations())
@settings(max_examples=60)
def test_corrections_stay_near_disobeyed_clicks(situation):
    volume, logits, prompts = situation
    before, after, enforced = enforce(volume, logits, prompts)
    changed = np.argwhere(before != after)
    if not enforced:
        assert len(changed) == 0
        return
    offsets = np.abs(changed[:, None] - np.asarray(enforced)[None]).max(axis=-1)
    assert (offsets.min(axis=1) <= 2).all()


@given(situations())
@settings(max_examples=100)
def test_looking_at_all_clicks_at_once_changes_nothing(situation):
    volume, logits, prompts = situation
    _, after, enforced = enforce(volume, logits, prompts)

    def never(labels: np.ndarray, clicked: list[object], cells: object) -> np.ndarray:
        return np.zeros(len(clicked), dtype=bool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click_constraints, "_surely_obeyed", never)
        _, expected, one_by_one = enforce(volume, logits, prompts)
    np.testing.assert_array_equal(after, expected)
    assert enforced == one_by_one


@pytest.mark.parametrize("thick", [False, True])
def test_an_obeyed_scribble_is_not_looked_at_voxel_by_voxel(monkeypatch, thick):
    shape = (60, 60, 60)
    logits = np.full(shape, -1.0)
    logits[10:50, 10:50, 10:50] = 1
    inside = [(z, y, 30) for z in range(12, 48) for y in range(12, 48)]
    if thick:
        # Most voxels have no neighbour of their own then.
        inside += [(z, y, x) for z, y, _ in inside for x in (29, 31)]
    outside = [(5, y, x) for y in range(5, 50) for x in range(5, 50)]
    looked: list[int] = []
    monkeypatch.setattr(click_constraints._Cells, "owned_neighbours", lambda self, at: looked.append(at))
    _, _, enforced = enforce(flat(shape), [logits], [prompts_of(inside, outside)])
    assert (looked, enforced) == ([], [])


def test_the_part_of_a_scribble_that_is_disobeyed_is_corrected():
    shape = (40, 40, 40)
    logits = np.full(shape, 1.0)
    logits[:, :, 20:] = -1
    scribble = [(20, y, x) for y in (18, 19, 20) for x in range(5, 35)]
    _, after, enforced = enforce(flat(shape), [logits], [prompts_of(scribble, [])])
    assert enforced == [p for p in sorted(scribble) if p[2] >= 20]
    assert all(after[p] == 1 for p in scribble)
    assert after[:, :, :20].all()
