"""Checks of what requests hold: ids, tags, file names, JSON. Each returns a value that is safe to use.

Ids and tags become parts of paths in MONAI Label's datastores, so that nothing but a plain name may pass.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any

from ..errors import UserError

MAX_ID = 200
"""Longest id of an image, label or series, in characters; a file's name holds 255 bytes."""
MAX_JSON_DEPTH = 16
MAX_JSON_BYTES = 1 << 20
MAX_TASK_BYTES = 64 << 10
"""Longest JSON of a training or batch request, which travels as one argument of a command."""
UPLOAD_ENDINGS = (
    *(".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd"),
    *(".dcm", ".bin", ".zip", ".tar", ".tar.gz", ".tgz"),
)
"""Kinds of files that clients upload; the longest that fits names the kind."""

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SESSION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGESTS = {"SHA256": 64, "SHA512": 128, "MD5": 32}
_CHECKSUM = re.compile(r"(?:(\w{1,10}):)?([0-9A-Fa-f]+)")


def plain_id(value: str, what: str = "image") -> str:
    """An id that is one part of a path and nothing else.

    Raises:
        UserError: it is empty, too long, holds a folder or what cannot be printed, or is hidden.
    """
    if not value or len(value.encode("utf-8", "replace")) > MAX_ID:
        raise UserError(
            f"The id of an {what} has 1 to {MAX_ID} characters, but {value[:40]!r} has {len(value)}."
        )
    if "/" in value or "\\" in value or not value.isprintable():
        raise UserError(f"An {what}'s id is printable and holds no folders, but {value[:100]!r} is not.")
    if value.startswith("."):
        raise UserError(f"An {what}'s id starts with no dot, but {value[:100]!r} does.")
    return value


def plain_tag(value: str) -> str:
    """A label's tag, which names a folder.

    Raises:
        UserError: it is not letters, digits, '_', '-' and '.'.
    """
    if not _TAG.fullmatch(value) or ".." in value:
        raise UserError(
            f"A label's tag is up to 64 letters, digits, '_', '-' and '.', starting with a letter or digit, "
            f"but it is {value[:100]!r}."
        )
    return value


def session_id(value: str) -> str:
    """The id of a session as the server gave it; empty for none.

    Raises:
        UserError: the server never gave such an id.
    """
    if value and not _SESSION.fullmatch(value):
        raise UserError(
            f"A session's id is that of a session that has not expired, as the server gave it, "
            f"but it is {value[:100]!r}."
        )
    return value


def upload_ending(filename: str | None) -> str:
    """The kind of an uploaded file by its name; the rest of the name is the client's own business.

    Raises:
        UserError: the kind is unknown.
    """
    name = (filename or "").lower()
    endings = [ending for ending in UPLOAD_ENDINGS if name.endswith(ending)]
    if not name:
        return UPLOAD_ENDINGS[0]
    if not endings:
        shown = ", ".join(UPLOAD_ENDINGS)
        raise UserError(f"An uploaded file must end in one of {shown}, but it is called {name[-100:]!r}.")
    return max(endings, key=len)


def upload_name(filename: str | None, number: int) -> str:
    """A name for one of several uploaded files that is safe as part of a path.

    Plain names are kept, because a series' slices and their order go by them in some readers.
    """
    last = PurePosixPath((filename or "").replace("\\", "/")).name
    plain = re.sub(r"[^\w .-]", "_", last, flags=re.ASCII).strip(". ")
    return plain[-100:] if plain.strip("_. ") and plain != "meta.info" else f"file{number}"


def checksum(value: str) -> tuple[str, str]:
    """Algorithm and digest of ``ALGORITHM:digest``; without algorithm SHA256 is meant.

    Raises:
        UserError: it is not of that form.
    """
    found = _CHECKSUM.fullmatch(value)
    algorithm = (found[1] or "SHA256").upper() if found else ""
    if found is None or _DIGESTS.get(algorithm) != len(found[2]):
        raise UserError(
            f"A checksum is ALGORITHM:digest with {', '.join(_DIGESTS)}, but it is {value[:160]!r}."
        )
    return algorithm, found[2].lower()


def json_object(text: str, what: str = "params", *, finite: bool = True) -> dict[str, Any]:
    """A JSON object out of a form's field.

    Args:
        text: what the client sent; empty for an empty object.
        what: the field's name, for the message.
        finite: refuse NaN and infinities, which no later answer could hold.

    Raises:
        UserError: it is not JSON, not an object, too large, too deep, or holds text that is not Unicode.
    """
    if not text.strip():
        return {}
    if len(text) > MAX_JSON_BYTES:
        raise UserError(f"{what!r} may have {MAX_JSON_BYTES} characters, but it has {len(text)}.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{what!r} must be a JSON object, but it cannot be read: {str(error)[:200]}."
        ) from error
    return plain_object(value, what, finite=finite)


def plain_object(
    value: Any, what: str = "params", *, finite: bool = True, most: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """`value`, known to be an object that can be copied, stored and sent again.

    Args:
        value: what JSON was read as.
        what: its name, for the message.
        finite: as in `json_object`.
        most: characters of it as JSON.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, dict):
        raise UserError(f"{what!r} must be a JSON object, but it is {type(value).__name__}.")
    if _depth(value) > MAX_JSON_DEPTH:
        raise UserError(f"{what!r} may be nested {MAX_JSON_DEPTH} deep, but it is nested deeper.")
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=not finite)
        written.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what!r} holds text that is not Unicode.") from error
    except ValueError as error:
        raise UserError(f"{what!r} must hold finite numbers, but it holds NaN or an infinity.") from error
    if len(written) > most:
        raise UserError(f"{what!r} may have {most} characters, but it has {len(written)}.")
    return value


def _depth(value: Any) -> int:
    """How deep lists and objects are nested; counting ends beyond the limit."""
    depth, level = 0, [value]
    while level and depth <= MAX_JSON_DEPTH:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return depth
