"""Where the package's files lie, and its address; everything else about it is in pyproject.toml.

The folder `lib` of the app and all below it come under the name `dualclickmed`; an installed package also
holds the app's `main.py` and the weights that ship.
"""

import os
import re
import subprocess
from pathlib import Path

from setuptools import find_packages, setup

LIB = "apps/dualclickmed/lib"
ADDRESS = "DUALCLICKMED_REPOSITORY"
"""Variable with the address of the repository, for a build from a copy that git does not know."""


def cloned_from() -> str:
    """What git calls this clone's origin, or the variable; empty if neither says anything."""
    told = os.environ.get(ADDRESS)
    if told is not None:
        return told
    command = ["git", "config", "--get", "remote.origin.url"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        return ""


def addresses(origin: str) -> dict[str, str]:
    """The package's addresses, from that of the repository: its pages, where anybody can reach them.

    A folder of this machine, a port of its own or a name with a password in it is nobody else's business.
    """
    found = re.fullmatch(
        r"(?:https://|ssh://git@|git@)([\w-]+(?:\.[\w-]+)+)[/:]([\w./~-]+?)(?:\.git)?/?", origin
    )
    if found is None:
        return {}
    page = f"https://{found[1]}/{found[2]}"
    return {"Homepage": page, "Source": page}


if __name__ == "__main__":
    setup(
        packages=[
            "dualclickmed",
            *(f"dualclickmed.{name}" for name in find_packages(LIB)),
            "dualclickmed.app",
            "dualclickmed.model",
        ],
        package_dir={
            "dualclickmed": LIB,
            "dualclickmed.app": "apps/dualclickmed",
            "dualclickmed.model": "model",
        },
        project_urls=addresses(cloned_from()),
    )
