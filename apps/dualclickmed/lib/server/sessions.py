"""Images that clients upload to work on for a while, kept so that no request reaches another file."""

from __future__ import annotations

import json
import logging
import lzma
import shutil
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from pathlib import Path
from typing import IO

from monailabel.utils.sessions import SessionInfo, Sessions

from ..atomic_files import write_text
from ..errors import UserError
from . import checks

logger = logging.getLogger(__name__)

MAX_FILES = 10_000
"""Files of one archive."""
_META = "meta.info"
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, RuntimeError, NotImplementedError),
)
_BLOCK = 1 << 20


class SafeSessions(Sessions):
    """MONAI Label's sessions with ids that it gave itself, and files that are whole. Thread-safe."""

    def __init__(self, store_path: str = "", expiry: int = 3600) -> None:
        super().__init__(store_path, expiry)
        self._lock = threading.RLock()

    def get_session(
        self, session_id: str, update_ts: bool = True, fetch_cache: bool = True
    ) -> SessionInfo | None:
        """What is known about a session; None for ids that the server never gave, and what a crash left."""
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


def unpacked(archive: Path, folder: Path, most_bytes: int) -> None:
    """Unpack a .zip or .tar of slices into an empty folder: plain files alone, side by side, with safe names.

    Raises:
        UserError: it is no such archive, or holds too much.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                names = [entry for entry in packed.infolist() if not entry.is_dir()]
                _check_count(len(names))
                left = most_bytes
                for number, entry in enumerate(names):
                    with packed.open(entry) as stream:
                        left -= _write(stream, folder, entry.filename, number, left)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as packed_tar:
                left, number = most_bytes, 0
                for member in packed_tar:
                    if member.isfile() and (read := packed_tar.extractfile(member)) is not None:
                        number += 1
                        _check_count(number)
                        left -= _write(read, folder, member.name, number, left)
        else:
            raise UserError("With 'uncompress' the upload must be a .zip or .tar archive, but it is none.")
    # A damaged archive shows while it is read, in as many ways as there are packers.
    except _DAMAGED as error:
        raise UserError(f"The uploaded archive cannot be unpacked: {str(error)[:200]}.") from error


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
