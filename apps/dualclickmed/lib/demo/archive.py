"""An archive with DICOMweb: Debian's Orthanc, for the demo and the tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from ..errors import UserError

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 200.0


@dataclass
class Archive:
    """A running Orthanc."""

    url: str

    @property
    def dicomweb(self) -> str:
        """Address of its DICOMweb services."""
        return f"{self.url}/dicom-web"

    def __post_init__(self) -> None:
        self.http = requests.Session()
        # No proxy on the way to the loopback address.
        self.http.trust_env = False

    def add(self, folder: Path) -> None:
        """Store every file of a folder."""
        for path in sorted(folder.iterdir()):
            self.http.post(f"{self.url}/instances", data=path.read_bytes(), timeout=60).raise_for_status()

    def studies(self) -> list[str]:
        """The UIDs of all studies."""
        query = {"Level": "Study", "Query": {}, "Expand": True}
        found = self.http.post(f"{self.url}/tools/find", data=json.dumps(query), timeout=60).json()
        return [study["MainDicomTags"]["StudyInstanceUID"] for study in found]

    def segmentations(self, study: str) -> list[bytes]:
        """The files of a study's DICOM SEG objects."""
        query = {"Level": "Series", "Query": {"StudyInstanceUID": study, "Modality": "SEG"}, "Expand": True}
        found = self.http.post(f"{self.url}/tools/find", data=json.dumps(query), timeout=60).json()
        instances = [instance for series in found for instance in series["Instances"]]
        return [self.http.get(f"{self.url}/instances/{id}/file", timeout=60).content for id in instances]


def installed() -> str | None:
    """The program, if it and its plugin are there."""
    program = shutil.which("Orthanc", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    return program if PLUGIN.exists() else None


@contextmanager
def orthanc(folder: Path, port: int) -> Iterator[Archive]:
    """Orthanc with its DICOMweb plugin on this machine alone; it ends with the block.

    Args:
        folder: what it stores stays there.
        port: of its web server.

    Raises:
        UserError: it is not installed, or does not start.
    """
    program = installed()
    if program is None:
        raise UserError(
            "An archive needs Debian's packages orthanc and orthanc-dicomweb: "
            "apt-get install orthanc orthanc-dicomweb."
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "Name": "dualclickmed",
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
        "StorageDirectory": str((folder / "storage").resolve()),
        "IndexDirectory": str((folder / "storage").resolve()),
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    log = folder / "orthanc.log"
    with log.open("wb") as stream:
        command = [program, str(folder / "orthanc.json")]
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
        try:
            archive = Archive(f"http://127.0.0.1:{port}")
            _wait_until_up(archive, process, log)
            yield archive
        finally:
            end_group(process)


def _wait_until_up(archive: Archive, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            archive.http.get(f"{archive.dicomweb}/studies", timeout=5).raise_for_status()
            return
        except requests.RequestException as error:
            if process.poll() is not None or time.monotonic() > deadline:
                output = log.read_text(errors="replace")[-2000:]
                raise UserError(f"Orthanc did not start on {archive.url}; it says:\n{output}") from error
            time.sleep(0.2)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a program that was started in a session of its own, and every process that it started."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, end)
            process.wait(timeout=15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
