"""Several processes by torchrun: their gradients are those of one process with the whole batch."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.training import loop
from dualclickmed.training.loop import Options
from dualclickmed.training.sources import WeightedSource, folder_cases
from dualclickmed.weights.files import save_expert

from tests.support.cases import SMALL, decathlon
from tests.support.recipes import RECIPE

RECIPES = {
    "global": dataclasses.replace(
        RECIPE["global"],
        steps=2,
        scenes=1,
        targets=2,
        interactions=2,
        points=2,
        accumulate=2,
        warmup=0.0,
    ),
    "local": dataclasses.replace(RECIPE["local"], steps=2, scenes=1, targets=2, size=32, warmup=0.0),
}


def trained(kind: str, folder: Path, data: Path, start: Path, scenes: int) -> None:
    """One run; called in this process and by torchrun in two others."""
    torch.set_num_threads(1)
    recipe = dataclasses.replace(RECIPES[kind], scenes=scenes)
    sources = [WeightedSource(folder_cases(data)), WeightedSource("generated")]
    run = loop._Run(recipe, Options(folder, half=False), sources, start)
    run.go()
    run.team.leave()


@pytest.mark.parametrize("kind", ["global", "local"])
def test_two_processes_equal_one_with_the_doubled_batch(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build = {"global": build_global, "local": build_local}[kind]
    save_expert(build(SMALL[kind]), kind, tmp_path / "start.safetensors", half=False)
    data = decathlon(tmp_path / "set", 6)
    trained(kind, tmp_path / "one", data, tmp_path / "start.safetensors", 2)
    arguments = [kind, tmp_path / "two", data, tmp_path / "start.safetensors"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command = [*command, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / name / loop.CHECKPOINT, weights_only=True) for name in ("one", "two"))
    assert two["step"] == 2 and two["samples"] == one["samples"]
    first, second = one["optimiser"]["state"], two["optimiser"]["state"]
    assert first.keys() == second.keys()
    compared = 0
    for key in first:
        # AdamW's first moment is the mean of the gradients; its step would hide their size.
        mean, other = first[key]["exp_avg"], second[key]["exp_avg"]
        scale = float(mean.abs().max())
        assert torch.allclose(mean, other, rtol=1e-3, atol=1e-3 * scale + 1e-7), key
        compared += scale > 0
    assert compared > 20


if __name__ == "__main__":
    trained(sys.argv[1], *map(Path, sys.argv[2:]), 1)  # type: ignore[arg-type, call-arg]
    # Gloo's threads now and then abort an interpreter that is going down, long after everything is written.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
