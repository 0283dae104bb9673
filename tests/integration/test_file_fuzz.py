"""Image and label files with bytes that were flipped, cut and added, sent to a running server.

`make test-server` sends 5,000 of them, the usual tests 200. Whatever comes, the answer is a mask or a
sentence, within five seconds, and the server is afterwards what it was before.
"""

from __future__ import annotations

import gzip
import io
import logging
import struct
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import SimpleITK as sitk

from tests.support import hostile
from tests.support.dicoms import write_series
from tests.support.live import Server, an_image, save, serving

CLICK = {"liver": [[6, 5, 4]]}
SECRET = b"nobody may read this"
SLOWEST = 5.0
MAX_GROWTH = 16 << 20
"""Memory that the server's own processes may hold more than before, after however many files."""
RETURNED = {
    name: str(64 << 10) for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
} | {"MALLOC_ARENA_MAX": "1"}
"""glibc gives what is freed back to the system, so that only what is held counts: otherwise it keeps some
100 MiB of a server's largest computations for the next ones, in steps of up to 50 MiB."""
NUMBERS = (b"0", b"-1", b"99999999999", b"2147483648", b"1e308", b"nan", b"3.7", b"", b"x", b"16", b"1 1")
LINES = (
    *(b"data file: {secret}", b"ElementDataFile = {secret}", b"data file: LIST", b"byte skip: -1"),
    *(b"line skip: 1000000000", b"encoding: bzip2", b"encoding: hex", b"ElementDataFile = LIST"),
    *(b"HeaderSize = -1", b"HeaderSize = 99999999999", b"NDims = -3", b"dimension: 16", b"\0\0\0"),
    *(b"ElementNumberOfChannels = 1000000000", b"BinaryData = False", b"CompressedDataSize = -5"),
    *(b"space directions: none none none", b"kinds: list domain domain domain", b"CompressedData = True"),
)


class Files:
    """Damaged copies of a few good files, the same on every run.

    Args:
        seed: another one damages them otherwise.
        folder: for what has to lie on the disk while it is made.
        secret: a file that none may reach.
    """

    def __init__(self, seed: int, folder: Path, secret: Path) -> None:
        self.rng = np.random.default_rng(seed)
        self.secret = str(secret).encode()
        self.good = list(_good(folder))

    def one(self) -> tuple[str, bytes, bool]:
        """Ending and content of a damaged file, and whether it is a label."""
        ending, data, label = self.good[self.rng.integers(len(self.good))]
        if ending.endswith("gz") and self.rng.random() < 0.5:
            # Whole on the outside, damaged within.
            return ending, gzip.compress(self._damaged(gzip.decompress(data), 1), 1), label
        for _ in range(self.rng.integers(1, 4)):
            data = self._damaged(data, 2)
        return ending, data, label

    def _damaged(self, data: bytes, fewest: int) -> bytes:
        ways = [self._flipped, self._cut, self._grown, self._number, self._line, self._field, self._repeated]
        return ways[self.rng.integers(len(ways))](data) if len(data) > 16 else data + b"\0" * fewest

    def _at(self, data: bytes) -> int:
        """A place, mostly in the header."""
        most = min(len(data), 600) if self.rng.random() < 0.7 else len(data)
        return int(self.rng.integers(most))

    def _flipped(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.rng.integers(1, 9)):
            changed[self._at(data)] ^= 1 << int(self.rng.integers(8))
        return bytes(changed)

    def _cut(self, data: bytes) -> bytes:
        first, second = sorted((self._at(data), int(self.rng.integers(len(data)))))
        return data[:first] if self.rng.random() < 0.5 else data[:first] + data[second:]

    def _grown(self, data: bytes) -> bytes:
        at = self._at(data)
        more = self.rng.bytes(int(self.rng.integers(1, 400)))
        return data[:at] + more + data[at:]

    def _repeated(self, data: bytes) -> bytes:
        first, second = sorted((self._at(data), self._at(data)))
        return data[:second] + data[first:second] * int(self.rng.integers(1, 60)) + data[second:]

    def _number(self, data: bytes) -> bytes:
        """One of the header's written numbers becomes another."""
        head = data[:1500]
        digits = [n for n, byte in enumerate(head) if 48 <= byte < 58]
        if not digits:
            return self._flipped(data)
        at = digits[self.rng.integers(len(digits))]
        return data[:at] + NUMBERS[self.rng.integers(len(NUMBERS))] + data[at + 1 :]

    def _line(self, data: bytes) -> bytes:
        ends = [n for n, byte in enumerate(data[:1500]) if byte == 10]
        if not ends:
            return self._grown(data)
        at = ends[self.rng.integers(len(ends))] + 1
        line = LINES[self.rng.integers(len(LINES))].replace(b"{secret}", self.secret)
        return data[:at] + line + b"\n" + data[at:]

    def _field(self, data: bytes) -> bytes:
        """Two, four or eight bytes become an extreme number."""
        form, values = [
            ("<h", (-1, 0, 32767, -32768)),
            ("<i", (-1, 0, 2**31 - 1, -(2**31))),
            ("<f", (float("nan"), float("inf"), 1e38, -1e-38)),
            ("<d", (float("nan"), 1e308, -1.0)),
        ][self.rng.integers(4)]
        at = self._at(data)
        new = struct.pack(form, values[self.rng.integers(len(values))])
        return data[:at] + new + data[at + len(new) :]


def _good(folder: Path) -> Iterator[tuple[str, bytes, bool]]:
    """Ending and content of files that can be read, and whether each is a label."""
    image = hostile.an_array()
    label = (image > 70).astype(np.uint8)
    whole = hostile.a_nifti(image)
    yield ".nii", whole, False
    yield ".nii.gz", gzip.compress(whole), False
    yield ".nii", hostile.a_nifti(image.astype(np.float64)), False
    yield ".nii.gz", gzip.compress(hostile.a_nifti(label)), True
    for name, array, is_label in (("image", image, False), ("label", label, True)):
        for ending in (".nrrd", ".mha"):
            for packed in (False, True):
                path = folder / f"{name}{ending}"
                sitk.WriteImage(sitk.GetImageFromArray(array.T.copy()), str(path), packed)
                yield ending, path.read_bytes(), is_label
    segments = sitk.GetImageFromArray(label.T.copy())
    for key, value in {"Name": "liver", "LabelValue": "1", "Layer": "0", "ID": "a"}.items():
        segments.SetMetaData(f"Segment0_{key}", value)
    path = folder / "segments.seg.nrrd"
    sitk.WriteImage(segments, str(path), True)
    yield ".seg.nrrd", path.read_bytes(), True
    series = write_series(folder / "series", image, (1.0, 1.0, 1.0))
    slices = sorted(series.folder.iterdir())
    yield ".zip", _zipped([file.read_bytes() for file in slices]), False


def _zipped(slices: list[bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, data in enumerate(slices):
            archive.writestr(f"{number}.dcm", data)
    return packed.getvalue()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    def studies(folder: Path) -> None:
        folder.mkdir()
        save(folder, "ct", an_image(hostile.SHAPE))
        (folder.parent / "secret.txt").write_bytes(SECRET * 200)

    with serving(
        tmp_path_factory.mktemp("files"),
        studies,
        {"cache_gb": "0.02", "image_gb": "0.5"},
        RETURNED,
        up="/health",
    ) as started:
        yield started


def sent(server: Server, door: int, ending: str, data: bytes, label: bool) -> requests.Response:
    """The answer to one file, through one of the doors that take such files."""
    name = f"sent{ending}"
    if ending == ".zip":
        answer = server.http.put(
            f"{server.url}/session/?uncompress=true", files={"files": (name, data)}, timeout=60
        )
        if answer.status_code != 200:
            return answer
        number = answer.json()["session_id"]
        try:
            return server.infer("dualclickmed", None, CLICK, session=number)
        finally:
            server.http.delete(f"{server.url}/session/{number}", timeout=60)
    if label and door % 2:
        params = {**CLICK, "existing": "keep"}
        return server.infer("dualclickmed", "ct", params, files={"label": (name, data)})
    if label:
        return server.http.put(
            f"{server.url}/datastore/label?image=ct&tag=final", files={"label": (name, data)}, timeout=60
        )
    if door % 2:
        return server.infer("dualclickmed", None, CLICK, files={"file": (name, data)})
    answer = server.http.put(
        f"{server.url}/datastore/image?image=x", files={"file": (name, data)}, timeout=60
    )
    if answer.status_code == 200:
        assert server.http.delete(f"{server.url}/datastore/image?id=x", timeout=60).status_code == 200
    return answer


def held(server: Server) -> int:
    """Bytes that the server and the process that forks its readers hold, once no reader is at work."""
    main = psutil.Process(server.pid)
    deadline = time.monotonic() + 30
    while True:
        own = main.children()
        readers = [reader for child in own for reader in children(child)]
        if not readers:
            return sum(process.memory_info().rss for process in [main, *own])
        assert time.monotonic() < deadline, f"readers that do not end: {readers}"
        time.sleep(0.05)


def children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def hold(server: Server, files: Files, count: int) -> None:
    """Send so many damaged files, and check each answer and what the server is afterwards."""
    good = server.infer("dualclickmed", "ct", CLICK)
    assert good.status_code == 200
    temporary = set(server.temporary.rglob("*"))
    statuses: Counter[int] = Counter()
    slowest, begun, before = 0.0, time.monotonic(), 0
    for number in range(count):
        ending, data, label = files.one()
        start = time.monotonic()
        answer = sent(server, number, ending, data, label)
        seconds = time.monotonic() - start
        slowest = max(slowest, seconds)
        what = f"file {number} ({ending}, {len(data)} bytes)"
        assert answer.status_code in (200, 400, 413), f"{what}: {answer.status_code} {answer.text[:300]}"
        assert seconds < SLOWEST, f"{what}: {seconds:.1f} s"
        assert SECRET not in answer.content, what
        statuses[answer.status_code] += 1
        if number == min(100, count // 3):
            before = held(server)
    grown = held(server) - before
    logging.getLogger(__name__).info(
        "%d files in %.0f s: %s, slowest answer %.2f s, %.1f MiB more",
        *(count, time.monotonic() - begun, dict(sorted(statuses.items())), slowest, grown / 2**20),
    )
    assert grown < MAX_GROWTH, f"{grown / 2**20:.0f} MiB more"
    # A generator whose files all pass, or all fail at the first byte, tests nothing.
    assert statuses[200] > count / 50 and statuses[400] > count / 4, statuses
    # The last answer's file goes once it is sent.
    deadline = time.monotonic() + 10
    while (left := set(server.temporary.rglob("*")) - temporary) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == set()
    health = server.get("/health")
    assert health.status_code == 200 and health.json()["stuck"] == 0
    again = server.infer("dualclickmed", "ct", CLICK)
    assert again.content == good.content


def test_damaged_files_are_read_or_refused(target: Server, tmp_path: Path) -> None:
    hold(target, Files(1, tmp_path, target.studies.parent / "secret.txt"), 200)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(5))
def test_a_thousand_damaged_files(target: Server, tmp_path: Path, part: int) -> None:
    hold(target, Files(10 + part, tmp_path, target.studies.parent / "secret.txt"), 1000)
