"""What a method costs besides the annotator's time: the lower rows of the paper's Table 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..benchmarks.measure import in_process
from ..benchmarks.networks import EXPERTS, Case, measure
from ..networks.build import GlobalConfig, LocalConfig
from ..weights import default_path, verify
from .methods import Settings


@dataclass(frozen=True)
class Cost:
    """One network.

    Attributes:
        name: which expert of which preset.
        parameters: number.
        encode_operations, click_operations: floating-point operations of an image region and of a click in
        it. encode_seconds, click_seconds: likewise.
        peak: bytes of the process, or of the GPU, at most during a first click; resting: with the network
        loaded.
    """

    name: str
    parameters: int
    encode_operations: int
    click_operations: int
    encode_seconds: float
    click_seconds: float
    resting: int
    peak: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a summary (JSON)."""
        return asdict(self)


def our_costs(settings: Settings, threads: int) -> list[Cost]:
    """Both experts of the weights that an evaluation uses, each in a process of its own.

    Speed does not depend on the values of weights; networks of the same configuration are measured.
    """
    found = []
    for expert in EXPERTS:
        kind: Any = expert
        card = verify(default_path(kind, settings.preset, settings.model_dir))
        config_type = GlobalConfig if expert == "global" else LocalConfig
        config = config_type.from_dict(card["config"])
        case = Case(expert, card["preset"], config, device=settings.device)
        row = in_process(threads, measure, case)
        found.append(
            Cost(
                f"{expert} expert, {card['preset']}",
                row.parameters,
                row.encode_operations,
                row.click_operations,
                row.encode_seconds,
                row.click_seconds,
                row.resting,
                row.peak,
            )
        )
    return found


def rows_of(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """Cells of a table: see `COLUMNS`."""
    return [
        (
            cost.name,
            f"{cost.parameters / 1e6:.2f}",
            f"{cost.encode_operations / 1e9:.1f}",
            f"{cost.click_operations / 1e9:.2f}",
            f"{cost.encode_seconds:.3f}",
            f"{cost.click_seconds:.3f}",
            f"{(cost.peak - cost.resting) / 1e6:.0f}",
        )
        for cost in costs
    ]


COLUMNS = (
    "Network",
    "Parameters, M",
    "GFLOP, region",
    "GFLOP, click",
    "Seconds, region",
    "Seconds, click",
    "Memory above the network, MB",
)
