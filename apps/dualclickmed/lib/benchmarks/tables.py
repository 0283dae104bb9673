"""The tables of `bench`: how large, fast and exact the networks are here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..experts.precision import processor_has_bfloat16
from ..networks.configs import GlobalConfig, LocalConfig
from .growth import (
    SIDE,
    ClickCost,
    ServerMemory,
    VolumeCost,
    click_costs,
    measure_server,
    volume_costs,
)
from .measure import in_process
from .networks import NetworkRow, cases, measure, ratios
from .parity import LIMIT, full_parity
from .training import Speed

VOLUMES = ((128, 128, 128), (256, 256, 256), (200, 512, 512), (600, 512, 512))
"""Shapes (D, H, W) that the cost of a click is compared on."""
CLICKS = (1, 2, 4, 8, 16, 32)
SMALL_SIDE = 64
"""Side of the local window in a quick run."""
GB = 1e9

Configs = tuple[GlobalConfig, LocalConfig]


@dataclass(frozen=True)
class BenchSection:
    """A table with its heading and a sentence that explains it."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """The section for a page of documentation."""
        lines = [f"## {self.title}", "", self.note, "", _line(self.columns)]
        lines += [_line(["---"] + ["---:"] * (len(self.columns) - 1)), *map(_line, self.rows)]
        return "\n".join(lines)

    def table(self) -> Table:
        """The section for a terminal."""
        table = Table(title=self.title, caption=self.note, title_justify="left", caption_justify="left")
        for at, column in enumerate(self.columns):
            table.add_column(column, justify="right" if at else "left")
        for row in self.rows:
            table.add_row(*row)
        return table


def run(
    presets: dict[str, Configs],
    experts: list[str],
    quick: bool,
    threads: int,
    device: str,
    volumes: Sequence[tuple[int, int, int]],
    clicks: Sequence[int],
    console: Console,
) -> tuple[list[BenchSection], dict[str, Any]]:
    """Every measurement; each section is shown as soon as it is there.

    Args:
        presets: name to configurations.
        experts: which of `EXPERTS`.
        quick: one run of each, small windows, volumes up to 256^3, no server.
        threads: for everything on the CPU.
        device: for the networks' table.
        volumes, clicks: what growth is measured on.
        console: for the tables.

    Returns:
        The sections, and all figures as plain values.
    """
    repeats = 1 if quick else 3
    sections: list[BenchSection] = []

    def show(section: BenchSection) -> None:
        sections.append(section)
        console.print(section.table())

    console.print(f"{machine(threads)}; networks on {device}, GPU: {_gpu()}", highlight=False)
    side = SMALL_SIDE if quick else 128
    common = {"device": device, "side": side, "repeats": repeats}
    rows = []
    for case in cases(presets, experts, **common):
        console.print(f"measuring {case.name}, {case.precision}", style="dim", highlight=False)
        rows.append(in_process(threads, measure, case))
    show(networks_section(rows, threads, side))
    figures: dict[str, Any] = {
        "networks": [
            {**row.to_dict(), "encode_times_faster": encode, "click_times_faster": click}
            for row, encode, click in ratios(rows)
        ]
    }

    growing = presets.get("compact") or next(iter(presets.values()))
    sizes = [shape for shape in volumes if not quick or shape[0] * shape[1] * shape[2] <= 256**3]
    grown = [c for shape in sizes for c in in_process(threads, volume_costs, shape, growing, 2 * repeats + 1)]
    show(volumes_section(grown))
    counts = [n for n in clicks if not quick or n in (clicks[0], clicks[-1])]
    clicked = in_process(threads, click_costs, counts, 128, growing, repeats)
    show(clicks_section(clicked))
    figures["volumes"] = [dataclasses.asdict(cost) for cost in grown]
    figures["clicks"] = [dataclasses.asdict(cost) for cost in clicked]

    if not quick:
        served = [
            measure_server(name, precision, configs, volumes[-1], threads)
            for name, configs in presets.items()
            for precision in ("float32", "bfloat16")
            if precision == "float32" or processor_has_bfloat16()
        ]
        show(server_section(served))
        figures["server"] = [{**dataclasses.asdict(s), "above_volume": s.above_volume} for s in served]
    return sections, figures


def networks_section(rows: list[NetworkRow], threads: int, side: int) -> BenchSection:
    """Size, speed and memory of each network, and how many times faster than the published form."""
    lines = []
    for row, encode, click in ratios(rows):
        first = row.encode_seconds + 2 * row.click_seconds
        cached = row.click_seconds / (first if row.case.expert == "global" else first - row.click_seconds)
        lines.append(
            (
                row.case.name,
                row.case.precision,
                f"{row.parameters / 1e6:.1f}",
                f"{row.encode_operations / 1e9:.1f}",
                f"{row.click_operations / 1e9:.2f}",
                f"{row.encode_seconds:.3f}",
                f"{row.click_seconds:.3f}",
                _times(encode),
                _times(click),
                f"1/{1 / cached:.0f}",
                f"{(row.peak - row.resting) / GB:.2f}",
                "" if row.difference is None else f"{100 * row.difference:.3f} %",
            )
        )
    clock = "processor seconds of one thread" if threads == 1 else f"seconds with {threads} threads"
    return BenchSection(
        "Networks",
        f"Random weights; {clock}; local windows of {side}^3. Times faster: than the published form of the "
        "same expert. Cached: a further click as a part of a first one. GB: most memory above the loaded "
        "network. Masks: voxels that change sides against float32 (random weights put most logits near 0).",
        (
            "network", "precision", "M parameters", "GFLOP encode", "GFLOP click", "encode s", "click s",
            "encode faster", "click faster", "cached", "GB", "masks",
        ),
        lines,
    )  # fmt: skip


def volumes_section(costs: list[VolumeCost]) -> BenchSection:
    """Costs by volume: loading grows with it, a click does not."""
    lines = []
    for cost in costs:
        base = next(c for c in costs if c.expert == cost.expert)
        lines.append(
            (
                " x ".join(map(str, reversed(cost.shape))),
                cost.expert,
                f"{cost.nbytes / 1e6:.0f}",
                f"{cost.load_seconds:.2f}",
                f"{cost.copies:.2f}",
                f"{cost.first_seconds:.3f}",
                f"{cost.same_seconds:.3f}",
                f"{1000 * cost.result_seconds:.1f}",
                f"{cost.first_seconds / base.first_seconds:.2f}",
                f"{cost.same_seconds / base.same_seconds:.2f}",
            )
        )
    return BenchSection(
        "Growth with the volume",
        f"An object of {SIDE}^3 voxels in an int16 array. Copies: most memory while loading, in sizes of the "
        "array. First and further click: whole answers, the full-size label map included, which alone takes "
        "the ms of 'result'. The last columns compare with the first volume.",
        (
            "volume", "expert", "MB", "load s", "copies", "first click s", "further click s", "result ms",
            "first, times", "further, times",
        ),
        lines,
    )  # fmt: skip


def clicks_section(costs: list[ClickCost]) -> BenchSection:
    """Costs by the number of clicks of one object."""
    return BenchSection(
        "Growth with the clicks",
        "Clicks near one another in 128^3 voxels. First: nothing cached. One more: a further click with "
        "features cached. Again: the same request.",
        ("clicks", "expert", "first s", "one more s", "again s"),
        [
            (
                str(cost.clicks),
                cost.expert,
                f"{cost.first_seconds:.3f}",
                f"{cost.more_seconds:.3f}",
                f"{cost.again_seconds:.3f}",
            )
            for cost in costs
        ],
    )


def training_section(speeds: list[Speed], threads: int) -> BenchSection:
    """Objects per second of recipes, and how many times the first one's."""
    lines = [
        (
            speed.recipe,
            speed.precision,
            str(speed.masks),
            f"{speed.objects:.1f}",
            f"{speed.making:.2f}",
            f"{speed.step:.2f}",
            f"{speed.processor:.2f}",
            f"{speed.objects_per_second:.2f}",
            _times(speed.objects_per_second / speeds[0].objects_per_second),
        )
        for speed in speeds
    ]
    return BenchSection(
        "Training",
        f"Generated scenes, random weights, {threads} threads, recipes in turns; medians. Objects per second "
        "are those of the steps, without the making of samples, which --workers do beside them.",
        (
            "recipe",
            "precision",
            "masks",
            "objects a step",
            "making, s",
            "step, s",
            "processor, s",
            "objects/s",
            "x first",
        ),
        lines,
    )


def server_section(served: list[ServerMemory]) -> BenchSection:
    """Memory of a process with MONAI Label's libraries, an image and both experts."""
    return BenchSection(
        "Memory of a server",
        "GB. A box, a click and a further click in the largest volume; the libraries are MONAI Label's, "
        "PyTorch's and ours.",
        ("preset", "precision", "volume", "libraries", "with weights", "most", "most above the volume"),
        [
            (s.preset, s.precision, *(f"{n / GB:.2f}" for n in (
                s.volume, s.libraries, s.loaded, s.peak, s.above_volume)))
            for s in served
        ],
    )  # fmt: skip


def machine(threads: int) -> str:
    """The machine's processor, cores and versions as text."""
    half = "with" if processor_has_bfloat16() else "without"
    return (
        f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()} {half} bfloat16, "
        f"{threads} thread{'' if threads == 1 else 's'}, PyTorch {torch.__version__}"
    )


def parity_section(threads: int, console: Console) -> tuple[list[BenchSection], dict[str, Any]]:
    """How far the fast networks' outputs are from the published ones'."""
    torch.set_num_threads(threads)
    found = {}
    for name, differences in full_parity():
        found[name] = differences
        console.print(f"{name}: largest relative difference {max(differences.values()):.1e}", highlight=False)
    section = BenchSection(
        "Exactness",
        f"Relative differences between the fast and the published form, float32; {LIMIT:.0e} is the same.",
        ("network", "output", "difference"),
        [
            (name, output, f"{difference:.1e}")
            for name, differences in found.items()
            for output, difference in differences.items()
        ],
    )
    console.print(section.table())
    same = all(d <= LIMIT for differences in found.values() for d in differences.values())
    return [section], {"parity": found, "same": same}


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
