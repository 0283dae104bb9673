"""The repository's command line: ``python main.py --help``. All of it lives in the package's ``cli.py``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

LIB = Path(__file__).resolve().parent / "apps" / "dualclickmed" / "lib"


def _use_this_repository() -> None:
    """Make ``dualclickmed`` mean the package beside this file, even if another copy is installed."""
    spec = importlib.util.spec_from_file_location(
        "dualclickmed", LIB / "__init__.py", submodule_search_locations=[str(LIB)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["dualclickmed"] = package
    spec.loader.exec_module(package)


# Not guarded: spawned worker processes import this file under another name and need the package as well.
_use_this_repository()

if __name__ == "__main__":
    try:
        from dualclickmed.cli.app import main
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"Error: {sys.executable} has no package '{error.name}'; run 'make setup' once, then call "
            ".venv/bin/python main.py, or activate the environment: source .venv/bin/activate\n"
        )
        sys.exit(2)
    main()
