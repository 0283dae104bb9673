"""Lists the packages: the folder `lib` of the app and all below it, under the name `dualclickmed`."""

from setuptools import find_packages, setup

setup(packages=["dualclickmed", *(f"dualclickmed.{name}" for name in find_packages("apps/dualclickmed/lib"))])
