"""Files are whole or not there, and what a killed process leaves has a name that the clean-up knows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dualclickmed.atomic_files import HALF_WRITTEN, replacing, write_text


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_text(path, "old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="full"), replacing(path) as part:
        part.write_text("half")
        raise ValueError("full")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_clean_up_knows_what_a_killed_process_leaves(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.json") as part:
        part.touch()
        found = HALF_WRITTEN.fullmatch(part.name)
        assert found and int(found[1]) == os.getpid()


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".txt")
    write_text(path, "whole")
    assert path.read_text(encoding="utf-8") == "whole"
    assert list(tmp_path.iterdir()) == [path]
