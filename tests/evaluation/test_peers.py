"""The networks and the table of `bench --peers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dualclickmed.cli import app as cli
from dualclickmed.evaluation import peers as module
from dualclickmed.evaluation.peers import NNINTERACTIVE, PeerRow, ResidualEncoderUNet, one_pass, peers_section
from typer.testing import CliRunner


def test_the_network_has_the_size_of_nninteractives() -> None:
    with torch.device("meta"):
        network = ResidualEncoderUNet(8, NNINTERACTIVE["features"], NNINTERACTIVE["blocks"])
        assert network(torch.empty(1, 8, 64, 64, 64)).shape == (1, 2, 64, 64, 64)
    # 102,354,274 in dynamic-network-architectures 0.4.4, without its four heads of deep supervision.
    assert sum(p.numel() for p in network.parameters()) == 102_354_274


@pytest.mark.parametrize("which", ["nninteractive", "deepedit"])
def test_a_pass_is_measured(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"channels": 2, "side": 64, "features": (4, 4, 4), "blocks": (1, 1, 2)}
    monkeypatch.setattr(module, which.upper(), small)
    row = one_pass("a network", which)
    assert (row.name, row.size) == ("a network", "64^3") and row.seconds > 0 and row.gigabytes >= 0


def test_times_are_those_of_our_further_click() -> None:
    rows = [PeerRow("ours", "a", 0.1, 0.2, unit=True), PeerRow("theirs", "b", 5.0, 3.0)]
    assert [cells[3] for cells in peers_section(rows).rows] == ["1.0", "50.0"]


def test_bench_writes_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(threads: int, function: Callable[..., Any], *given: Any) -> Any:
        if function is module.ours:
            return [PeerRow(f"ours, {given[0]}", "", 0.1, 0.1, unit=given[0] == "compact")]
        if function is module.published:
            return [PeerRow(given[1], "", 1.0, 1.0)]
        return PeerRow(given[0], "", 2.0, 2.0)

    monkeypatch.setattr(module, "in_process", stand_in)
    out = tmp_path / "peers.json"
    done = CliRunner().invoke(cli.app, ["bench", "--peers", "--out", str(out)])
    assert done.exit_code == 0, done.output
    names = [row["name"] for row in json.loads(out.read_text())["peers"]]
    assert [name.split(",")[0] for name in names] == [
        *("ours", "ours", "graph_cut", "random_walker", "MONAI Label's DeepEdit"),
        *("SAM-Med3D", "VISTA3D's point branch", "nnInteractive's network"),
    ]
