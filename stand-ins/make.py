"""Make the wheels in ``wheels``: packages that MONAI Label 0.8.5 asks for and that nothing here runs.

    python stand-ins/make.py

``pip install monailabel`` brings 2.5 GB of packages that no part of this app imports (itk alone has 1.5 GB),
and two of them keep numpy 2, pydicom 3 and Python 3.13 out. Each wheel made here has the name of one such
package and a version that MONAI Label accepts, marked as ours (``itk 5.4.7+standin``), and is empty; three
hold the few names that MONAI Label needs. ``requirements.txt`` asks for them by these very versions. To
use a real package instead, install it afterwards: ``pip install --force-reinstall itk==5.4.7``.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "wheels"
MODULES = Path(__file__).parent / "modules"
LABEL = "standin"
VERSIONS = {
    "fire": "0.7.1",
    "gdown": "6.5.1",
    "itk": "5.4.7",
    "lmdb": "3.0.0",
    "mlflow": "3.17.2",
    "ninja": "1.13.2",
    "numpymaxflow": "0.0.7",
    "openslide-bin": "4.0.1.2",
    "openslide-python": "1.4.7",
    "pydicom-seg": "0.4.1",
    "pynetdicom": "3.0.4",
    "sam2": "1.1.0",
    "scikit-learn": "1.9.1",
    "shapely": "2.2.0",
    "timeloop": "1.0.2",
    "torchvision": "0.28.0",
}
"""What each stands in for: the release that it took the place of."""
_EPOCH = (2020, 1, 1, 0, 0, 0)


def make(name: str, version: str, folder: Path) -> Path:
    """One wheel; the same bytes every time."""
    plain = name.replace("-", "_")
    information = f"{plain}-{version}+{LABEL}.dist-info"
    module = MODULES / f"{plain}.py"
    files = {f"{plain}.py": module.read_text()} if module.exists() else {}
    files[f"{information}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}+{LABEL}\n"
        f"Summary: Stands in for {name} {version}, which MONAI Label asks for but DualClickMed never runs\n"
        "License: Apache-2.0\n"
    )
    files[f"{information}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: dualclickmed\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    lines = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text.encode())}\n")
    record = f"{information}/RECORD"
    files[record] = "".join(lines) + f"{record},,\n"
    wheel = folder / f"{plain}-{version}+{LABEL}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), text)
    return wheel


def main() -> None:
    """Write all of them anew."""
    FOLDER.mkdir(exist_ok=True)
    for wheel in FOLDER.glob("*.whl"):
        wheel.unlink()
    for name, version in VERSIONS.items():
        make(name, version, FOLDER)


if __name__ == "__main__":
    main()
