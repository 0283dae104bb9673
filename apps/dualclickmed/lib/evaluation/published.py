"""Published interactive networks as methods, as their authors' challenge programs run them. They are peers
for comparison: each gets the input that its own program gives it, even where that costs accuracy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.apps.vista3d.inferer import point_based_window_inferer
from monai.networks.nets.vista3d import VISTA3D, vista3d132
from torch import Tensor, nn

from ..byte_cache import ByteCache
from ..errors import UserError, WeightsError
from ..experts.devices import resolved_device
from ..experts.inputs import map_at_points, map_in_box
from ..imaging.geometry import Box, Index, Roi, crop_to_grid, paste_from_grid
from ..imaging.intensity import LOCAL_PERCENTILES, normalise_global
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import Volume
from ..networks.build import build_global
from ..networks.configs import GlobalConfig
from ..networks.global_network import GlobalNetwork
from ..weights.checkpoints import read_tensors
from ..weights.convert import PUBLISHED
from ..weights.files import differences
from .metrics import Mask

SAM_SPACING = 1.5
"""Millimetres that SAM-Med3D's program resamples to."""
SAM_SIDE = 128
SAM_CUBE = 10
"""Its click is drawn from the voxels at most so far from the given one along each axis."""
SAM_QUALITY = 256
"""Width of the quality head of the published checkpoint."""
VISTA_WINDOW = (128, 128, 128)
_REMEMBERED_BYTES = 1 << 28


class SamMed3d:
    """SAM-Med3D by its authors' challenge program.

    The image is resampled to 1.5 mm; the window of 128 voxels is centred on the newest prompt; the network is
    given one click at random within 10 voxels of it and the last mask, of zeros and ones, as if they were
    logits; what it finds is added to the last mask. The box counts as a click on its centre. The program
    takes foreground clicks before background ones and looks at the last: once a background click came,
    nothing changes any more.

    Args:
        weights: a SAM-Med3D checkpoint (patches of 16^3).
        device: torch device.
        seed: of the click.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """

    def __init__(self, weights: Path, device: str = "cpu", seed: int = 0) -> None:
        self.device = torch.device(resolved_device(device))
        self.network = sam_med3d(read_tensors(weights), weights).to(self.device).eval()
        self.seed = seed
        self._masks = ByteCache(_REMEMBERED_BYTES)

    def __call__(self, volume: Volume, prompts: Prompts) -> Mask:
        """The mask of one object: every prompt is replayed in its order, or taken from the last call."""
        return self._after(volume, prompts.box, prompts.clicks)

    def _after(self, volume: Volume, box: Box | None, clicks: Sequence[Click]) -> Mask:
        key = (volume.key, box, tuple(clicks))
        return self._masks.get(key, lambda: self._made(volume, box, clicks))

    def _made(self, volume: Volume, box: Box | None, clicks: Sequence[Click]) -> Mask:
        if clicks and (box is not None or len(clicks) > 1):
            last = self._after(volume, box, clicks[:-1])
        else:
            last = np.zeros(volume.shape, dtype=np.bool_)
        if not all(click.positive for click in clicks):
            return last
        if clicks:
            return last | self._predict(volume, clicks[-1].index, last, box)
        if box is None:
            return last
        centre = [min(int(p), n - 1) for p, n in zip(box.centre, volume.shape, strict=True)]
        return last | self._predict(volume, (centre[0], centre[1], centre[2]), last, box)

    @torch.inference_mode()
    def _predict(self, volume: Volume, index: Index, last: Mask, box: Box | None) -> Mask:
        roi = _window(index, volume)
        intensity = map_at_points(volume, [index], "auto") if box is None else map_in_box(volume, box, "auto")
        grey = crop_to_grid(volume.array, roi, lambda v: intensity(volume.to_real(v)), antialias=False)
        image = normalise_global(grey)[None, None].to(self.device)
        previous = crop_to_grid(last, Roi(roi.box, (SAM_SIDE // 4,) * 3), antialias=False) >= 0.5
        point = self._drawn(index, volume.shape)
        points = torch.from_numpy(roi.to_grid([point]).astype(np.float32))[None].to(self.device)
        labels = torch.ones(1, 1, dtype=torch.int64, device=self.device)
        logits = self.network.decode(
            self.network.encode(image), points, labels, previous.float()[None, None].to(self.device)
        )
        fine = nn.functional.interpolate(logits, size=(SAM_SIDE,) * 3, mode="trilinear", align_corners=False)
        mask = np.zeros(volume.shape, dtype=np.bool_)
        region, values = paste_from_grid(fine[0, 0].float().cpu(), roi, volume.shape)
        mask[region] = values.numpy() > 0
        return mask

    def _drawn(self, index: Index, shape: Index) -> Index:
        generator = np.random.default_rng([self.seed, *index])
        z, y, x = (
            int(generator.integers(max(p - SAM_CUBE, 0), min(p + SAM_CUBE + 1, n)))
            for p, n in zip(index, shape, strict=True)
        )
        return z, y, x


class Vista3d:
    """VISTA3D's point branch by MONAI's own network and window inferer, as in its challenge program.

    Intensities between the volume's percentiles 1 and 99, a window of 128 voxels around every click, each
    with all clicks. The program does not know boxes: until there is a click the box's centre stands for one.

    Args:
        weights: a VISTA3D checkpoint; what only the automatic branch needs may be missing.
        device: torch device.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        self.device = torch.device(resolved_device(device))
        self.network = vista3d(read_tensors(weights), weights).to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, volume: Volume, prompts: Prompts) -> npt.NDArray[np.float32]:
        """Logits of one object; 0 in voxels that no window covers."""
        clicks: Sequence[Click] = prompts.clicks
        if not clicks:
            z, y, x = (
                min(int(p), n - 1) for p, n in zip(prompts.enclosing_box().centre, volume.shape, strict=True)
            )
            clicks = [Click((z, y, x), True)]
        low, high = (volume.percentile(q) for q in LOCAL_PERCENTILES)
        whole = (slice(0, volume.shape[0]), slice(0, volume.shape[1]), slice(0, volume.shape[2]))
        image = ((volume.region(whole) - low) / max(high - low, 1e-6)).clamp(0, 1)
        logits = point_based_window_inferer(
            inputs=image[None, None].to(self.device),
            roi_size=VISTA_WINDOW,
            predictor=self.network,
            point_coords=torch.tensor([[c.index for c in clicks]], device=self.device),
            point_labels=torch.tensor([[int(c.positive) for c in clicks]], device=self.device),
            transpose=True,
        )
        return torch.nan_to_num(torch.as_tensor(logits)[0, 0]).float().cpu().numpy()


class PublishedNnInteractive:
    """nnInteractive through its own package, as its challenge program uses it.

    Args:
        model: folder of the trained model.
        device: torch device.

    Raises:
        UserError: the package or the model is not there.
    """

    def __init__(self, model: Path, device: str = "cpu") -> None:
        try:
            from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
        except ImportError as error:
            raise UserError(
                "The method 'nninteractive' needs the package of that name: 'pip install nninteractive'."
            ) from error
        if not model.is_dir():
            raise UserError(f"nnInteractive's model must be a folder, but there is none at '{model}'.")
        self._session = nnInteractiveInferenceSession(
            device=torch.device(resolved_device(device)),
            use_torch_compile=False,
            verbose=False,
            do_autozoom=True,
        )
        self._session.initialize_from_trained_model_folder(str(model))
        self._volume = ""

    def __call__(self, volume: Volume, prompts: Prompts) -> Mask:
        """The mask of one object: box, then clicks in their order, each with a prediction."""
        whole = (slice(0, volume.shape[0]), slice(0, volume.shape[1]), slice(0, volume.shape[2]))
        if self._volume != volume.key:
            self._session.set_image(volume.region(whole).numpy()[None])
            self._volume = volume.key
        self._session.set_target_buffer(torch.zeros(volume.shape, dtype=torch.uint8))
        self._session.reset_interactions()
        if prompts.box is not None:
            self._give_box([[s.start, s.stop] for s in prompts.box.voxels(volume.shape)])
        for click in prompts.clicks:
            self._session.add_point_interaction(click.index, include_interaction=click.positive)
        return self._session.target_buffer.cpu().numpy() > 0

    def _give_box(self, box: list[list[int]]) -> None:
        try:
            self._session.add_bbox_interaction(box, include_interaction=True)
        except ValueError:
            # Models before version 2 know flat boxes only; the middle slice's is what the challenge gives.
            middle = sum(box[0]) // 2
            flat = [[middle, middle + 1], *box[1:]]
            self._session.add_bbox_interaction(flat, include_interaction=True)


def sam_med3d(tensors: dict[str, Tensor], source: Path) -> GlobalNetwork:
    """SAM-Med3D in its published size, filled from a checkpoint; its first mask is the answer.

    Raises:
        WeightsError: names or shapes differ.
    """
    paper = PUBLISHED["global"]
    assert isinstance(paper, GlobalConfig)
    quality = tensors.get("mask_decoder.iou_prediction_head.layers.0.weight")
    masks = tensors.get("mask_decoder.mask_tokens.weight")
    config = dataclasses.replace(
        paper,
        image_size=2 * paper.image_size,
        patch=2 * paper.patch,
        mask_tokens=4 if masks is None else len(masks),
        iou_head=SAM_QUALITY if quality is None else len(quality),
    )
    network = build_global(config)
    assert isinstance(network, GlobalNetwork)
    expected = network.state_dict()
    found = {name: value.float() for name, value in tensors.items() if name in expected}
    # Nothing refers to the embeddings of box corners, which some checkpoints leave out.
    unused = {
        n: torch.zeros_like(v)
        for n, v in expected.items()
        if n.startswith("prompt_encoder.point_embeddings.")
    }
    _require({n: v for n, v in expected.items() if n not in unused or n in found}, found, source, "SAM-Med3D")
    network.load_state_dict({**unused, **found})
    return network


def vista3d(tensors: dict[str, Tensor], source: Path) -> VISTA3D:
    """MONAI's VISTA3D, filled from a checkpoint.

    Raises:
        WeightsError: names or shapes of what clicks need differ.
    """
    first = tensors.get("image_encoder.encoder.conv_init.weight")
    network = vista3d132(encoder_embed_dim=48 if first is None else len(first))
    expected = network.state_dict()
    automatic = (
        "class_head.",
        "image_encoder.up_layers_auto.",
        "point_head.mask_downsample",
        "point_head.class_emb",
    )
    needed = {name: value for name, value in expected.items() if not name.startswith(automatic)}
    found = {name: value.float() for name, value in tensors.items() if name in expected}
    _require(needed, {name: value for name, value in found.items() if name in needed}, source, "VISTA3D")
    network.load_state_dict(found, strict=False)
    return network


def _require(expected: dict[str, Tensor], found: dict[str, Tensor], source: Path, kind: str) -> None:
    wrong = differences(expected, found)
    if wrong:
        raise WeightsError(f"'{source}' must hold {kind}'s weights as published, but {wrong}.")


def _window(index: Index, volume: Volume) -> Roi:
    """128 cells of 1.5 mm about a voxel."""
    sides = [SAM_SIDE * SAM_SPACING / s for s in volume.spacing]
    lo = [p + 0.5 - side / 2 for p, side in zip(index, sides, strict=True)]
    hi = [a + side for a, side in zip(lo, sides, strict=True)]
    return Roi(Box.between(lo, hi), (SAM_SIDE,) * 3)
