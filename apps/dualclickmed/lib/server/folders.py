"""Images and labels in folders: which files count, the id of each, and whether files have come or gone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from monailabel.utils.others.generic import file_ext

SEGMENTS = ".seg.nrrd"
"""Ending of 3D Slicer's segmentations, which is one of two parts."""
RACY_SECONDS = 1.0
"""A folder listed so few seconds after a change may change again within the same tick of its clock."""


def split(name: str, endings: Sequence[str]) -> tuple[str, str]:
    """A file's stem and its ending, as they are written: the longest of some endings, in any case."""
    found = [ending for ending in (*endings, SEGMENTS) if name.lower().endswith(ending.lower())]
    size = len(max(found, key=len)) if found else len(file_ext(name))
    return (name[:-size], name[-size:]) if 0 < size < len(name) else (name, "")


def named(folder: Path, endings: Sequence[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Id to name of the images, or labels, that lie in a folder.

    An id is the file's stem. Where several files have one stem each of them is called by its full name,
    except those that are known by an id already, to which labels may belong.

    Args:
        folder: where they lie.
        endings: of files that are some, in any case.
        known: name to id of what was there before.

    Raises:
        OSError: the folder cannot be listed.
    """
    names = sorted(
        file.name
        for file in folder.iterdir()
        if not file.name.startswith(".") and file.name.lower().endswith(tuple(e.lower() for e in endings))
    )
    known = known or {}
    stems = Counter(split(name, endings)[0] for name in names)
    kept = {known[name]: name for name in names if name in known}
    found = dict(kept)
    taken = set(kept.values())
    for name in names:
        if name not in taken:
            stem = split(name, endings)[0]
            found[stem if stems[stem] == 1 and stem not in found else name] = name
    return found


class Watched:
    """Tells whether files were added to folders or removed from them since the last call."""

    def __init__(self) -> None:
        self._state: tuple[tuple[str, int], ...] | None = None
        self._names: tuple[tuple[str, ...], ...] | None = None

    def changed(self, folders: Sequence[Path]) -> bool:
        """Whether there are other files than at the last call.

        Raises:
            OSError: a folder cannot be listed.
        """
        # Before the names: what is added meanwhile is found the next time.
        state = tuple((str(folder), folder.stat().st_mtime_ns) for folder in folders)
        if state == self._state:
            return False
        names = tuple(
            tuple(sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")))
            for folder in folders
        )
        newest = max((changed for _, changed in state), default=0)
        before, self._names = self._names, names
        self._state = None if time.time() - newest / 1e9 < RACY_SECONDS else state
        return names != before

    def forget(self) -> None:
        """Let the next call of `changed` return True."""
        self._state = self._names = None
