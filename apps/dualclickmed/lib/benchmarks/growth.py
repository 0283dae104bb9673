"""The cost of a click by size of the volume and number of clicks, through both experts as in the server."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from ..byte_cache import ByteCache
from ..experts import DualExpert, GlobalExpert, LocalExpert
from ..imaging.geometry import Box, Index
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import Volume, from_array, load_volume
from ..networks.build import build_global, build_local
from ..networks.configs import GlobalConfig, LocalConfig
from ..predictor import CACHE_BYTES, Predictor
from ..weights.files import default_path, save_expert
from .measure import forget_peak, least_seconds, peak_bytes, resting_bytes

SIDE = 48
"""Of the object's box, in voxels: the same in every volume."""
WHOLE_VOLUME_STAGES = ("merge", "enforce")
"""Stages of an answer that write the full-size label map."""


@dataclass(frozen=True)
class VolumeCost:
    """Cost of loading one volume, and of a click in it.

    Attributes:
        shape: (D, H, W).
        expert: "global" or "local".
        nbytes: size of the loaded voxels.
        load_seconds: time of loading.
        copies: most memory while loading, above what was held before, in multiples of `nbytes`.
        first_seconds: time of a click in a new region.
        same_seconds: time of one more click in the same region.
        result_seconds: the part of a click's time that makes the full-size label map.
    """

    shape: Index
    expert: str
    nbytes: int
    load_seconds: float
    copies: float
    first_seconds: float
    same_seconds: float
    result_seconds: float


@dataclass(frozen=True)
class ClickCost:
    """Seconds for one object by number of clicks: nothing cached, one click more, the same request again."""

    clicks: int
    expert: str
    first_seconds: float
    more_seconds: float
    again_seconds: float


@dataclass(frozen=True)
class ServerMemory:
    """Bytes of a process that answers: of the volume, before and after loading weights, and at most."""

    preset: str
    precision: str
    volume: int
    libraries: int
    loaded: int
    peak: int

    @property
    def above_volume(self) -> int:
        """The most memory at any time, without the volume's, in bytes."""
        return self.peak - self.volume


def volume_costs(shape: Index, configs: tuple[GlobalConfig, LocalConfig], repeats: int) -> list[VolumeCost]:
    """Clicks in a volume of this shape, for each expert."""
    array = synthetic(shape)
    forget_peak()
    before = peak_bytes()
    load_seconds = least_seconds(lambda: from_array(array, modality="ct"), 1)
    copies = (peak_bytes(least=before) - before) / array.nbytes
    volume = from_array(array, modality="ct")
    dual, cache = random_experts(configs)
    found = []
    for expert in ("global", "local"):
        one, two = growing_prompts(dual, volume, expert, 2)
        dual.segment(volume, one)  # reads the volume's percentiles, once

        def first(one: dict[str, Prompts] = one) -> None:
            dual.segment(volume, one)

        def further(two: dict[str, Prompts] = two) -> None:
            dual.segment(volume, two)

        def one_click(one: dict[str, Prompts] = one) -> None:
            cache.clear()
            first(one)

        first_seconds = least_seconds(first, repeats, before=cache.clear)
        same_seconds = least_seconds(further, repeats, before=one_click)
        stages = [dual.segment(volume, two).stages for _ in range(repeats)]
        result = min(sum(s[name] for name in WHOLE_VOLUME_STAGES) for s in stages)
        found.append(
            VolumeCost(
                shape, expert, volume.nbytes, load_seconds, copies, first_seconds, same_seconds, result
            )
        )
    return found


def click_costs(
    counts: list[int], side: int, configs: tuple[GlobalConfig, LocalConfig], repeats: int
) -> list[ClickCost]:
    """One object with more and more clicks in a cube of `side` voxels, for each expert."""
    shape = (side, side, side)
    volume = from_array(synthetic(shape), modality="ct")
    dual, cache = random_experts(configs)
    found = []
    for expert in ("global", "local"):
        growing = growing_prompts(dual, volume, expert, max(counts) + 1)
        for count in counts:
            given, more = growing[count - 1], growing[count]

            def anew(given: dict[str, Prompts] | None = None) -> None:
                cache.clear()
                if given is not None:
                    dual.segment(volume, given)

            def first(given: dict[str, Prompts] = given) -> None:
                dual.segment(volume, given)

            def further(more: dict[str, Prompts] = more) -> None:
                dual.segment(volume, more)

            first_seconds = least_seconds(first, repeats, before=anew)
            more_seconds = least_seconds(further, repeats, before=partial(anew, given))
            again_seconds = least_seconds(further, repeats)
            found.append(ClickCost(count, expert, first_seconds, more_seconds, again_seconds))
    return found


def write_server_files(
    folder: Path, preset: str, configs: tuple[GlobalConfig, LocalConfig], shape: Index
) -> None:
    """Random weights of both experts and an image, for `server_memory`."""
    torch.manual_seed(0)
    save_expert(build_global(configs[0]), "global", default_path("global", preset, folder), {})
    save_expert(build_local(configs[1]), "local", default_path("local", preset, folder), {})
    nib.save(nib.Nifti1Image(synthetic(shape).T, np.eye(4)), folder / "image.nii")


def server_memory(folder: Path, preset: str, precision: str) -> ServerMemory:
    """Load an image and both experts in a process with the server's libraries, and answer twice."""
    import monailabel.interfaces.app  # noqa: F401 (for its memory)

    libraries = resting_bytes()
    forget_peak()
    predictor = Predictor.from_weights(
        default_path("global", preset, folder),
        default_path("local", preset, folder),
        device="cpu",
        precision=precision,
    )
    loaded = resting_bytes()
    volume = load_volume(folder / "image.nii", "ct")
    predictor.set_image(volume)
    centre = [n // 2 for n in volume.raw_shape]
    edges = [edge for middle in centre for edge in (middle - SIDE // 2, middle + SIDE // 2)]
    predictor.predict(box=edges)
    predictor.predict(points=[centre])
    predictor.predict(points=[centre, [n + 5 for n in centre]])
    return ServerMemory(preset, precision, volume.nbytes, libraries, loaded, peak_bytes(least=loaded))


def measure_server(
    preset: str, precision: str, configs: tuple[GlobalConfig, LocalConfig], shape: Index, threads: int
) -> ServerMemory:
    """`server_memory` on files made for it."""
    from .measure import in_process

    with tempfile.TemporaryDirectory() as folder:
        in_process(threads, write_server_files, Path(folder), preset, configs, shape)
        return in_process(threads, server_memory, Path(folder), preset, precision)


def synthetic(shape: Index) -> npt.NDArray[np.int16]:
    """A volume (D, H, W) of texture and a bright cube in its middle, made quickly."""
    rng = np.random.default_rng(0)
    plane = rng.integers(-200, 200, shape[1:], dtype=np.int16)
    volume = np.empty(shape, dtype=np.int16)
    for z in range(shape[0]):
        volume[z] = np.roll(plane, 7 * z, axis=0)
    volume[tuple(slice(n // 2 - SIDE // 2, n // 2 + SIDE // 2) for n in shape)] += 300
    volume[0, 0, :2] = (-1000, 2000)
    return volume


def random_experts(configs: tuple[GlobalConfig, LocalConfig]) -> tuple[DualExpert, ByteCache]:
    """Both experts with random weights, and the cache that they share."""
    torch.manual_seed(0)
    cache = ByteCache(CACHE_BYTES)
    return (
        DualExpert(
            GlobalExpert(build_global(configs[0]), "cpu", cache),
            LocalExpert(build_local(configs[1]), "cpu", cache),
            cache,
        ),
        cache,
    )


def growing_prompts(dual: DualExpert, volume: Volume, expert: str, most: int) -> list[dict[str, Prompts]]:
    """Prompts with 1 to `most` clicks, each click a correction, since one that agrees costs nothing.

    The clicks lie in the middle of the volume, close enough for one local window; ``global`` has a box as
    well.
    """
    z, y, x = (n // 2 for n in volume.shape)
    half = SIDE / 2
    box = Box((z - half, y - half, x - half), (z + half, y + half, x + half)) if expert == "global" else None
    clicks = [Click((z, y, x), True)]
    found = []
    for i in range(1, most + 1):
        found.append({"object": Prompts(tuple(clicks), box)})
        place = z + (5 * i) % 7 - 3, y + (3 * i) % 7 - 3, x + (i // 7 + i) % 7 - 3
        if i < most:
            inside = bool(dual.segment(volume, found[-1]).labels[place])
            clicks.append(Click(place, not inside))
    return found
