from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dualclickmed.byte_cache import ByteCache
from dualclickmed.errors import PromptError, UserError, WeightsError
from dualclickmed.experts import DualExpert, GlobalExpert, LocalExpert
from dualclickmed.experts.dual import BOX_WEIGHT, _handicapped
from dualclickmed.experts.prediction import Prediction
from dualclickmed.imaging.geometry import Box, Index
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import Volume, from_array
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPE = (20, 24, 28)
BOX = Box((5, 5, 5), (15, 15, 15))
POINTS = (Click((10, 10, 10)), Click((12, 12, 12)), Click((3, 3, 3), False))


@pytest.fixture
def volume() -> Volume:
    return from_array(np.random.default_rng(0).integers(1, 256, SHAPE, dtype=np.uint8))


def dual_of(global_network: torch.nn.Module, local_network: torch.nn.Module) -> DualExpert:
    cache = ByteCache(1 << 28)
    return DualExpert(
        GlobalExpert(global_network, "cpu", cache),
        LocalExpert(local_network, "cpu", cache, window=(16, 16, 16)),
        cache,
    )


@pytest.mark.parametrize(
    ("prompts", "strategy", "expert"),
    [
        (Prompts(POINTS), "paper", "local"),
        (Prompts((), BOX), "paper", "global"),
        (Prompts(POINTS, BOX), "paper", "global"),
        (Prompts(POINTS, mask=np.ones(SHAPE, bool)), "paper", "local"),
        (Prompts((), BOX, np.ones(SHAPE, bool)), "paper", "global"),
        (Prompts(POINTS), "global", "global"),
        (Prompts((), BOX), "global", "global"),
        (Prompts(POINTS), "local", "local"),
        (Prompts(POINTS, BOX), "local", "local"),
        (Prompts((), BOX), "local", "local"),
    ],
)
def test_prompts_go_to_the_papers_expert_or_to_the_one_named(volume, fakes, prompts, strategy, expert):
    networks = {"global": fakes.Network(fakes.constant(1.0)), "local": fakes.Network(fakes.constant(1.0))}
    result = dual_of(networks["global"], networks["local"]).segment(volume, {"a": prompts}, strategy)
    assert result.strategies == {"a": expert}
    assert [name for name, network in networks.items() if network.decoded] == [expert]


@pytest.mark.parametrize(
    ("prompts", "strategy", "message"),
    [
        (Prompts(POINTS[:1]), "global", "box or two foreground clicks"),
        (Prompts(POINTS[2:]), "paper", "at least one foreground click"),
        (Prompts(POINTS), "both", "paper, global, local, fused, but it is 'both'"),
        (Prompts(), "paper", "have neither"),
        (Prompts((Click((20, 0, 0)),)), "paper", r"\(20, 24, 28\)"),
    ],
)
def test_what_cannot_be_answered_is_said(volume, fakes, prompts, strategy, message):
    dual = dual_of(fakes.Network(fakes.constant(1.0)), fakes.Network(fakes.constant(1.0)))
    with pytest.raises(PromptError, match=message):
        dual.segment(volume, {"a": prompts}, strategy)


def test_with_several_labels_the_error_names_the_one_at_fault(volume, fakes):
    dual = dual_of(fakes.Network(fakes.constant(1.0)), fakes.Network(fakes.constant(1.0)))
    with pytest.raises(PromptError, match=r"^Label 'liver': "):
        dual.segment(volume, {"spleen": Prompts(POINTS), "liver": Prompts(POINTS[2:])})
    with pytest.raises(
        PromptError, match=r"\(12, 12, 12\).*'liver'.*'spleen'|\(12, 12, 12\).*'spleen'.*'liver'"
    ):
        dual.segment(volume, {"spleen": Prompts(POINTS[:2]), "liver": Prompts(POINTS[1:])})
    with pytest.raises(PromptError, match="but 0 came"):
        dual.segment(volume, {})
    with pytest.raises(PromptError, match="but 256 came"):
        dual.segment(volume, {str(i): Prompts(POINTS) for i in range(256)})
    with pytest.raises(UserError, match="'liver'"):
        dual.segment(volume, {"a": Prompts((), BOX)}, intensity="liver")


def test_an_expert_without_weights_is_an_error_only_when_needed(volume, fakes):
    expert = dual_of(fakes.Network(fakes.constant(1.0)), fakes.Network(fakes.constant(1.0))).global_expert
    dual = DualExpert(expert, None, ByteCache(1 << 28))
    assert dual.segment(volume, {"a": Prompts((), BOX)}).strategies == {"a": "global"}
    with pytest.raises(WeightsError, match="local expert"):
        dual.segment(volume, {"a": Prompts(POINTS)})


def test_the_result_is_a_label_map_with_one_value_for_each_label(volume, fakes):
    balls = fakes.balls(2.0)
    dual = dual_of(fakes.Network(balls), fakes.Network(balls))
    result = dual.segment(
        volume,
        {"b": Prompts((Click((4, 4, 4)),)), "a": Prompts((Click((14, 14, 14)), Click((14, 14, 18))))},
        "paper",
    )
    assert result.values == {"b": 1, "a": 2}
    distance = {
        p: np.linalg.norm(np.indices(SHAPE) - np.reshape(p, (3, 1, 1, 1)), axis=0)
        for p in [(4, 4, 4), (14, 14, 14), (14, 14, 18)]
    }
    np.testing.assert_array_equal(result.mask("b"), distance[4, 4, 4] <= 2)
    expected = (distance[14, 14, 14] <= 2) | (distance[14, 14, 18] <= 2)
    np.testing.assert_array_equal(result.mask("a"), expected)
    assert result.enforced == []
    assert result.labels.dtype == np.uint8
    assert {"crop", "encode", "decode", "paste", "merge", "enforce"} == set(result.stages)


@pytest.mark.parametrize(
    ("strategy", "ordered", "windows"),
    [("paper", True, 1), ("paper", False, 2), ("local", True, 2), ("local", False, 2)],
)
def test_the_paper_s_rule_looks_at_the_last_click_where_it_is_known(
    volume, fakes, strategy, ordered, windows
):
    network = fakes.Network(fakes.constant(1.0))
    (d, h, w) = volume.shape
    first, last = Click((2, 2, 2)), Click((d - 2, h - 2, w - 2))
    dual = dual_of(fakes.Network(fakes.constant(1.0)), network)
    dual.local_expert.window = (8, 8, 8)
    result = dual.segment(volume, {"a": Prompts((first, last), ordered=ordered)}, strategy)
    assert len(network.encoded) == windows
    assert result.labels[last.index] == result.labels[first.index] == 1


def test_overlaps_go_to_the_surer_label_in_any_order(volume, fakes):
    def by_contrast(image: torch.Tensor, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # The further from its first click, the less sure.
        grid = torch.stack(torch.meshgrid(*[torch.arange(n) for n in image.shape], indexing="ij"), dim=-1)
        return 9 - torch.linalg.vector_norm(grid - points[labels == 1][0], dim=-1)

    prompts = {
        "x": Prompts((Click((10, 10, 8)),)),
        "y": Prompts((Click((10, 10, 13)),)),
        "z": Prompts((Click((10, 14, 10)),)),
    }
    index = np.indices(SHAPE)
    distance = np.stack(
        [np.linalg.norm(index - np.reshape(p.foreground[0], (3, 1, 1, 1)), axis=0) for p in prompts.values()]
    )
    seen = []
    for order in itertools.permutations(prompts):
        dual = dual_of(fakes.Network(by_contrast), fakes.Network(by_contrast))
        result = dual.segment(volume, {label: prompts[label] for label in order}, "paper")
        masks = np.stack([result.mask(label) for label in prompts])
        nearest = distance == distance.min(axis=0)
        contested = (np.sort(distance, axis=0)[1] - np.sort(distance, axis=0)[0]) < 1e-5
        assert not (masks & ~nearest & (distance.min(axis=0) < 7)).any()
        assert masks.sum(axis=0).max() == 1
        assert contested.any()
        seen.append(masks)
    for masks in seen:
        np.testing.assert_array_equal(masks, seen[0])


def fused_blocks(volume, fakes, names, parts):
    """What `fused` makes of objects that it finds as blocks: name to box and logit."""

    def predict(expert, volume, given, *args):
        box, logit = next(part for part in parts.values() if part[0] == given.box)
        region = box.voxels(volume.shape)
        logits = np.full([s.stop - s.start for s in region], logit, np.float32)
        return SimpleNamespace(predictions=[Prediction(region, logits)])

    dual = dual_of(fakes.Network(fakes.image), fakes.Network(fakes.image))
    dual._fusion.predict = predict
    return dual.segment(volume, {name: Prompts((), parts[name][0]) for name in names}, "fused")


@pytest.mark.parametrize("names", [("large", "small"), ("small", "a large one")])
@pytest.mark.parametrize(("surer", "winner"), [(14.44, "small"), (14.46, "large")])
def test_fused_wants_an_object_with_a_larger_box_to_be_surer(volume, fakes, names, surer, winner):
    """1000 against 27 voxels, 8 of them shared: 4 times their log ratio is 14.448."""
    large, small = sorted(names, key=lambda name: "large" not in name)
    parts = {large: (Box((2, 2, 2), (12, 12, 12)), 1 + surer), small: (Box((10, 10, 10), (13, 13, 13)), 1.0)}

    result = fused_blocks(volume, fakes, names, parts)
    assert result.mask(small).sum() == (27 if winner == "small" else 19)
    assert result.mask(large).sum() == (992 if winner == "small" else 1000)


@pytest.mark.parametrize("names", [("large", "small"), ("small", "a large one")])
def test_an_object_inside_another_keeps_its_voxels_though_the_other_is_surer(volume, fakes, names):
    large, small = sorted(names, key=lambda name: "large" not in name)
    parts = {large: (Box((2, 2, 2), (12, 12, 12)), 5.0), small: (Box((5, 5, 5), (8, 8, 8)), 0.1)}

    result = fused_blocks(volume, fakes, names, parts)
    assert result.mask(small).sum() == 27
    assert result.mask(large).sum() == 973


def test_without_a_drawn_box_that_of_what_was_found_counts():
    region = (slice(0, 9),) * 3
    logits = np.full((9, 9, 9), -1, np.float32)
    logits[1:3, 2:7, 4:8] = 2
    (found,) = _handicapped([Prediction(region, logits)], None)
    assert found.handicap == pytest.approx(BOX_WEIGHT * np.log(2 * 5 * 4))
    (drawn,) = _handicapped([Prediction(region, logits)], Box((0, 0, 0), (4, 5, 6)))
    assert drawn.handicap == pytest.approx(BOX_WEIGHT * np.log(120))
    assert _handicapped([], None) == []
    (nothing,) = _handicapped([Prediction(region, -np.abs(logits))], None)
    assert nothing.handicap == 0


def test_a_label_keeps_its_click_though_another_is_surer(volume, fakes):
    """Background clicks of a label exclude it; another label may be there."""

    def sure_of_two(image: torch.Tensor, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.full(image.shape, 5.0 if int((labels == 1).sum()) == 2 else 1.0)

    dual = dual_of(fakes.Network(sure_of_two), fakes.Network(sure_of_two))
    sure = Prompts((Click((10, 10, 8)), Click((10, 10, 9)), Click((6, 10, 8), False)))
    unsure = Prompts((Click((10, 10, 13)),))
    result = dual.segment(volume, {"sure": sure, "unsure": unsure}, "paper")
    assert result.mask("unsure")[10, 10, 13]
    assert result.mask("unsure")[10, 10, 12:15].all()
    assert result.mask("unsure")[6, 10, 8]
    assert result.mask("sure")[10, 10, 10]
    assert set(result.enforced) == {(10, 10, 13), (6, 10, 8)}


@st.composite
def requests(draw):
    shape = draw(st.tuples(*[st.integers(1, 12)] * 3))
    index = st.tuples(*[st.integers(0, n - 1) for n in shape])
    kinds = draw(st.dictionaries(index, st.tuples(st.sampled_from("abc"), st.booleans()), max_size=10))
    prompts = {}
    for label in "abc":
        clicks = tuple(Click(i, positive) for i, (name, positive) in kinds.items() if name == label)
        fg = sum(c.positive for c in clicks)
        boxed = draw(st.booleans())
        if boxed or fg:
            prompts[label] = Prompts(clicks, Box((0, 0, 0), shape) if boxed else None)
    strategy = draw(st.sampled_from(["paper", "global", "local", "fused"]))
    return shape, prompts, strategy, draw(st.integers(0, 2**31 - 1))


@given(requests())
@settings(max_examples=150)
def test_after_any_request_every_click_holds(fakes, request_):
    """Networks that answer noise, of one sign or of both, cannot break it."""
    shape, prompts, strategy, seed = request_
    bias = seed % 3 - 1

    def noise(image: torch.Tensor, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)) + 2 * bias

    volume = from_array(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    dual = dual_of(fakes.Network(noise, size=16), fakes.Network(noise))
    try:
        result = dual.segment(volume, prompts, strategy)
    except PromptError:
        return
    if strategy == "global":
        # Two foreground clicks without a box are corners of one, which lie beside the object.
        prompts = {label: given_prompts.with_corner_box() for label, given_prompts in prompts.items()}
    for label, given_prompts in prompts.items():
        for click in given_prompts.clicks:
            assert result.mask(label)[click.index] == click.positive
            if click.positive:
                assert_in_company(result.mask(label), click.index, prompts)


def assert_in_company(mask: np.ndarray, index: Index, prompts: dict[str, Prompts]) -> None:
    """A neighbour is in the mask too, unless other clicks are as near to every neighbour."""
    clicked = {c.index for p in prompts.values() for c in p.clicks} - {index}
    free = []
    for axis, step in itertools.product(range(3), (-1, 1)):
        p = tuple(v + step * (a == axis) for a, v in enumerate(index))
        if not all(0 <= v < n for v, n in zip(p, mask.shape, strict=True)):
            continue
        if mask[p]:
            return
        if all(sum(abs(a - b) for a, b in zip(p, other, strict=True)) > 1 for other in clicked):
            free.append(p)
    assert not free
