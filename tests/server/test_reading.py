"""Files read in processes of their own: limits of time and memory, crashes, an end with the request."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
from dualclickmed.cancellation import Stopped, Stopper, within
from dualclickmed.errors import VolumeError
from dualclickmed.imaging import native
from dualclickmed.imaging.volume import load_volume
from dualclickmed.server import reading
from dualclickmed.server.reading import Reader

SOON = 5.0


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    made = Reader(64 << 20, 60)
    yield made
    made.stop()


@pytest.fixture
def misbehaving() -> Iterator[Reader]:
    """A reader in whose process there are further readers, which do what they should not."""
    made = Reader(64 << 20, 10.0, modules=["tests.support.bad_readers"])
    yield made
    made.stop()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).integers(-900, 900, (9, 8, 7)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 1.0, 3.0, 1.0])), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def children(reader: Reader) -> list[psutil.Process]:
    assert reader._process is not None
    return psutil.Process(reader._process.pid).children()


def test_an_image_is_read_as_it_would_be_here(reader: Reader, image: Path) -> None:
    found, here = reader("load_volume", (image, None)), load_volume(image)
    assert np.array_equal(found.array, here.array) and found.key == here.key
    assert np.array_equal(found.affine, here.affine) and found.meta == here.meta


def test_a_runner_takes_over_all_readers(reader: Reader, image: Path) -> None:
    asked: list[str] = []

    def run(name: str, args: tuple[Any, ...]) -> Any:
        asked.append(name)
        return reader(name, args)

    native.run_by(run)
    try:
        found = load_volume(image)
    finally:
        native.run_by(None)
    assert asked == ["load_volume"]
    assert np.array_equal(found.array, load_volume(image).array)


def test_errors_come_back_with_their_sentence(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").write_bytes(b"no image")
    with pytest.raises(VolumeError, match=r"x\.nii\.gz"):
        reader("load_volume", (tmp_path / "x.nii.gz", None))
    with pytest.raises(VolumeError, match="there is no gone"):
        reader("load_volume", (tmp_path / "gone.nii.gz", None))


def test_more_memory_than_an_image_may_take_is_refused(tmp_path: Path) -> None:
    side = 512
    with (tmp_path / "large.nii").open("wb") as file:
        file.write(nib.Nifti1Image(np.zeros((side, side, side), np.int16), np.eye(4)).to_bytes()[:352])
        file.truncate(352 + 2 * side**3)
    small = Reader(1 << 20, 60)
    try:
        with pytest.raises(VolumeError, match="memory"):
            small("load_volume", (tmp_path / "large.nii", None))
    finally:
        small.stop()


@pytest.mark.parametrize("name", ["crashes", "raises", "answers_nonsense", "sleeps", "computes"])
def test_what_a_damaged_file_does_to_its_reader_is_a_sentence(
    misbehaving: Reader, image: Path, name: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(VolumeError, match=r"ct\.nii\.gz could not be read"):
        misbehaving(name, (image,))
    assert time.monotonic() - begun < 60
    deadline = time.monotonic() + SOON
    while children(misbehaving) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children(misbehaving) == []
    assert misbehaving.running == [] and misbehaving.stuck == 0
    assert misbehaving("load_volume", (image, None)).shape == (7, 8, 9)


def test_the_end_of_a_request_ends_its_reader(misbehaving: Reader, image: Path) -> None:
    misbehaving.most_seconds = 60
    stopper = Stopper(600)
    threading.Timer(0.5, stopper.stop).start()
    misbehaving.start()
    begun = time.monotonic()
    with within(stopper), pytest.raises(Stopped):
        misbehaving("sleeps", (image,))
    assert time.monotonic() - begun < 10
    deadline = time.monotonic() + SOON
    while children(misbehaving) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children(misbehaving) == []


def test_the_process_that_forks_is_replaced(reader: Reader, image: Path) -> None:
    reader.start()
    assert reader._process is not None
    first = reader._process
    first.kill()
    first.wait()
    assert reader("load_volume", (image, None)).shape == (7, 8, 9)
    assert reader._process.pid != first.pid


def test_files_wait_for_one_another(misbehaving: Reader, image: Path) -> None:
    misbehaving.most_seconds = 6
    done: list[float] = []

    def read() -> None:
        with pytest.raises(VolumeError):
            misbehaving("sleeps", (image,))
        done.append(time.monotonic())

    misbehaving.start()
    threads = [threading.Thread(target=read) for _ in range(reading.AT_ONCE + 1)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    assert len(misbehaving.running) == reading.AT_ONCE
    for thread in threads:
        thread.join()
    assert max(done) - min(done) > 2


def test_a_killed_server_leaves_no_process(tmp_path: Path, image: Path) -> None:
    process = os.fork()
    if not process:
        own = Reader(64 << 20, 60)
        own("load_volume", (image, None))
        assert own._process is not None
        (tmp_path / "pid").write_text(str(own._process.pid))
        time.sleep(600)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    forking = psutil.Process(int((tmp_path / "pid").read_text()))
    os.kill(process, 9)
    os.waitpid(process, 0)
    forking.wait(SOON)


def test_an_end_while_readers_are_being_imported_waits_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(600)\n")
    made = Reader(64 << 20, 60, modules=["slow_to_import"])
    failed: list[OSError] = []

    def start() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(tmp_path))
            try:
                made.start()
            except OSError as error:
                failed.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    while made._process is None:
        time.sleep(0.01)
    process = psutil.Process(made._process.pid)
    begun = time.monotonic()
    made.stop()
    starting.join()
    assert time.monotonic() - begun < SOON
    assert failed and not process.is_running()
    with pytest.raises(OSError, match="ending"):
        made.start()


def test_a_reader_that_crashes_leaves_nothing(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    made = Reader(64 << 20, 10.0, folder, modules=["tests.support.bad_readers"])
    try:
        with pytest.raises(VolumeError):
            made("leaves", (image,))
        deadline = time.monotonic() + SOON
        while any(folder.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        made.stop()
