"""The rounds of clicks: what the network is shown, in which order, and how often the image is encoded."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from dualclickmed.simulation.clicks import Draws
from dualclickmed.simulation.rounds import GlobalRounds, LocalRounds, Targets, global_rounds, local_rounds

GRID = 16


class GlobalRecorder:
    """Predicts nothing until the first click and records what it is shown."""

    config = SimpleNamespace(box_label=2)

    def __init__(self, mask: int = GRID) -> None:
        self.mask = mask
        self.shown: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def decode(self, features, points, labels, mask) -> torch.Tensor:
        self.shown.append((points.clone(), labels.clone(), mask))
        return torch.full((len(points), 1, *(self.mask,) * 3), -float(len(self.shown)))

    def to_mask_prompt(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool3d(logits, 2)


def task() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    truth = torch.zeros(2, GRID, GRID, GRID, dtype=torch.bool)
    truth[0, 4:12, 4:12, 4:12] = True
    truth[1, 2:9, 5:14, 6:10] = True
    return torch.zeros(2, 1, GRID, GRID, GRID), truth, torch.ones_like(truth)


def seeded(seed: int) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


class Repeated:
    """Stands for encoded images."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def expand(self, times: int) -> Repeated:
        self.asked.append(times)
        return self


def run(network: GlobalRecorder, rounds: GlobalRounds, seed: int = 0, **more) -> list[torch.Tensor]:
    _, truth, valid = task()
    return list(global_rounds(network, Repeated(), Targets(truth, valid), rounds, seeded(seed), **more))


def test_thirty_masks_of_at_most_six_prompts_on_one_embedding() -> None:
    network, rounds = GlobalRecorder(), GlobalRounds(5, 6)
    outputs = run(network, rounds)
    # One decoding for the box and one of B x 6 for each interaction.
    assert [tuple(o.shape[:2]) for o in outputs] == [(2, 1)] + [(2, 6)] * 5
    assert sum(o.shape[1] for o in outputs) == rounds.masks == 31
    points, labels, mask = network.shown[0]
    assert points.tolist() == [[[7.5, 7.5, 7.5]]] * 2 and labels.tolist() == [[2], [2]] and mask is None
    assert [tuple(p.shape) for p, _, _ in network.shown] == [(2, 1, 3)] + [(12, n, 3) for n in range(2, 7)]


def test_the_points_of_an_interaction_are_alternatives_and_it_goes_on_from_the_first() -> None:
    network = GlobalRecorder()
    outputs = run(network, GlobalRounds(3, 4), seed=1)
    _, truth, _ = task()
    for turn in range(1, 4):
        points, labels, prompt = network.shown[turn]
        by_image, kinds = points.unflatten(0, (2, 4)), labels.unflatten(0, (2, 4))
        for image in range(2):
            # The same history, another newest click that carries the truth.
            assert (by_image[image, :, :-1] == by_image[image, :1, :-1]).all()
            newest = [tuple(p) for p in by_image[image, :, -1].long().tolist()]
            assert len(set(newest)) == 4
            assert kinds[image, :, -1].tolist() == [int(truth[image][p]) for p in newest]
            if turn > 1:
                before, known = network.shown[turn - 1][:2]
                assert torch.equal(by_image[image, 0, :-1], before.unflatten(0, (2, 4))[image, 0])
                assert torch.equal(kinds[image, 0, :-1], known.unflatten(0, (2, 4))[image, 0])
        # All see one mask prompt of their image, the first mask or the first alternative before.
        assert prompt is not None
        prompt = prompt.unflatten(0, (2, 4)).mean(dim=(2, 3, 4, 5))
        assert (prompt == prompt[:, :1]).all()
        assert float(prompt[0, 0]) in (float(outputs[0].mean()), float(outputs[turn - 1][0, 0].mean()))


def test_a_chain_adds_one_click_with_every_mask() -> None:
    network, rounds = GlobalRecorder(), GlobalRounds(5, 6, "chain")
    assert len(run(network, rounds)) == 31 == rounds.masks
    # One click more with every mask; earlier ones stay.
    assert [p.shape[1] for p, _, _ in network.shown] == list(range(1, 32))
    assert torch.equal(network.shown[-1][0][:, :30], network.shown[-2][0])


def test_one_point_is_the_same_chain_or_alternative() -> None:
    shown = []
    for mode in ("chain", "alternatives"):
        network = GlobalRecorder()
        run(network, GlobalRounds(4, 1, mode), seed=6)
        shown.append([p for p, _, _ in network.shown])
    assert all(torch.equal(a, b) for a, b in zip(*shown, strict=True))


def test_clicks_of_one_interaction_share_its_mask_prompt() -> None:
    network = GlobalRecorder()
    run(network, GlobalRounds(3, 4, "chain"), seed=1)
    prompts = [float(mask.mean()) for _, _, mask in network.shown[1:]]  # type: ignore[union-attr]
    for turn in range(3):
        # The recorder's k-th output is -k: the prompt is the first mask or the one before the interaction.
        assert len(set(prompts[4 * turn : 4 * turn + 4])) == 1
        assert prompts[4 * turn] in (-1.0, -float(1 + 4 * turn))


def test_together_adds_several_clicks_and_predicts_once() -> None:
    network = GlobalRecorder()
    rounds = GlobalRounds(6, 4, "together")
    assert len(run(network, rounds, seed=2)) == 7 == rounds.masks
    counts = [p.shape[1] for p, _, _ in network.shown]
    added = [b - a for a, b in pairwise(counts)]
    assert set(added) <= {1, 2, 3, 4} and len(set(added)) > 1


def test_small_masks_come_back_on_the_grid() -> None:
    outputs = run(GlobalRecorder(mask=8), GlobalRounds(1, 1))
    assert outputs[0].shape == (2, 1, GRID, GRID, GRID)
    assert outputs[0].unique().tolist() == pytest.approx([-1.0])


class Windows:
    """Stands for encoded windows."""

    def index(self, owner: torch.Tensor) -> Windows:
        self.owner = owner
        return self


class LocalRecorder:
    def __init__(self) -> None:
        self.shown: list[tuple[torch.Tensor, torch.Tensor]] = []

    def decode(self, features, points, labels) -> torch.Tensor:
        """Foreground within three voxels of any positive click, background elsewhere."""
        self.shown.append((points.clone(), labels.clone()))
        grid = torch.stack(torch.meshgrid(*[torch.arange(GRID)] * 3, indexing="ij"), dim=-1).float()
        logits = torch.full((len(points), 1, GRID, GRID, GRID), -4.0)
        for sample in range(len(points)):
            for point, label in zip(points[sample], labels[sample], strict=True):
                if label == 1:
                    logits[sample, 0][(grid - point).abs().amax(dim=-1) <= 1] = 4.0
        return logits


def test_the_local_prediction_is_updated_between_clicks() -> None:
    _, truth, valid = task()
    network, windows = LocalRecorder(), Windows()
    first = torch.tensor([[[8, 8, 8]], [[5, 9, 8]]])
    owner, rounds = torch.tensor([0, 0]), LocalRounds(5)
    outputs = list(local_rounds(network, windows, Targets(truth, valid), owner, first, rounds, seeded(3)))
    assert windows.owner.tolist() == [0, 0]
    assert [p.shape[1] for p, _ in network.shown] == [1, 2, 3, 4, 5]
    assert (network.shown[0][1] == 1).all()
    # Every new click is an error of the mask before it, not of the first mask.
    for turn in range(1, 5):
        points, labels = network.shown[turn]
        before = outputs[turn - 1][:, 0] > 0
        for sample in range(2):
            z, y, x = points[sample, -1].long().tolist()
            assert bool(before[sample, z, y, x]) != bool(truth[sample, z, y, x])
            assert int(labels[sample, -1]) == int(truth[sample, z, y, x])


def test_the_newest_click_alone_when_the_others_are_held_back() -> None:
    network = GlobalRecorder()
    run(network, GlobalRounds(1, 3, "chain", last_only=True))
    assert [p.shape[1] for p, _, _ in network.shown] == [1, 1, 1, 1]
    shown = [p[0, 0].tolist() for p, _, _ in network.shown[1:]]
    everything = GlobalRecorder()
    run(everything, GlobalRounds(1, 3, "chain"))
    assert shown == everything.shown[-1][0][0, 1:].tolist()


def test_further_first_prompts_stay_with_every_mask() -> None:
    network = GlobalRecorder()
    first = torch.tensor([[[1.0, 2, 3]], [[0, 0, 0]]]), torch.tensor([[1], [-1]])
    run(network, GlobalRounds(1, 1), first=first)
    for points, labels, _ in network.shown:
        assert points[0, 1].tolist() == [1, 2, 3] and labels[:, 1].tolist() == [1, -1]
