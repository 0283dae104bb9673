"""Where the package's files lie; everything else about it is in pyproject.toml.

The folder `lib` of the app and all below it come under the name `dualclickmed`; an installed package also
holds the app's `main.py` and the weights that ship.
"""

from setuptools import find_packages, setup

LIB = "apps/dualclickmed/lib"

setup(
    packages=[
        "dualclickmed",
        *(f"dualclickmed.{name}" for name in find_packages(LIB)),
        "dualclickmed.app",
        "dualclickmed.model",
    ],
    package_dir={"dualclickmed": LIB, "dualclickmed.app": "apps/dualclickmed", "dualclickmed.model": "model"},
)
