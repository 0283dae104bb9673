"""The simulated annotator and the two regions as MONAI dictionary transforms, as DeepEdit has them.

`cases` has the stages that the app's trainers run; the others serve pipelines of one's own.

They are the functions of `simulation`, `training` and `geometry` with MONAI's calling convention:
dictionaries of channel-first arrays (1, D, H, W), `allow_missing_keys`, and random states that
`Compose.set_random_state` reaches. Points count voxels in the arrays' own order.
"""

from .cases import (
    FirstClicksd,
    LoadCased,
    NormaliseRoid,
    ObjectRoisd,
    ObjectWindowd,
    RandMoved,
    RandWindowd,
    click_transforms,
    sample_transforms,
)
from .clicks import AddClicksd, FindDiscrepancyd
from .crops import GlobalRoid, LocalWindowd, RandObjectCropd, SimulateBoxd

__all__ = [
    "AddClicksd",
    "FindDiscrepancyd",
    "FirstClicksd",
    "GlobalRoid",
    "LoadCased",
    "LocalWindowd",
    "NormaliseRoid",
    "ObjectRoisd",
    "ObjectWindowd",
    "RandMoved",
    "RandObjectCropd",
    "RandWindowd",
    "SimulateBoxd",
    "click_transforms",
    "sample_transforms",
]
