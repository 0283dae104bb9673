"""Series and an archive as the demo makes them; tests are skipped where the archive is not installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from dualclickmed.demo import archive
from dualclickmed.demo.archive import Archive
from dualclickmed.demo.dicoms import CLASSES, LAYOUTS, Layout, WrittenSeries, write_series

from tests.support.live import free_port

__all__ = [
    "CLASSES", "LAYOUTS", "Archive", "Layout", "WrittenSeries", "archived_noise", "orthanc", "write_series"
]  # fmt: skip


@contextmanager
def orthanc(folder: Path) -> Iterator[Archive]:
    """Orthanc on a port of its own."""
    if not archive.installed():
        pytest.skip("needs Debian's packages orthanc and orthanc-dicomweb")
    with archive.orthanc(folder, free_port()) as found:
        yield found


def archived_noise(
    into: Archive,
    folder: Path,
    made: Mapping[str, tuple[str, float, npt.NDArray[np.float64]]],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
) -> dict[str, WrittenSeries]:
    """A series of noise for each modality, stored in an archive; `made` has its layout, slope and turn."""
    found = {}
    for seed, (modality, (layout, slope, turn)) in enumerate(made.items()):
        array = np.random.default_rng(seed).normal(100, 30, shape).round().astype(np.int16)
        found[modality] = write_series(
            folder / modality, array, spacing, LAYOUTS[layout], modality, slope, turn, modality
        )
        into.add(found[modality].folder)
    return found
