"""Series and an archive as the demo makes them; tests are skipped where the archive is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dualclickmed.demo import archive
from dualclickmed.demo.archive import Archive
from dualclickmed.demo.dicoms import CLASSES, LAYOUTS, Layout, WrittenSeries, write_series

from tests.support.live import free_port

__all__ = ["CLASSES", "LAYOUTS", "Archive", "Layout", "WrittenSeries", "orthanc", "write_series"]


@contextmanager
def orthanc(folder: Path) -> Iterator[Archive]:
    """Orthanc on a port of its own."""
    if not archive.installed():
        pytest.skip("needs Debian's packages orthanc and orthanc-dicomweb")
    with archive.orthanc(folder, free_port()) as found:
        yield found
