"""The computing cost of methods: the lower rows of the paper's Table 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..benchmarks.measure import in_process
from ..benchmarks.networks import EXPERTS, NetworkCase, NetworkRow, measure
from ..networks.configs import GlobalConfig, LocalConfig
from ..weights.files import default_path, verify
from .methods import MethodSettings


def our_costs(settings: MethodSettings, threads: int) -> list[NetworkRow]:
    """Both experts of the weights that an evaluation uses, each in a process of its own.

    Speed does not depend on the values of weights; networks of the same configuration are measured.
    """
    found = []
    for expert in EXPERTS:
        kind: Any = expert
        card = verify(default_path(kind, settings.preset, settings.model_dir))
        config_type = GlobalConfig if expert == "global" else LocalConfig
        config = config_type.from_dict(card["config"])
        case = NetworkCase(expert, card["preset"], config, device=settings.device)
        if isinstance(config, LocalConfig):
            case = replace(case, side=config.window)
        found.append(in_process(threads, measure, case))
    return found


def cells(rows: Sequence[NetworkRow]) -> list[tuple[str, ...]]:
    """Cells of a table: see `COLUMNS`."""
    return [
        (
            f"{row.case.expert} expert, {row.case.preset}",
            f"{row.parameters / 1e6:.2f}",
            f"{row.encode_operations / 1e9:.1f}",
            f"{row.click_operations / 1e9:.2f}",
            f"{row.encode_seconds:.3f}",
            f"{row.click_seconds:.3f}",
            f"{(row.peak - row.resting) / 1e6:.0f}",
        )
        for row in rows
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
