"""Each network's size, speed and memory, beside the published form of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..networks.build import build_global, build_local
from ..networks.configs import GlobalConfig, LocalConfig
from ..networks.reference import PublishedGlobal, PublishedLocal
from .measure import forget_peak, least_seconds, operations, peak_bytes, resting_bytes
from .parity import randomised

EXPERTS = ("global", "local")
CLICKS = 3
HALF = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class NetworkCase:
    """What one row of the table measures.

    Attributes:
        expert: "global" or "local".
        preset: name of `config`.
        config: of the network.
        published: measure the published form of the network instead of ours.
        precision: one of `HALF`.
        device: a torch device.
        side: of the local window in voxels.
        repeats: of each timing, of which the fastest counts.
    """

    expert: str
    preset: str
    config: GlobalConfig | LocalConfig
    published: bool = False
    precision: str = "float32"
    device: str = "cpu"
    side: int = 128
    repeats: int = 3

    @property
    def name(self) -> str:
        """The row's name in tables."""
        return f"{self.expert} {self.preset}, {'published form' if self.published else 'ours'}"


@dataclass(frozen=True)
class NetworkRow:
    """What was measured.

    Attributes:
        case: what was measured.
        parameters: number of the network's parameters.
        encode_operations: operations of one encoding.
        click_operations: operations of one decoding.
        encode_seconds: time of one encoding.
        click_seconds: time of one decoding.
        resting: bytes of the process (on a GPU, of tensors) with the network loaded.
        peak: the most of these bytes during a first click.
        difference: share of voxels whose mask differs from float32's, None for float32 itself.
    """

    case: NetworkCase
    parameters: int
    encode_operations: int
    click_operations: int
    encode_seconds: float
    click_seconds: float
    resting: int
    peak: int
    difference: float | None

    def to_dict(self) -> dict[str, Any]:
        """What was measured and of what, as plain values for JSON; the configuration is left out."""
        case = ("expert", "preset", "published", "precision", "device", "side")
        return {
            **{name: getattr(self.case, name) for name in case},
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name != "case"},
        }


class _Runner:
    """A network in either form behind the same two calls."""

    def __init__(self, case: NetworkCase) -> None:
        self.case = case
        c = case.config
        torch.manual_seed(0)
        self.side = c.image_size if isinstance(c, GlobalConfig) else case.side
        network: Any = build_global(c) if isinstance(c, GlobalConfig) else build_local(c)
        self.network = randomised(network, seed=0).to(case.device)
        self.parameters = sum(p.numel() for p in self.network.parameters())
        if case.published:
            self.network = (PublishedGlobal if isinstance(c, GlobalConfig) else PublishedLocal)(self.network)
            if isinstance(self.network, PublishedLocal):
                parts = (self.network.image_encoder, self.network.point_head)
                self.parameters = sum(p.numel() for part in parts for p in part.parameters())
        elif case.expert == "local" and case.device == "cpu":
            self.network.to(memory_format=torch.channels_last_3d)
        generator = torch.Generator().manual_seed(1)
        self.image = torch.rand(1, 1, *[self.side] * 3, generator=generator).to(case.device)
        self.points = (torch.rand(1, CLICKS, 3, generator=generator) * (self.side - 1)).to(case.device)
        self.labels = (torch.arange(CLICKS) % 2)[None].to(case.device)

    def encode(self) -> Any:
        with self._autocast(self.case.precision):
            return self.network.encode(self.image)

    def click(self, features: Any) -> Tensor:
        with self._autocast(self.case.precision):
            found = self.network.decode(features, self.points, self.labels)
        return found[0] if isinstance(found, tuple) else found

    def mask(self, precision: str) -> Tensor:
        with self._autocast(precision):
            features = self.network.encode(self.image)
            return self.network.decode(features, self.points, self.labels) > 0

    def _autocast(self, precision: str) -> AbstractContextManager[object]:
        dtype = HALF[precision]
        return nullcontext() if dtype is None else torch.autocast(self.case.device.split(":")[0], dtype=dtype)


@torch.inference_mode()
def measure(case: NetworkCase) -> NetworkRow:
    """Measure one case in this process; see `in_process`."""
    runner = _Runner(case)
    forget_peak(case.device)
    resting = resting_bytes(case.device)
    features = runner.encode()
    runner.click(features)
    peak = peak_bytes(case.device, least=resting)
    encode_seconds = least_seconds(runner.encode, case.repeats, case.device)
    click_seconds = least_seconds(lambda: runner.click(features), case.repeats, case.device)
    difference = None
    if case.precision != "float32":
        difference = float((runner.mask("float32") != runner.mask(case.precision)).float().mean())
    return NetworkRow(
        case,
        runner.parameters,
        _encode_operations(case),
        operations(lambda: runner.click(features)),
        encode_seconds,
        click_seconds,
        resting,
        peak,
        difference,
    )


def cases(
    presets: dict[str, tuple[GlobalConfig, LocalConfig]], experts: list[str], **common: Any
) -> list[NetworkCase]:
    """Ours and, where there is one, the published form; ours also in half precision where it is fast."""
    found = []
    halves = _half_precisions(common.get("device", "cpu"))
    for expert in experts:
        for preset, configs in presets.items():
            config = configs[EXPERTS.index(expert)]
            ours = NetworkCase(expert, preset, config, **common)
            if _is_published(config):
                found.append(NetworkCase(expert, preset, config, published=True, **common))
            found.append(ours)
            found += [NetworkCase(expert, preset, config, precision=half, **common) for half in halves]
    return found


def ratios(rows: list[NetworkRow]) -> Iterator[tuple[NetworkRow, float | None, float | None]]:
    """Each row, with how many times faster it encodes and clicks than the published form of its expert."""
    published = {row.case.expert: row for row in rows if row.case.published}
    for row in rows:
        slow = published.get(row.case.expert)
        if slow is None or row is slow:
            yield row, None, None
        else:
            yield (
                row,
                slow.encode_seconds / row.encode_seconds,
                slow.click_seconds / row.click_seconds,
            )


def _encode_operations(case: NetworkCase) -> int:
    """Counted without computing: on PyTorch's device of shapes alone."""
    c = case.config
    with torch.device("meta"), torch.inference_mode():
        if isinstance(c, GlobalConfig):
            network: Any = build_global(c)
            image = torch.empty(1, 1, *[c.image_size] * 3)
            network = PublishedGlobal(network) if case.published else network
        else:
            network = build_local(c)
            image = torch.empty(1, 1, *[case.side] * 3)
            network = PublishedLocal(network) if case.published else network
        return operations(lambda: network.encode(image))


def _is_published(config: GlobalConfig | LocalConfig) -> bool:
    if isinstance(config, GlobalConfig):
        return not (config.stem_channels or config.upscaling)
    return config.space_to_depth == 1 and not config.click_head


def _half_precisions(device: str) -> list[str]:
    if device != "cpu":
        return ["bfloat16", "float16"] if torch.cuda.is_bf16_supported() else ["float16"]
    from ..experts.precision import processor_has_bfloat16

    return ["bfloat16"] if processor_has_bfloat16() else []
