"""`GET /learning/agreement`: how far the annotators of an image agree, in figures and as a map."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import nibabel as nib
from fastapi import APIRouter, Depends
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse
from monailabel.config import RBAC_USER, settings
from monailabel.endpoints.user.auth import RBAC, User

from ..learning.agreement import compare, disagreement, facts
from .learning import Learning


class Output(str, Enum):
    """The form of the answer: figures, or a map of the voxels on which the annotators disagree."""

    json = "json"
    map = "map"


def router(learning: Learning, answer_to: Callable[[Exception], Exception]) -> APIRouter:
    """The endpoint.

    Args:
        learning: of the app.
        answer_to: makes the answer to an error.
    """
    found = APIRouter(prefix="/learning", tags=["Learning"])

    @found.get("/agreement", summary=f"{RBAC_USER}How far annotators agree", response_model=None)
    def agreement(
        image: str,
        label: str | None = None,
        output: Output = Output.json,
        user: User = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER)),  # noqa: B008
    ) -> Any:
        """Dice, surface distance and its 95th percentile in mm for each label and pair of annotators.

        With ``output=map`` a NIfTI file on the image's grid: at each voxel the number of annotators who
        differ from the majority about `label`, or the largest such number over all labels if none is given.
        """
        try:
            volume, versions = learning.versions(image)
            if output is Output.json:
                return {"image": image, **facts(compare(versions, volume), versions)}
            values = volume.to_raw_array(disagreement(versions, label))
            handle, name = tempfile.mkstemp(prefix="dualclickmed-", suffix=".nii.gz")
            os.close(handle)
            nib.save(nib.Nifti1Image(values, volume.affine), name)
        except Exception as error:
            raise answer_to(error) from error
        after = BackgroundTasks()
        after.add_task(Path(name).unlink, missing_ok=True)
        return FileResponse(name, filename=f"{image}-disagreement.nii.gz", background=after)

    return found
