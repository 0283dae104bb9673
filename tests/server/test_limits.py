"""Settings of the server."""

from __future__ import annotations

import pytest
from dualclickmed.errors import UserError
from dualclickmed.server.limits import Limits


def test_defaults_and_settings() -> None:
    assert Limits.from_conf({"labels": "liver"}) == Limits()
    found = Limits.from_conf(
        {
            **{"queue": "0", "timeout": "60", "upload_gb": "0.5", "hosts": "A.example, b", "logs": "true"},
            **{"image_gb": "8", "sessions_gb": "0.25"},
        }
    )
    assert found == Limits(0, 60.0, 1 << 29, ("a.example", "b"), True, 8 << 30, 1 << 28)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queue", "1.5"),
        ("queue", "-1"),
        ("queue", "many"),
        ("timeout", "0"),
        ("timeout", "nan"),
        ("upload_gb", "inf"),
        ("image_gb", "0"),
        ("sessions_gb", "many"),
    ],
)
def test_values_out_of_range_are_named(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--conf {name} must be"):
        Limits.from_conf({name: value})


def test_logs_are_shown_or_not() -> None:
    with pytest.raises(UserError, match="--conf logs must be true or false"):
        Limits.from_conf({"logs": "perhaps"})
