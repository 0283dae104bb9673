"""Scores of unlabelled images: how far the two experts disagree, and how many clicks are expected.

Nobody has clicked in such an image yet. Prompts come from the learned positions and sizes of labels
(`prior.propose`): a box for the global expert, and for the local one a click in the middle of what the global
one found there.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from ..atomic_files import write_text
from ..errors import UserError
from ..evaluation.metrics import dice, next_click
from ..experts import DualExpert
from ..experts.prediction import Prediction
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from .prior import Prior, propose

logger = logging.getLogger(__name__)

FILE = "scores.json"
TARGET = 0.85
"""Dice at which an annotator stops."""
GAIN = 0.03
"""Dice that a corrective click gains, where no training has measured it."""
MOST_IMAGES, MOST_SECONDS = 50, 600.0


@dataclass(frozen=True)
class Score:
    """Of one image.

    Attributes:
        disagreement: 1 minus the Dice of the two experts' masks, the mean over the labels.
        expected_clicks: corrections until every label has Dice `TARGET`, in sum, by the global expert's own
            probabilities.
        time: seconds since the epoch.
    """

    disagreement: float
    expected_clicks: float
    time: float


def score_image(volume: Volume, prior: Prior, expert: DualExpert, gain: float = GAIN) -> Score | None:
    """The score of an image; None where no learned label is expected in it, or none is found.

    Args:
        volume: the image.
        prior: learned positions and sizes of labels.
        expert: with both experts.
        gain: Dice that a corrective click gains.
    """
    assert expert.global_expert is not None
    disagreements, clicks = [], 0.0
    for prompts in propose(prior, volume, expert).values():
        given = prompts.checked(volume.shape)
        found = expert.global_expert.expert_for(volume, given).predict(volume, given)
        mask = _mask(found, volume.shape)
        if not mask.any():
            clicks += TARGET / gain
            disagreements.append(1.0)
            continue
        clicks += max(0.0, TARGET - expected_dice(found)) / gain
        middle = next_click(np.zeros_like(mask), mask)
        assert middle is not None
        other = expert.segment(volume, {"label": Prompts((middle,))}, "local").labels > 0
        disagreements.append(1.0 - dice(mask, other))
    if not disagreements:
        return None
    return Score(round(float(np.mean(disagreements)), 4), round(clicks, 2), time.time())


def expected_dice(found: Sequence[Prediction]) -> float:
    """The Dice that a mask would have on average if each voxel's probability were true."""
    both = inside = total = 0.0
    for part in found:
        probability = expit(part.logits.astype(np.float64))
        mask = part.logits > 0
        both += float(probability[mask].sum())
        inside += float(mask.sum())
        total += float(probability.sum())
    return 2 * both / (inside + total) if inside else 0.0


def score_images(
    images: Mapping[str, Callable[[], Volume]],
    folder: Path,
    prior: Prior,
    expert: DualExpert,
    gain: float = GAIN,
    most: int = MOST_IMAGES,
    seconds: float = MOST_SECONDS,
) -> dict[str, Score]:
    """Score images, those without a score or with the oldest one first, and keep the scores in a folder.

    Args:
        images: id to what loads the image.
        folder: that the scores are kept in.
        prior, expert, gain: as for `score_image`.
        most, seconds: bounds of one call.

    Returns:
        The scores that were made now.
    """
    kept = load_scores(folder)
    order = sorted(images, key=lambda image: (kept[image].time if image in kept else 0.0, image))
    begin, made = time.monotonic(), dict[str, Score]()
    for image in order[:most]:
        if time.monotonic() - begin > seconds:
            break
        try:
            score = score_image(images[image](), prior, expert, gain)
        except UserError as error:
            logger.warning("The image %s was not scored: %s", image, error)
            continue
        if score is not None:
            made[image] = score
    _save(folder, {**kept, **made})
    logger.info("Scored %d of %d images in %.0f s", len(made), len(images), time.monotonic() - begin)
    return made


def load_scores(folder: Path) -> dict[str, Score]:
    """What `score_images` kept; empty where there is nothing or it is damaged."""
    try:
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {str(image): Score(**score) for image, score in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged and is made anew (%s)", folder / FILE, error)
        return {}


def gain_of(card: Mapping[str, Any]) -> float:
    """What a corrective click gains, as the gate measured it before weights were published."""
    after = card.get("measured", {}).get("after", {})
    curves = list(after.get("labels", {}).values()) if isinstance(after, Mapping) else []
    if not curves or min(len(curve) for curve in curves) < 2:
        return GAIN
    return max(0.01, float(np.mean([(curve[-1] - curve[0]) / (len(curve) - 1) for curve in curves])))


def _save(folder: Path, scores: Mapping[str, Score]) -> None:
    write_text(folder / FILE, json.dumps({image: asdict(score) for image, score in scores.items()}))


def _mask(found: Sequence[Prediction], shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(tuple(shape), dtype=np.bool_)
    for part in found:
        mask[part.region] |= part.logits > 0
    return mask
