"""The demo's archive."""

from __future__ import annotations

from pathlib import Path

import pytest
from dualclickmed.demo import archive
from dualclickmed.errors import UserError


def test_without_orthanc_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PLUGIN", tmp_path / "nothing.so")
    with pytest.raises(UserError, match="orthanc-dicomweb"), archive.orthanc(tmp_path / "archive", 1):
        pass
    assert not (tmp_path / "archive").exists()


def test_an_archive_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "Orthanc"
    program.write_text("#!/bin/sh\necho 'the port is taken'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(archive, "PLUGIN", program)
    monkeypatch.setattr(archive, "installed", lambda: str(program))
    with pytest.raises(UserError, match="the port is taken"), archive.orthanc(tmp_path / "archive", 1):
        pass
