"""The simulated annotator and the two regions as MONAI dictionary transforms, as DeepEdit has them.

They are the functions of `simulation`, `training` and `geometry` with MONAI's calling convention:
dictionaries of channel-first arrays (1, D, H, W), `allow_missing_keys`, and random states that
`Compose.set_random_state` reaches. Points count voxels in the arrays' own order.
"""

from .clicks import AddClicksd, FindDiscrepancyd
from .crops import GlobalRoid, LocalWindowd, RandObjectCropd, SimulateBoxd

__all__ = [
    "AddClicksd",
    "FindDiscrepancyd",
    "GlobalRoid",
    "LocalWindowd",
    "RandObjectCropd",
    "SimulateBoxd",
]
