"""Images that clients upload for a session, stored so that no request can reach another file."""

from __future__ import annotations

import json
import logging
import shutil
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from monailabel.utils.sessions import SessionInfo, Sessions
from starlette.datastructures import UploadFile

from ..atomic_files import write_text
from ..errors import UserError
from ..imaging.headers import SUFFIXES
from . import checks
from .answers import FULL, StorageFullError

logger = logging.getLogger(__name__)

MAX_FILES = 10_000
"""Files of one archive."""
DETACHED = (".mhd", ".nhdr")
"""Endings of headers that name another file for their voxels."""
_META = "meta.info"
_BLOCK = 1 << 20


class SafeSessions(Sessions):
    """MONAI Label's sessions with ids that it gave itself, and files that are whole. Thread-safe.

    Args:
        store_path, expiry: as MONAI Label's.
        most_bytes: all sessions' images together.
    """

    def __init__(self, store_path: str = "", expiry: int = 3600, most_bytes: int = 20 << 30) -> None:
        super().__init__(store_path, expiry)
        self.most_bytes = most_bytes
        self._lock = threading.RLock()

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> tuple[str, SessionInfo]:
        """Keep an image: a file, or a folder of slices, or of a header and the file that it names.

        Raises:
            UserError: the sessions hold too much already; the oldest ones expire.
        """
        path = Path(data_file)
        with self._lock:
            self.remove_expired()
            held, more = _bytes_in(Path(self.store_path)), _bytes_in(path)
            if held + more > self.most_bytes:
                raise StorageFullError(
                    f"The sessions hold {held >> 20} MiB already, and may hold {self.most_bytes >> 20} "
                    f"(--conf sessions_gb): {more >> 20} MiB more do not fit. Unused sessions expire."
                )
            image = image_in(path)
            found, info = super().add_session(data_file, expiry, uncompress, session_id)
            if image != path:
                info.image = str(Path(info.image) / image.name)
                self._write_meta_info(found, info)
            return found, info

    def get_session(
        self, session_id: str, update_ts: bool = True, fetch_cache: bool = True
    ) -> SessionInfo | None:
        """A session's information; None for ids that the server never issued and for remains of a crash."""
        try:
            checks.session_id(session_id)
        except UserError:
            return None
        with self._lock:
            try:
                found = super().get_session(session_id, update_ts, fetch_cache)
                image = None if found is None else Path(found.image).resolve()
            except (ValueError, TypeError, AttributeError, OSError):
                logger.exception("The session %s cannot be read", session_id)
                return None
            inside = image is not None and image.is_relative_to(Path(self.store_path).resolve())
            return found if inside else None

    def remove_session(self, session_id: str) -> None:
        checks.session_id(session_id)
        with self._lock:
            super().remove_session(session_id)

    def remove_expired(self) -> int:
        """Remove sessions whose time is over, and folders that never became one."""
        folder = Path(self.store_path)
        count = 0
        for entry in list(folder.iterdir()) if folder.is_dir() else []:
            try:
                checks.session_id(entry.name)
            except UserError:
                # Not a session: whatever it is, it is not ours.
                continue
            with self._lock:
                status = _last_used(entry)
                if status is not None and status[0] + min(status[1], self.expiry) >= time.time():
                    continue
                self.pop(entry.name, None)
                shutil.rmtree(entry, ignore_errors=True)
                count += 1
        return count

    def _write_meta_info(self, session_id: str, session_info: SessionInfo) -> None:
        write_text(Path(self.store_path) / session_id / _META, session_info.to_str())


def received(files: Sequence[UploadFile], folder: Path, uncompress: bool, most_bytes: int) -> Path:
    """The files of an upload in a folder, under safe names; the folder's one file where there is one.

    Args:
        files: as they came.
        folder: an empty one.
        uncompress: unpack the one file, an archive.
        most_bytes: that an archive may unpack to.

    Raises:
        UserError: the archive is none, or holds too much.
        OSError: the disk is full.
    """
    into, out = folder / "received", folder / "series"
    into.mkdir()
    names: dict[str, None] = {}
    for number, file in enumerate(files):
        name = checks.upload_name(file.filename, number)
        name = f"{number}-{name}" if name in names else name
        names[name] = None
        with (into / name).open("wb") as stream:
            shutil.copyfileobj(file.file, stream, _BLOCK)
    if len(names) != 1:
        return into
    path = into / next(iter(names))
    if not uncompress:
        # A file of DICOM is a series of one, and series are folders.
        return into if path.name.lower().endswith(".dcm") else path
    out.mkdir()
    unpacked(path, out, most_bytes)
    held = list(out.iterdir())
    # An archive of one image that is no slice of DICOM is that image.
    return held[0] if len(held) == 1 and held[0].name.lower().endswith(SUFFIXES) else out


def image_in(path: Path) -> Path:
    """The header in a folder that holds an image of two files; what is no such folder is the image itself."""
    if not path.is_dir():
        return path
    found = [file for file in path.iterdir() if file.name.lower().endswith(DETACHED)]
    return found[0] if len(found) == 1 else path


def _bytes_in(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    size = 0
    for file in path.rglob("*") if path.is_dir() else (path,):
        try:
            size += 0 if file.is_dir() else file.stat().st_size
        except OSError:
            # Removed meanwhile.
            continue
    return size


def unpacked(archive: Path, folder: Path, most_bytes: int) -> None:
    """Unpack a .zip or .tar of slices into an empty folder: plain files alone, side by side, with safe names.

    Raises:
        UserError: it is no such archive, or holds too much.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                if not all(entry.filename for entry in packed.infolist()):
                    # Python 3.11 takes it for an error, later ones for a file.
                    raise UserError("The uploaded archive cannot be unpacked: an entry has no name.")
                names = [entry for entry in packed.infolist() if not entry.is_dir()]
                _check_count(len(names))
                left = most_bytes
                for number, entry in enumerate(names):
                    if _is_hidden(entry.filename):
                        continue
                    with packed.open(entry) as stream:
                        left -= _write(stream, folder, entry.filename, number, left)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as packed_tar:
                left, number = most_bytes, 0
                for member in packed_tar:
                    if member.isfile() and (read := packed_tar.extractfile(member)) is not None:
                        number += 1
                        _check_count(number)
                        if not _is_hidden(member.name):
                            left -= _write(read, folder, member.name, number, left)
        else:
            raise UserError("With 'uncompress' the upload must be a .zip or .tar archive, but it is none.")
    except UserError:
        raise
    # A damaged archive shows while it is read, in nearly any way.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise UserError(f"The uploaded archive cannot be unpacked: {str(error)[:200]}.") from error


def _is_hidden(name: str) -> bool:
    """Whether an entry is what a system keeps beside the files, as macOS does in ``__MACOSX/._name``."""
    parts = name.replace("\\", "/").split("/")
    return parts[-1].startswith(".") or "__MACOSX" in parts


def new_folder() -> Path:
    """A folder that this process alone knows."""
    return Path(tempfile.mkdtemp(prefix="dualclickmed-"))


def _check_count(number: int) -> None:
    if number > MAX_FILES:
        raise UserError(f"An archive may hold {MAX_FILES} files, but this one holds more.")


def _write(stream: IO[bytes], folder: Path, name: str, number: int, left: int) -> int:
    target = folder / checks.upload_name(name, number)
    if target.exists():
        target = target.with_name(f"{number}-{target.name}")
    size = 0
    with target.open("wb") as out:
        while block := stream.read(_BLOCK):
            size += len(block)
            if size > left:
                raise UserError("The uploaded archive holds more than this server accepts.")
            out.write(block)
    return size


def _last_used(folder: Path) -> tuple[float, float] | None:
    """When a session was used last and for how long it is kept; None if it never became one."""
    try:
        meta = json.loads((folder / _META).read_text("utf-8"))
        return float(meta["last_access_ts"]), float(meta["expiry"])
    except (OSError, ValueError, KeyError, TypeError):
        try:
            # Perhaps it is being made right now.
            return folder.stat().st_mtime, 600.0
        except OSError:
            return None
