"""The check of a file before anything else reads it: which format it has, and whether it may be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError, VolumeError
from .facts import HeaderFacts, ReadLimits, default_limits
from .meta_header import meta_facts
from .nifti_header import nifti_facts
from .nrrd_header import nrrd_facts

NIFTI_SUFFIXES = (".nii", ".nii.gz")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
META_SUFFIXES = (".mha", ".mhd")
SUFFIXES = NIFTI_SUFFIXES + NRRD_SUFFIXES + META_SUFFIXES
"""Endings of the files that hold one image or label each; case does not matter."""


def check_header(path: Path, limits: ReadLimits | None = None) -> HeaderFacts:
    """Look at the header of a NIfTI, NRRD or MetaImage file, with nothing but bounded reads of our own.

    Nothing of the size that the header claims is allocated, and no other file than the one that holds the
    voxels is looked at.

    Raises:
        VolumeError: the file is missing, is none of these, is damaged, is no regular file, names a file that
            lies elsewhere, or cannot hold the voxels that its header claims.
        TooLargeError: the voxels would take more memory than the limit.
    """
    limits = limits or default_limits()
    name = path.name.lower()
    with reading(path.name):
        if name.endswith(NIFTI_SUFFIXES):
            return nifti_facts(path, limits)
        if name.endswith(NRRD_SUFFIXES):
            return nrrd_facts(path, limits)
        if name.endswith(META_SUFFIXES):
            return meta_facts(path, limits)
    raise VolumeError(
        f"An image must be a DICOM folder or end in {', '.join(SUFFIXES)}, but the file is {path.name}."
    )


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever fails because of a file's content into a sentence about the file `name`."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise VolumeError(f"An image must be an existing file or folder, but there is no {name}.") from error
    except OSError as error:
        raise VolumeError(
            f"An image must be readable, but {name} is not: {error.strerror or error}."
        ) from error
    except MemoryError as error:
        raise VolumeError(f"The memory does not suffice to read {name}.") from error
    # Readers of damaged files raise nearly anything, and none of it may end a request without a sentence.
    except Exception as error:
        raise VolumeError(
            f"An image must be a readable file of its kind, but {name} could not be read as one."
        ) from error
