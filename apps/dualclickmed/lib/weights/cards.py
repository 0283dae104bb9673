"""Cards of weight files, and the names of weight files; without torch, so that reading them is quick."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import WeightsError

Kind = Literal["global", "local"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MODEL_DIR_VARIABLE = "DUALCLICKMED_MODEL_DIR"
SUFFIX = ".safetensors"
SELECTION = "selected.json"
"""File in the folder of weights: expert to the name of its weight file, where that is not the shipped one."""
SHIPPED_PRESET = "compact"


@dataclass(frozen=True)
class WeightFile:
    """One entry of :func:`list_weights`; ``problem`` says why the file would not load, None if it would."""

    path: Path
    nbytes: int
    card: dict[str, Any] | None
    problem: str | None


def command_line() -> str:
    """How this process was started, as cards and reports say it for whoever wants to repeat it."""
    return shlex.join(["python", "main.py", *sys.argv[1:]])


def model_dir(directory: str | os.PathLike[str] | None = None) -> Path:
    """The folder of weights: the argument, else $DUALCLICKMED_MODEL_DIR, else the one that ships."""
    if directory is not None:
        return Path(directory)
    named = os.environ.get(MODEL_DIR_VARIABLE)
    if named:
        return Path(named)
    package = Path(__file__).resolve().parents[1]
    # An installed package has its weights inside.
    return package.parents[2] / "model" if package.name == "lib" else package / "model"


def default_path(
    kind: Kind, preset: str | None = None, directory: str | os.PathLike[str] | None = None
) -> Path:
    """The path of one expert's weights.

    Args:
        kind: "global" or "local".
        preset: names the file, e.g. ``model/global-paper.safetensors`` for "paper"; None takes what
            :func:`select` chose, else the compact weights.
        directory: see :func:`model_dir`.

    Raises:
        WeightsError: the kind is unknown, or the selection can't be read.
    """
    folder = model_dir(directory)
    name = shipped_name(kind) if preset is None else f"{checked_kind(kind)}-{preset}"
    if preset is None:
        name = selection(folder).get(kind, name)
    return folder / f"{name}{SUFFIX}"


def shipped_name(kind: Kind) -> str:
    """The name of the weights that ship with the repository."""
    return f"{checked_kind(kind)}-{SHIPPED_PRESET}"


def named_path(name: str, directory: str | os.PathLike[str] | None = None) -> Path:
    """The weight file that a user means: a path, or the name of a file in the folder of weights.

    Raises:
        WeightsError: it is not there; the message lists what is.
    """
    path = Path(name)
    if path.suffix == SUFFIX and path.is_file():
        return path
    folder = model_dir(directory)
    inside = folder / f"{checked_name(path.stem if path.suffix == SUFFIX else name)}{SUFFIX}"
    if not inside.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob(f"*{SUFFIX}"))) or "none"
        raise WeightsError(f"There are no weights '{name}' in '{folder}'; there are: {known}.")
    return inside


def checked_name(name: str) -> str:
    """A name that is safe as a file's: letters, digits, dots, dashes and underscores.

    Raises:
        WeightsError: it is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.endswith(SUFFIX):
        raise WeightsError(
            f"Weights are named by letters, digits, dots, dashes and underscores, but '{name}' came."
        )
    return name


def selection(directory: str | os.PathLike[str] | None = None) -> dict[Kind, str]:
    """What :func:`select` chose: expert to name of a file; experts served from the shipped ones are left out.

    Raises:
        WeightsError: the selection file is damaged.
    """
    path = model_dir(directory) / SELECTION
    try:
        chosen = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(chosen, dict) or not set(chosen) <= set(KINDS):
            raise ValueError(f"expected names for {' and '.join(KINDS)}")
        return {kind: checked_name(str(name)) for kind, name in chosen.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"'{path}', which says which weights are served, can't be used ({error}); "
            "choose anew with 'weights use'."
        ) from error


def card_path(path: str | os.PathLike[str]) -> Path:
    """The card that belongs to a weight file: the same name with the ending ``.json``."""
    return Path(path).with_suffix(".json")


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The card of a weight file, its fields checked, without reading the weights.

    Raises:
        WeightsError: the card is missing, not JSON, or lacks a field that loading needs.
    """
    card_file = card_path(path)
    try:
        card = json.loads(card_file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            f"'{path}' has no card: '{card_file.name}' is missing beside it; put the card back or train anew."
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"The card '{card_file}' can't be read as JSON ({error}); fetch it again, with its weights."
        ) from error
    fields = ("kind", "preset", "config", "sha256")
    missing = [field for field in fields if not isinstance(card, dict) or field not in card]
    if missing:
        raise WeightsError(f"The card '{card_file}' lacks {', '.join(missing)}; fetch it again.")
    if card["kind"] not in KINDS:
        raise WeightsError(
            f"The card '{card_file}' names the kind '{card['kind']}'; known are {' and '.join(KINDS)}."
        )
    return card


def checked_kind(kind: str) -> Kind:
    """`kind`, known to be "global" or "local"; WeightsError otherwise."""
    if kind not in KINDS:
        raise WeightsError(f"Unknown kind of expert '{kind}'; known are {' and '.join(KINDS)}.")
    return kind


def read_checked(path: Path) -> tuple[dict[str, Any], bytes]:
    """Card and bytes of a weight file, read once, so that what was hashed is what is loaded."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise WeightsError(
            f"The weights '{path}' do not exist; restore the repository's folder 'model', pass --model-dir, "
            f"set {MODEL_DIR_VARIABLE}, train them (python main.py train --help), or serve others "
            "(python main.py weights use --help)."
        ) from error
    except OSError as error:
        raise WeightsError(
            f"The weights '{path}' can't be read ({error.strerror}); check the path."
        ) from error
    card = read_card(path)
    found = hashlib.sha256(data).hexdigest()
    if found != card["sha256"]:
        raise WeightsError(
            f"'{path}' ({len(data)} bytes) is not the file that its card describes: its SHA-256 is {found}, "
            f"the card says {card['sha256']}. It is damaged or was replaced; fetch it again, with its card."
        )
    return card, data


def list_cards(directory: str | os.PathLike[str] | None = None) -> list[WeightFile]:
    """Every weight file of a folder (default: :func:`model_dir`), by name, its hash and header checked.

    Whether a file fits its card's network is checked by :func:`files.verify`.

    Raises:
        WeightsError: the folder does not exist.
    """
    folder = model_dir(directory)
    if not folder.is_dir():
        raise WeightsError(
            f"The folder of weights '{folder}' does not exist; pass --model-dir or set {MODEL_DIR_VARIABLE}."
        )
    entries = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        card: dict[str, Any] | None = None
        problem: str | None = None
        try:
            card = check_card(path)
        except WeightsError as error:
            problem = str(error)
        entries.append(WeightFile(path, path.stat().st_size, card, problem))
    return entries


def check_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The card of a weight file whose hash is the card's and whose header can be read.

    Raises:
        WeightsError: file or card are missing or damaged.
    """
    path = Path(path)
    card, data = read_checked(path)
    length = int.from_bytes(data[:8], "little")
    try:
        if not isinstance(json.loads(data[8 : 8 + length]), dict):
            raise ValueError("the header is no object")
    except ValueError as error:
        raise WeightsError(
            f"'{path}' is not a readable safetensors file ({error}); convert or fetch it again."
        ) from error
    return card
