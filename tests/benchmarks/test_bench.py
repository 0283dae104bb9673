"""The benchmark's own arithmetic, on networks and volumes that take no time."""

from __future__ import annotations

import dataclasses
import io
import json
import operator
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dualclickmed.benchmarks import measure, networks
from dualclickmed.benchmarks import tables as command
from dualclickmed.benchmarks.growth import (
    growing_prompts,
    random_experts,
    server_memory,
    synthetic,
    write_server_files,
)
from dualclickmed.benchmarks.measure import in_process, least_seconds, operations
from dualclickmed.benchmarks.networks import NetworkCase, NetworkRow, cases, ratios
from dualclickmed.benchmarks.tables import VOLUMES, BenchSection, run
from dualclickmed.cli import app as cli
from dualclickmed.imaging.volume import from_array
from dualclickmed.networks.configs import PRESETS, GlobalConfig, LocalConfig
from rich.console import Console
from typer.testing import CliRunner

PAPER = (
    GlobalConfig(
        image_size=64, patch=8, embed_dim=24, depth=2, heads=2, window=10, global_blocks=(1,), prompt_dim=24,
        decoder_heads=2, decoder_mlp=32,
    ),
    LocalConfig(init_filters=8, blocks_down=(1, 1), out_channels=8, feature_size=8),
)  # fmt: skip
COMPACT = (
    dataclasses.replace(PRESETS["transformer"][0], depth=1, embed_dim=40, stem_channels=(2, 4, 8)),
    dataclasses.replace(PRESETS["compact"][1], init_filters=8, blocks_down=(1, 1)),
)


def here(threads: int, function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def row(case: NetworkCase, encode: float, click: float) -> NetworkRow:
    return NetworkRow(case, 1, 2, 3, encode, click, 4, 5, None)


def test_every_row_is_there_and_ratios_are_those_of_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "in_process", here)
    monkeypatch.setattr("dualclickmed.benchmarks.networks._half_precisions", lambda device: ["bfloat16"])
    console = Console(file=io.StringIO(), width=250)
    presets = {"compact": COMPACT, "paper": PAPER}
    volumes, clicks = [(40, 48, 56), (64, 64, 64)], [1, 3]
    sections, figures = run(presets, ["global", "local"], True, 1, "cpu", volumes, clicks, console)

    measured = figures["networks"]
    found = [(n["expert"], n["preset"], n["published"], n["precision"]) for n in measured]
    assert sorted(found) == sorted(
        [
            (expert, preset, published, precision)
            for expert in ("global", "local")
            for preset in presets
            for published, precision in ((True, "float32"), (False, "float32"), (False, "bfloat16"))
            if preset == "paper" or not published
        ]
    )
    for expert in ("global", "local"):
        (slow,) = [n for n in measured if n["published"] and n["expert"] == expert]
        assert slow["encode_times_faster"] is None
        for n in measured:
            assert min(n["encode_operations"], n["click_operations"], n["parameters"], n["peak"]) > 0
            if n["expert"] == expert and not n["published"]:
                for what in ("encode", "click"):
                    ratio = slow[f"{what}_seconds"] / n[f"{what}_seconds"]
                    assert n[f"{what}_times_faster"] == pytest.approx(ratio)
                assert (n["difference"] is None) == (n["precision"] == "float32")
    assert [(tuple(v["shape"]), v["expert"]) for v in figures["volumes"]] == [
        (shape, expert) for shape in volumes for expert in ("global", "local")
    ]
    assert [(c["expert"], c["clicks"]) for c in figures["clicks"]] == [
        (expert, n) for expert in ("global", "local") for n in clicks
    ]
    titles = ["Networks", "Growth with the volume", "Growth with the clicks"]
    assert [section.title for section in sections] == titles
    assert all(title in console.file.getvalue() for title in titles)  # type: ignore[attr-defined]
    json.dumps(figures)


@pytest.mark.parametrize("expert", ["global", "local"])
def test_the_networks_that_ship_can_be_measured(expert: str) -> None:
    config = PRESETS["compact"][0 if expert == "global" else 1]
    found = networks.measure(NetworkCase(expert, "compact", config, side=32, repeats=1))
    assert found.peak >= found.resting > 0 and min(found.encode_operations, found.click_operations) > 0
    # The global one looks at image and prompts together, once for each click.
    assert (1000 * found.encode_operations < found.click_operations) == (expert == "global")


def test_ratios_compare_with_the_published_form_of_the_same_expert() -> None:
    config = PAPER[0]
    rows = [
        row(NetworkCase("global", "paper", config, published=True), 12.0, 0.5),
        row(NetworkCase("global", "paper", config), 3.0, 0.25),
        row(NetworkCase("local", "compact", COMPACT[1]), 1.0, 0.1),
    ]
    assert [(encode, click) for _, encode, click in ratios(rows)] == [(None, None), (4.0, 2.0), (None, None)]


def test_the_published_form_costs_more_operations() -> None:
    slow, fast = cases({"paper": PAPER}, ["global"], repeats=1)[:2]
    assert slow.published and not fast.published
    from dualclickmed.benchmarks.networks import _encode_operations

    assert _encode_operations(slow) > 1.5 * _encode_operations(fast)


def test_operations_of_a_product_and_of_attention() -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert operations(lambda: a @ b) == 2 * 3 * 5 * 7
    q = torch.zeros(1, 1, 4, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert operations(lambda: attention(q, q, q)) == 2 * (2 * 4 * 4 * 8)


def test_the_fastest_run_counts() -> None:
    runs: list[int] = []
    assert 0 <= least_seconds(lambda: runs.append(1), 4) < 1
    assert len(runs) == 4


def test_a_process_of_its_own_answers_or_says_why_not() -> None:
    assert in_process(1, operator.add, 2, 3) == 5
    with pytest.raises(RuntimeError, match="Measuring truediv failed: ZeroDivisionError"):
        in_process(1, operator.truediv, 1, 0)


def peaks_of_a_block() -> tuple[int, int]:
    """Bytes that the peak grows by while 512 MiB are held, and after it began anew without them."""
    measure.forget_peak()
    before = measure.peak_bytes()
    block = np.ones(512 << 20, dtype=np.uint8)
    held = measure.peak_bytes() - before
    del block
    measure.forget_peak()
    return held, measure.peak_bytes() - before


def test_a_peak_is_at_least_what_was_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_STATUS", Path(__file__))
    monkeypatch.setattr(measure, "_status", {"VmHWM": 1_785_905_152}.__getitem__)
    assert measure.peak_bytes() == measure.peak_bytes(least=1_785_904_128) == 1_785_905_152
    assert measure.peak_bytes(least=1_785_925_632) == 1_785_925_632


def test_peaks_begin_anew() -> None:
    # In a process of its own: what other tests left in this one may be given back at any moment.
    held, after = in_process(1, peaks_of_a_block)
    assert held == pytest.approx(512 << 20, rel=0.1)
    if measure._CLEAR.exists():
        assert after < 128 << 20


def test_the_synthetic_volume_is_ct_with_a_bright_middle() -> None:
    volume = from_array(synthetic((60, 52, 64)))
    assert volume.modality == "ct"
    assert volume.array.dtype == np.int16
    assert volume.array[20:40, 20:32, 20:44].mean() > volume.array[:5].mean() + 200


@pytest.mark.parametrize("expert", ["global", "local"])
def test_each_click_of_growing_prompts_corrects_the_mask_before_it(expert: str) -> None:
    volume = from_array(synthetic((64, 64, 64)), modality="ct")
    dual, _ = random_experts(COMPACT)
    given = growing_prompts(dual, volume, expert, 4)
    assert [len(one["object"].clicks) for one in given] == [1, 2, 3, 4]
    assert {one["object"].box is not None for one in given} == {expert == "global"}
    for before, after in pairwise(given):
        assert after["object"].clicks[:-1] == before["object"].clicks
        click = after["object"].clicks[-1]
        assert click.positive != bool(dual.segment(volume, before).labels[click.index])


def test_a_server_holds_both_experts_and_answers(tmp_path: Path) -> None:
    write_server_files(tmp_path, "compact", COMPACT, (64, 64, 64))
    found = server_memory(tmp_path, "compact", "float32")
    assert found.volume == 2 * 64**3
    assert 0 < found.libraries <= found.peak
    assert found.above_volume == found.peak - found.volume


def test_markdown_is_a_table() -> None:
    section = BenchSection("Speed", "Seconds.", ("network", "s"), [("a", "1"), ("b", "2")])
    assert section.markdown().splitlines() == [
        "## Speed", "", "Seconds.", "", "| network | s |", "| --- | ---: |", "| a | 1 |", "| b | 2 |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--preset", "huge"], "--preset must be one of"), (["--expert", "both"], "--expert must be one of")],
)
def test_unknown_names_are_refused(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert result.exit_code == 2
    assert sentence in result.stderr


@pytest.mark.parametrize("option", ["--out", "--markdown"])
def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(
    option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "full_parity", lambda: pytest.fail("measured"))
    for file in (tmp_path / "none" / "a", tmp_path):
        result = CliRunner().invoke(cli.app, ["bench", "--parity", option, str(file)])
        assert result.exit_code == 2
        assert "A file in a folder that exists must be named" in result.stderr


def test_parity_decides_the_exit_code_and_writes_its_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, page = tmp_path / "bench.json", tmp_path / "bench.md"
    arguments = ["bench", "--parity", "--threads", "1", "--out", str(out), "--markdown", str(page)]
    for difference, code in ((9e-6, 0), (2e-5, 1)):
        monkeypatch.setattr(command, "full_parity", lambda d=difference: iter([("global", {"mask": d})]))
        assert CliRunner().invoke(cli.app, arguments).exit_code == code
        assert json.loads(out.read_text())["parity"] == {"global": {"mask": difference}}
        assert f"| global | mask | {difference:.1e} |" in page.read_text()


def test_the_last_volume_is_the_largest() -> None:
    assert VOLUMES[-1] == (600, 512, 512)
    assert VOLUMES[0] == (128, 128, 128)
