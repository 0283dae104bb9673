"""SegVol (Du et al., 2024) as a method of an evaluation, through a clone of its repository.

Facts from BAAI-DCAI/SegVol (`inference_demo.py`, `data_process/demo_data_process.py`, `network/model.py`):
arrays are (z, y, x) with y to the front and x to the right; intensities are clipped at the 0.05th and 99.95th
percentile of what is brighter than the mean, standardised by those voxels, and brought to 0 to 1. The whole
image, shrunk to 32 x 256 x 256, gives a first mask; the region about it is segmented again in windows of that
size. Its text prompt is not used.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..experts.devices import resolved_device
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from .metrics import Mask

SIZE, PATCH = (32, 256, 256), (4, 16, 16)
OVERLAP = 0.5
WEIGHTS = "SegVol_v1.pth"
CLIP = "config/clip"
_PACKAGES = ("segment_anything_volumetric", "network.model", "utils.monai_inferers_utils")


class SegVolMethod:
    """The method `segvol=CLONE` or `segvol=CLONE,WEIGHTS`.

    Args:
        text: CLONE, a folder with the repository, and the checkpoint (default: SegVol_v1.pth in it).
        device: torch device. The clone's own code moves tensors to a GPU in places.

    Raises:
        UserError: the clone or the weights are not there, or can't be loaded.
    """

    def __init__(self, text: str, device: str = "cpu") -> None:
        clone, _, named = text.partition(",")
        self.clone, self.weights = Path(clone), Path(named or Path(clone) / WEIGHTS)
        for path, what in (
            (self.clone / "network", "clone of SegVol"),
            (self.weights, "checkpoint of SegVol"),
        ):
            if not path.exists():
                raise UserError(f"The method 'segvol' needs a {what}, but there is no '{path}'.")
        self.device = torch.device(resolved_device(device))
        try:
            registry, model, self.windows = self._modules()
            self.network = self._network(registry, model)
        except Exception as error:
            raise UserError(
                f"SegVol can't be loaded from '{clone}': {type(error).__name__}: {error}."
            ) from error
        self._prepared: tuple[str, Tensor] = ("", torch.empty(0))

    def _modules(self) -> list[ModuleType]:
        sys.path.insert(0, str(self.clone.resolve()))
        try:
            return [importlib.import_module(name) for name in _PACKAGES]
        finally:
            sys.path.pop(0)

    def _network(self, registry: Any, model: Any) -> Any:
        settings = argparse.Namespace(
            spatial_size=SIZE, patch_size=PATCH, test_mode=True, infer_overlap=OVERLAP
        )
        sam = registry.sam_model_registry["vit"](args=settings)
        network = model.SegVol(
            image_encoder=sam.image_encoder,
            mask_decoder=sam.mask_decoder,
            prompt_encoder=sam.prompt_encoder,
            clip_ckpt=str(self.clone / CLIP),
            roi_size=SIZE,
            patch_size=PATCH,
            test_mode=True,
        )
        state = torch.load(self.weights, map_location="cpu", weights_only=True)["model"]
        network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        return network.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, volume: Volume, prompts: Prompts) -> Mask:
        """The mask of one object."""
        if self._prepared[0] != volume.key:
            self._prepared = (volume.key, normalised(volume))
        image = self._prepared[1]
        whole = F.interpolate(image, SIZE, mode="trilinear", align_corners=False).to(self.device)
        box, points = self._given(volume.shape, prompts)
        small = self.network(whole, text=None, boxes=box, points=points)
        logits = F.interpolate(small.cpu().float(), volume.shape, mode="nearest")[0, 0]
        corners = self.windows.logits2roi_coor(SIZE, logits)
        if corners[0] is not None:
            low, high = corners[:3], corners[3:]
            at = tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
            logits[at] = self._again(image, logits, at, box, points)
        return np.ascontiguousarray(_turned(logits).numpy() > 0)

    def _given(self, shape: Any, prompts: Prompts) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Box (1, 6) and points with labels, in voxels of the shrunk image."""
        scale = np.divide(SIZE, shape)
        box = points = None
        if prompts.box is not None:
            lo, hi = (np.asarray(corner, float) for corner in (prompts.box.lo, prompts.box.hi))
            # The axes y and x are reversed.
            turned_lo = np.array([lo[0], shape[1] - hi[1], shape[2] - hi[2]])
            turned_hi = np.array([hi[0], shape[1] - lo[1], shape[2] - lo[2]])
            edges = np.concatenate([turned_lo * scale, turned_hi * scale - 1])
            box = torch.tensor(edges, dtype=torch.float32, device=self.device)[None]
        if prompts.clicks:
            places = [
                [c.index[0], shape[1] - 1 - c.index[1], shape[2] - 1 - c.index[2]] for c in prompts.clicks
            ]
            coordinates = (np.asarray(places) + 0.5) * scale - 0.5
            signs = [float(c.positive) for c in prompts.clicks]
            points = (
                torch.tensor(coordinates, dtype=torch.float32, device=self.device)[None],
                torch.tensor(signs, device=self.device)[None],
            )
        return box, points

    def _again(self, image: Tensor, logits: Tensor, at: Any, box: Any, points: Any) -> Tensor:
        """The region at full size, in windows. The clone's windows take a box or points, not both."""
        if box is not None:
            drawn = self.windows.build_binary_cube(box.cpu(), binary_cube_shape=SIZE)
        else:
            drawn = self.windows.build_binary_points(points[0][0].cpu(), points[1][0].cpu(), SIZE)
        full = F.interpolate(drawn[None, None].float(), logits.shape, mode="nearest")[0, 0]
        first = (logits[at] > 0).long()
        found = self.windows.sliding_window_inference(
            image[(slice(None), slice(None), *at)].to(self.device),
            (full[at][None, None], first[None, None]),
            SIZE,
            1,
            self.network,
            OVERLAP,
            text=None,
            use_box=box is not None,
            use_point=box is None,
        )
        return found.cpu().float().reshape(logits[at].shape)


def normalised(volume: Volume) -> Tensor:
    """(1, 1, D, H, W) as SegVol expects it."""
    whole = tuple(slice(0, n) for n in volume.shape)
    values = volume.region(whole).float()  # type: ignore[arg-type]
    bright = values[values > values.mean()]
    if bright.numel():
        array = bright.numpy()
        low, high = (float(np.percentile(array, at)) for at in (0.05, 99.95))
        values = (values.clamp(low, high) - float(array.mean())) / max(float(array.std()), 1e-8)
    least, most = float(values.min()), float(values.max())
    values = (values - least) / max(most - least, 1e-8)
    return _turned(values)[None, None]


def _turned(array: Tensor) -> Tensor:
    return array.flip(1, 2)
