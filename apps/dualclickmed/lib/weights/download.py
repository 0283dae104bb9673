"""Fetching published checkpoints: resumable, checked, and imported only when they are whole.

``manifest.json`` beside this file lists what can be fetched, with address, licence and, where their
publishers state them, size and hash.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .. import __version__
from ..atomic_files import replacing
from ..errors import WeightsError
from . import files as weights
from .checkpoints import file_hash
from .convert import Conversion, import_checkpoint, import_target

logger = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("manifest.json")
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as cut."""
READ_BYTES = 1 << 18

OnProgress = Callable[[int, int | None], None]
"""Called with the bytes received and the total, None where the server does not state it."""


@dataclass(frozen=True)
class Entry:
    """A published checkpoint.

    Attributes:
        name: of the imported weights.
        kind: of the imported weights.
        title: for people.
        url: address of the file.
        size: in bytes, as its publisher states it; None where it is not stated.
        sha256: likewise.
        md5: likewise.
        licence: name of the terms.
        licence_url: address of the terms.
        source: address of the page that offers the file.
    """

    name: str
    kind: weights.Kind
    title: str
    url: str
    size: int | None
    sha256: str | None
    md5: str | None
    licence: str
    licence_url: str
    source: str

    @property
    def verified(self) -> bool:
        """Whether a hash is known by which the download can be checked."""
        return bool(self.sha256 or self.md5)


def manifest(path: Path = MANIFEST) -> dict[str, Entry]:
    """Everything that can be downloaded, by name."""
    entries = [Entry(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
    return {entry.name: entry for entry in entries}


def entry_named(name: str) -> Entry:
    """An entry of the manifest.

    Raises:
        WeightsError: there is none of that name.
    """
    known = manifest()
    if name not in known:
        raise WeightsError(f"There is no download '{name}'; there are: {', '.join(known)}.")
    return known[name]


def download(
    entry: Entry,
    directory: str | os.PathLike[str] | None = None,
    accept_unverified: bool = False,
    replace: bool = False,
    progress: OnProgress = lambda done, total: None,
    drop_patch_embedding: bool = False,
) -> tuple[Path, Conversion, str]:
    """Fetch a checkpoint and import it. A run that was interrupted is continued by the next.

    Args:
        entry: of the manifest; its licence has been accepted.
        directory: the folder of weights.
        accept_unverified: import a file of which no hash is known.
        replace: overwrite weights of that name.
        progress: told now and then.
        drop_patch_embedding: as for `import_checkpoint`.

    Returns:
        The weight file, what was converted, and the SHA-256 of what was fetched.

    Raises:
        WeightsError: no network, the connection was cut, the file is not the one that the manifest means, or
            it can't be imported. The weights are as they were before; what was fetched so far stays where the
            connection was cut, and goes where the file was wrong.
    """
    if not entry.verified and not accept_unverified:
        raise WeightsError(
            f"No hash of '{entry.name}' is known, so what arrives can't be checked; pass --accept-unverified "
            "to import it all the same (only tensors are read)."
        )
    target = import_target(entry.kind, entry.name, directory, replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{entry.name}.part")
    fetch(entry, part, progress)
    try:
        digest = _checked(entry, part)
        card = {
            "command": f"weights download {entry.name}",
            "licence": f"{entry.licence} ({entry.licence_url})",
            "source": {
                "file": Path(urlsplit(entry.url).path).name,
                "url": entry.url,
                "sha256": digest,
                "bytes": part.stat().st_size,
                "verified": entry.verified,
            },
        }
        path, conversion = import_checkpoint(
            part,
            entry.kind,
            entry.name,
            directory,
            drop_patch_embedding=drop_patch_embedding,
            replace=replace,
            card=card,
        )
    except WeightsError:
        _discard(part)
        raise
    _discard(part)
    return path, conversion, digest


def fetch(entry: Entry, part: Path, progress: OnProgress = lambda done, total: None) -> None:
    """Download the rest of the file into `part`, from wherever it stopped.

    Beside it, ``.json`` remembers which version of the file the bytes are of (ETag or date). The rest is
    asked for on the condition that the server still has that version; otherwise everything comes anew.

    Raises:
        WeightsError: as `download`.
    """
    _require_safe(entry.url)
    held, remembered = _held(entry, part)
    if remembered and held and held == remembered["size"]:
        return
    request = urllib.request.Request(entry.url, headers=_headers(held, remembered))
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            start = _start(entry, response, held)
            total = _total(response, start)
            if entry.size is not None and total not in (None, entry.size):
                raise WeightsError(
                    f"'{entry.url}' is {total} bytes, but {entry.size} are expected: it has changed."
                )
            _remember(entry, part, response, total)
            done = _receive(response, part, start, total, progress)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            _discard(part)
        raise WeightsError(
            f"The server answered {error.code} ({error.reason}) for '{entry.url}'; {_by_hand(entry)}."
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the disk, not the network
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            f"'{entry.url}' can't be reached, or the connection broke ({reason}). Run the command again to "
            f"go on from where it stopped; {_by_hand(entry)}."
        ) from error
    if total is not None and done != total:
        raise WeightsError(
            f"The connection was cut after {done} of {total} bytes; run the command again to go on from "
            "there."
        )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to where a download may come from."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_safe(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_safe(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme, parts.hostname) != ("http", "127.0.0.1"):
        raise WeightsError(f"Weights are only fetched over https, but the address is '{url}'.")


def _headers(held: int, remembered: dict[str, Any] | None) -> dict[str, str]:
    headers = {"User-Agent": f"dualclickmed/{__version__}", "Accept-Encoding": "identity"}
    if held and remembered:
        headers |= {"Range": f"bytes={held}-", "If-Range": remembered["version"]}
    return headers


def _held(entry: Entry, part: Path) -> tuple[int, dict[str, Any] | None]:
    """How many bytes can be kept, and the version of the file that they are of."""
    try:
        remembered = json.loads(_memory(part).read_text(encoding="utf-8"))
        held = part.stat().st_size
    except (OSError, ValueError):
        return 0, None
    usable = (
        isinstance(remembered, dict)
        and remembered.get("url") == entry.url
        and isinstance(remembered.get("version"), str)
        and isinstance(remembered.get("size"), int)
        and held <= remembered["size"]
    )
    return (held, remembered) if usable else (0, None)


def _start(entry: Entry, response: Any, held: int) -> int:
    """The position in the file of the first byte that comes."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    span = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", response.headers.get("Content-Range", ""))
    if span is None or int(span[1]) != held:
        raise WeightsError(f"The server sends another part of '{entry.url}' than was asked for; try again.")
    return held


def _total(response: Any, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _remember(entry: Entry, part: Path, response: Any, total: int | None) -> None:
    tag = response.headers.get("ETag", "")
    # A weak tag promises the same meaning, not the same bytes.
    version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
    text = json.dumps({"url": entry.url, "version": version, "size": total})
    with replacing(_memory(part)) as memory:
        memory.write_text(text, encoding="utf-8")
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            # The note of a version must never lie beside another version's bytes.
            part.unlink(missing_ok=True)


def _receive(response: Any, part: Path, start: int, total: int | None, progress: OnProgress) -> int:
    done = start
    with part.open("ab" if start else "wb", buffering=0) as stream:
        progress(done, total)
        while piece := response.read1(READ_BYTES):
            try:
                stream.write(piece)
            except OSError as error:
                raise WeightsError(f"'{part}' can't be written ({error.strerror}); make room.") from error
            done += len(piece)
            progress(done, total)
        os.fsync(stream.fileno())
    return done


def _checked(entry: Entry, part: Path) -> str:
    """The SHA-256 of what was fetched."""
    size = part.stat().st_size
    if entry.size not in (None, size):
        raise WeightsError(f"'{entry.url}' gave {size} bytes, but {entry.size} are expected; run it again.")
    digest = file_hash(part)
    for algorithm, expected in (("sha256", entry.sha256), ("md5", entry.md5)):
        found = digest if algorithm == "sha256" else expected and file_hash(part, algorithm)
        if expected and found != expected:
            raise WeightsError(
                f"'{entry.url}' is not the file that is expected: its {algorithm.upper()} is {found}, its "
                f"publisher states {expected}. It was deleted; run it again, or report that it changed."
            )
    return digest


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _memory(part).unlink(missing_ok=True)


def _memory(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _by_hand(entry: Entry) -> str:
    return f"or fetch the file elsewhere and run 'weights import FILE --as {entry.kind} --name {entry.name}'"
