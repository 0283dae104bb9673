"""The page's own modules that need no browser, by Node's test runner."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def test_the_modules_of_the_page_keep_their_promises() -> None:
    node = shutil.which("node") or shutil.which("node", path=Path(sys.executable).parent)
    if node is None:
        pytest.skip("needs Node.js")
    tests = sorted(str(path) for path in (REPOSITORY / "tests" / "page").glob("*.test.js"))
    ran = subprocess.run([node, "--test", *tests], capture_output=True, text=True, cwd=REPOSITORY)
    assert ran.returncode == 0, ran.stdout[-4000:]


def test_the_lock_file_names_versions_and_sums_and_no_address() -> None:
    text = (REPOSITORY / "package-lock.json").read_text()
    assert "://" not in "".join(line for line in text.splitlines() if '"url"' not in line)
    packages = json.loads(text)["packages"]
    niivue = packages["node_modules/@niivue/niivue"]
    assert niivue["version"] == "0.69.0" and niivue["integrity"].startswith("sha512-")
    assert not any("resolved" in package for package in packages.values())
