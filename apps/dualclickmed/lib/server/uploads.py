"""Files that come with a request: stored for it alone, checked before use, removed with its answer.

MONAI Label's own endpoints store a label before it has been read, and leave a file behind where the disk is
full.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from fastapi import BackgroundTasks
from monailabel.endpoints import infer
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.others.generic import remove_file
from starlette.datastructures import UploadFile

from ..configs import wire
from ..errors import UserError
from ..imaging.volume import Volume
from . import checks
from .reading import Reader

BINARY = ".bin"
"""The ending of OHIF's labels: one byte for each voxel, in the order of the image's file."""
BLOCK = 1 << 20


@dataclass(frozen=True)
class Files:
    """How the endpoints read files.

    Attributes:
        load: an image of the studies, by its id.
        image: reads a new image, a file or a folder, and gives notes about it.
        label: reads a label of an image, given by its id, with what was sent along.
        reader: runs the readers; None where they run in this process.
    """

    load: Callable[[str], Volume]
    image: Callable[[Path], list[str]]
    label: Callable[[str, Path, Mapping[str, Any]], None]
    reader: Reader | None = None


def stored(upload: UploadFile, after: BackgroundTasks) -> Path:
    """An upload in a temporary file, which `after` removes.

    Raises:
        OSError: the disk is full.
    """
    handle, name = tempfile.mkstemp(suffix=checks.upload_ending(upload.filename))
    after.add_task(remove_file, name)
    with os.fdopen(handle, "wb") as file:
        shutil.copyfileobj(upload.file, file, BLOCK)
    return Path(name)


def from_binary(path: Path, volume: Volume, after: BackgroundTasks) -> Path:
    """OHIF's label as NIfTI.

    Raises:
        UserError: it has not one byte for each voxel of its image.
    """
    voxels = int(np.prod(volume.raw_shape))
    if path.stat().st_size != voxels:
        raise UserError(
            f"A label that ends in {BINARY} has one byte for each of the image's {voxels} voxels, "
            f"but it has {path.stat().st_size}."
        )
    array = np.fromfile(path, np.uint8).reshape(volume.raw_shape, order="F")
    handle, name = tempfile.mkstemp(suffix=".nii.gz")
    os.close(handle)
    after.add_task(remove_file, name)
    nib.save(nib.Nifti1Image(array, volume.affine), name)
    return Path(name)


def segmentation(given: Mapping[str, Any], load: Callable[[str], Volume]) -> Any:
    """Answer a request for a segmentation by MONAI Label's own endpoint.

    Args:
        given: that endpoint's arguments.
        load: gives an image of the studies.

    Raises:
        UserError: an upload cannot be used.
    """
    tasks: BackgroundTasks = given["background_tasks"]
    image, params = given["image"], json.loads(given["params"] or "{}")
    # `label` is the label to segment for clients, so an uploaded segmentation has another key.
    params.pop(wire.LABEL_FILE, None)
    if given["label"]:
        label = stored(given["label"], tasks)
        if label.name.endswith(BINARY):
            label = from_binary(label, load(image), tasks)
        params[wire.LABEL_FILE] = str(label)
    if given["file"]:
        image = str(stored(given["file"], tasks))
    return infer.run_inference(
        tasks, given["model"], image, given["session_id"], json.dumps(params), None, None, given["output"]
    )


def new_image(app: Any, given: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """Store an image in the studies once it has been read.

    Args:
        app: the app.
        given: the arguments of MONAI Label's endpoint.
        files: how it is read.

    Returns:
        "image", its id, and "notes".

    Raises:
        UserError: it cannot be used; nothing is stored then.
    """
    path = stored(given["file"], given["background_tasks"])
    notes = files.image(path)
    return {"image": app.datastore().add_image(given["image"], str(path), _info(given)), "notes": notes}


def new_label(app: Any, given: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """Store a label once it has been read.

    Args:
        app: the app.
        given: the arguments of MONAI Label's endpoint.
        files: how it is read.

    Returns:
        "image" and "label", its id, and what the app says about it.

    Raises:
        UserError: it cannot be used; nothing is stored and nothing replaced then.
    """
    tasks, image, info = given["background_tasks"], given["image"], _info(given)
    path = stored(given["label"], tasks)
    if path.name.endswith(BINARY):
        path = from_binary(path, files.load(image), tasks)
    tag = given["tag"] or DefaultLabelTag.FINAL.value
    if tag != DefaultLabelTag.FINAL.value:
        # Final labels are read by `Learning.save_label`, whose answer says what was understood.
        files.label(image, path, info)
    label = app.datastore().save_label(image, str(path), tag, info)
    return {**(app.on_save_label(image, label) or {}), "image": image, "label": label}


def _info(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored with an image or a label: the parameters, and who sent them."""
    user = getattr(given.get("user"), "username", None)
    return json.loads(given["params"] or "{}") | ({"user": user} if user else {})
