"""What `serve` does before MONAI Label takes over."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from dualclickmed.server.starting import name_log_lines


@pytest.fixture
def named() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    name_log_lines()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("lib.infers.tasks", "dualclickmed.infers.tasks"),
        ("main", "dualclickmed"),
        ("library.x", "library.x"),
        ("uvicorn.error", "uvicorn.error"),
    ],
)
def test_log_lines_bear_the_packages_name(name: str, shown: str, named: None) -> None:
    record = logging.getLogger(name).makeRecord(name, logging.INFO, __file__, 1, "told", (), None)
    assert (record.name, record.getMessage()) == (shown, "told")
