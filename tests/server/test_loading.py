"""Images are read side by side: a large one keeps nobody waiting who works on another."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dualclickmed.imaging.volume as volume_module
import numpy as np
import pytest
from dualclickmed.imaging.volume import Volume, VolumeCache, from_array, load_volume


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "large.nii.gz", tmp_path / "small.nii.gz"
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def test_an_image_that_loads_does_not_hold_up_others(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = files
    begun, go = threading.Event(), threading.Event()
    loaded: list[str] = []

    def load(path: Path, modality: str | None = None) -> Volume:
        if path == large:
            begun.set()
            assert go.wait(20)
        loaded.append(path.name)
        return from_array(np.zeros((8, 8, 8), dtype=np.int16))

    monkeypatch.setattr(volume_module, "load_volume", load)
    cache = VolumeCache(1 << 20)
    with ThreadPoolExecutor(3) as several:
        first = several.submit(cache.get, large)
        assert begun.wait(20)
        second = several.submit(cache.get, large)
        assert cache.get(small) is cache.get(small)
        assert not first.done()
        go.set()
        # Whoever asked for the same image meanwhile gets it without loading it again.
        assert first.result() is second.result()
    assert loaded == ["small.nii.gz", "large.nii.gz"]


def test_the_real_loader_is_what_is_replaced_above() -> None:
    assert volume_module.load_volume is load_volume
