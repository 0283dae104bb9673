from __future__ import annotations

import json

from dualclickmed.benchmarks.networks import NetworkCase, NetworkRow
from dualclickmed.evaluation.cost import COLUMNS, cells
from dualclickmed.networks.configs import PRESETS

ROW = NetworkRow(
    case=NetworkCase("local", "compact", PRESETS["compact"][1]),
    parameters=1_234_567,
    encode_operations=98_760_000_000,
    click_operations=1_234_000_000,
    encode_seconds=0.5,
    click_seconds=0.0126,
    resting=100_000_000,
    peak=350_400_000,
    difference=None,
)


def test_a_network_is_a_line_of_the_table() -> None:
    (line,) = cells([ROW])
    assert dict(zip(COLUMNS, line, strict=True)) == {
        "Network": "local expert, compact",
        "Parameters, M": "1.23",
        "GFLOP, region": "98.8",
        "GFLOP, click": "1.23",
        "Seconds, region": "0.500",
        "Seconds, click": "0.013",
        "Memory above the network, MB": "250",
    }


def test_a_summary_holds_what_was_measured_and_of_what() -> None:
    values = json.loads(json.dumps(ROW.to_dict()))
    assert (values["expert"], values["preset"], values["parameters"]) == ("local", "compact", 1_234_567)
    assert (values["peak"], values["difference"], values["device"]) == (350_400_000, None, "cpu")
    assert "case" not in values
