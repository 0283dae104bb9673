"""In which precision a network runs: bfloat16 where the processor computes in it and masks hardly change."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..networks.global_network import RegionNetwork, box_centre_prompt
from ..networks.local_network import LocalNetwork

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "float32", "bfloat16")
"""What a user may ask for; the first is the default."""
MOST_DIFFERENT = 0.005
"""Share of voxels whose mask may change with the precision for `auto` to choose the lower one."""
CHECK_SIDE = 64
"""Side of the window that a local network is checked on, in voxels."""
PAYS = 1.3
"""How many times faster than float32 a CPU's bfloat16 has to be."""
_TRIES, _CHANNELS, _SIDE, _TOKENS, _WIDTH = 6, 16, 16, 256, 256
_NOISE, _CONTRAST = 0.05, 0.3
_RADIUS = 0.5 / 1.8


def processor_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself (AVX-512 BF16 or AMX); else it is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def chosen_precision(
    network: RegionNetwork | LocalNetwork, device: str | torch.device, wanted: str = PRECISIONS[0]
) -> torch.dtype | None:
    """The lower precision that a network is to run in, None for float32.

    ``auto`` means bfloat16 if the device computes in it, and, on a CPU, if a short timing shows that it is
    faster (`bfloat16_pays`; far from a tie either way where the processor has such products, so that a
    restart decides alike), and, on a made-up object, no more than `MOST_DIFFERENT` of the voxels change
    sides (`mask_difference`).

    Args:
        network: trained, on `device`, in evaluation mode.
        device: where it runs.
        wanted: one of `PRECISIONS`.

    Raises:
        UserError: for an unknown precision.
    """
    if wanted not in PRECISIONS:
        raise UserError(f"The precision must be one of {', '.join(PRECISIONS)}, but it is {wanted!r}.")
    if wanted == "float32":
        return None
    if wanted == "bfloat16":
        return torch.bfloat16
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    able = processor_has_bfloat16() and bfloat16_pays() if on_cpu else torch.cuda.is_bf16_supported()
    if not able:
        return None
    different = mask_difference(network, device, torch.bfloat16)
    accepted = different <= MOST_DIFFERENT
    logger.info(
        "%s runs in %s: with bfloat16 %.3f %% of voxels change",
        type(network).__name__,
        "bfloat16" if accepted else "float32",
        100 * different,
    )
    return torch.bfloat16 if accepted else None


def training_precision(device: str | torch.device) -> torch.dtype | None:
    """The lower precision that a training runs in, None for float32.

    A CPU trains in bfloat16 if a short timing shows that it is faster: processors and builds without such
    products do the same work in single steps, which takes up to a hundred times as long. A GPU trains in
    bfloat16, an older one in float16.
    """
    device = torch.device(device)
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if able else torch.float16
    return torch.bfloat16 if bfloat16_pays() else None


def bfloat16_pays() -> bool:
    """Whether the CPU computes in bfloat16 faster than in float32, by the clock."""
    lower, single = seconds_of_products()
    logger.debug("Small products: %.1f ms in bfloat16, %.1f ms in float32", 1000 * lower, 1000 * single)
    return lower * PAYS <= single


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def seconds_of_products() -> tuple[float, float]:
    """Seconds of a small convolution and a small layer with their gradients, in bfloat16 and in float32.

    What a training step consists of, in a size that even a processor without bfloat16 has done in a moment.
    Each figure is the least of some tries, taken in turn and by the processor time of this thread: two
    servers that start on a busy machine have to choose alike, or their masks differ. It is the only thread,
    because one that waits for another counts its waiting as processor time. The random state is left as it
    is.
    """
    least = [float("inf"), float("inf")]
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), _one_thread():
        convolution = nn.Conv3d(_CHANNELS, _CHANNELS, 3, padding=1)
        layer = nn.Linear(_WIDTH, _WIDTH)
        image, tokens = torch.randn(1, _CHANNELS, _SIDE, _SIDE, _SIDE), torch.randn(_TOKENS, _WIDTH)
        for _ in range(_TRIES):
            for place, lower in enumerate((True, False)):
                begin = time.thread_time()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
                    total = convolution(image).float().sum() + layer(tokens).float().sum()
                total.backward()
                least[place] = min(least[place], time.thread_time() - begin)
    return least[0], least[1]


@torch.inference_mode()
def mask_difference(network: RegionNetwork | LocalNetwork, device: torch.device, dtype: torch.dtype) -> float:
    """Share of the voxels of a made-up region whose mask differs between float32 and `dtype`."""
    expected = _mask(network, device)
    with torch.autocast(device.type, dtype=dtype):
        got = _mask(network, device)
    return float((got != expected).float().mean())


def _mask(network: RegionNetwork | LocalNetwork, device: torch.device) -> Tensor:
    """A noisy ball, clicked inside and outside."""
    is_global = not isinstance(network, LocalNetwork)
    side = network.config.image_size if is_global else CHECK_SIDE  # type: ignore[union-attr]
    axis = (torch.arange(side) + 0.5) / side - 0.5
    ball = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).square().sum(0).sqrt() < _RADIUS
    noise = torch.randn(side, side, side, generator=torch.Generator().manual_seed(0))
    image = (0.35 + _CONTRAST * ball + _NOISE * noise)[None, None].to(device)
    middle, rim = side / 2, side * (0.5 + 0.8 * _RADIUS)
    points = torch.tensor([[[middle, middle, middle], [middle, rim, middle], [2.0, 2.0, 2.0]]], device=device)
    labels = torch.tensor([[1, 1, 0]], device=device)
    if isinstance(network, LocalNetwork):
        return network.decode(network.encode(image), points, labels) > 0
    features = network.encode((image - image.mean()) / image.std())
    centre, kind = box_centre_prompt(network, 1, side, device)
    first = network.decode(features, centre, kind)
    prompts = torch.cat([centre, points], dim=1), torch.cat([kind, labels], dim=1)
    return network.decode(features, *prompts, network.to_mask_prompt(first)) > 0
