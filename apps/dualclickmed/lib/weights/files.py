"""Weight files: one safetensors file for each expert, with a card (JSON) beside it.

The weight file holds tensors and nothing else, so reading one runs no code. The card says which network the
tensors belong to, how they were trained, what was measured, and the SHA-256 of the weight file, which every
load checks. Parameters that were trained here are stored as float16; buffers keep their type (positional
frequencies and running statistics lose more by rounding than the few kilobytes are worth). Imported weights
stay in float32, so that their outputs are the published ones.

Which file each expert is served from is :func:`default_path`'s to say: what :func:`select` wrote into the
folder, else the compact weights that ship.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .. import __version__
from ..atomic_files import replacing
from ..errors import WeightsError
from ..networks import build
from ..networks.configs import PRESETS, GlobalConfig, LocalConfig

logger = logging.getLogger(__name__)

Kind = Literal["global", "local"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MODEL_DIR_VARIABLE = "DUALCLICKMED_MODEL_DIR"
SUFFIX = ".safetensors"
SELECTION = "selected.json"
"""In the folder of weights: expert to name of the file that it is served from, where not the shipped one."""
SHIPPED_PRESET = "compact"
LICENCE = "Apache-2.0"

_CONFIGS: dict[Kind, type[GlobalConfig] | type[LocalConfig]] = {
    "global": GlobalConfig,
    "local": LocalConfig,
}
_NAMED_KEYS = 4
"""How many parameter names an error lists before it only counts them."""


@dataclass(frozen=True)
class WeightFile:
    """One entry of :func:`list_weights`; ``problem`` says why the file would not load, None if it would."""

    path: Path
    nbytes: int
    card: dict[str, Any] | None
    problem: str | None


def model_dir(directory: str | os.PathLike[str] | None = None) -> Path:
    """The folder of weights: the argument, else $DUALCLICKMED_MODEL_DIR, else ``<repository>/model``."""
    if directory is not None:
        return Path(directory)
    named = os.environ.get(MODEL_DIR_VARIABLE)
    if named:
        return Path(named)
    return Path(__file__).resolve().parents[4] / "model"


def default_path(
    kind: Kind, preset: str | None = None, directory: str | os.PathLike[str] | None = None
) -> Path:
    """Where the weights of one expert are looked for.

    Args:
        kind: "global" or "local".
        preset: names the file, e.g. ``model/global-paper.safetensors`` for "paper"; None takes what
            :func:`select` chose, else the compact weights.
        directory: see :func:`model_dir`.

    Raises:
        WeightsError: the kind is unknown, or the selection can't be read.
    """
    folder = model_dir(directory)
    name = shipped_name(kind) if preset is None else f"{_checked_kind(kind)}-{preset}"
    if preset is None:
        name = selection(folder).get(kind, name)
    return folder / f"{name}{SUFFIX}"


def shipped_name(kind: Kind) -> str:
    """The name of the weights that ship with the repository."""
    return f"{_checked_kind(kind)}-{SHIPPED_PRESET}"


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
        WeightsError: the file that says so is damaged.
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


def select(name: str | None, directory: str | os.PathLike[str] | None = None) -> dict[Kind, str]:
    """Serve an expert from another file, from now on and by a running server as well.

    Args:
        name: of a file in the folder, verified first; None goes back to the shipped weights for both.
        directory: see :func:`model_dir`.

    Returns:
        The names that both experts are served from now.

    Raises:
        WeightsError: there is no such file, or it can't be used.
    """
    folder = model_dir(directory)
    chosen: dict[Kind, str] = {}
    if name is not None:
        path = folder / f"{checked_name(name.removesuffix(SUFFIX))}{SUFFIX}"
        kind: Kind = verify(named_path(path.stem, folder))["kind"]
        chosen = {other: old for other, old in selection(folder).items() if other != kind}
        if path.stem != shipped_name(kind):
            chosen[kind] = path.stem
    if chosen:
        _replace({folder / SELECTION: (json.dumps(chosen, indent=2) + "\n").encode()})
    else:
        (folder / SELECTION).unlink(missing_ok=True)
    return {kind: chosen.get(kind, shipped_name(kind)) for kind in KINDS}


def card_path(path: str | os.PathLike[str]) -> Path:
    """The card that belongs to a weight file: the same name with the ending ``.json``."""
    return Path(path).with_suffix(".json")


def save_expert(
    network: nn.Module,
    kind: Kind,
    path: str | os.PathLike[str],
    card: Mapping[str, Any] | None = None,
    half: bool = True,
) -> None:
    """Write a network's tensors to ``path`` and its card beside it, as :func:`save_tensors` does.

    Args:
        network: what ``build_global`` or ``build_local`` returned (its ``config`` is recorded).
        kind: "global" or "local".
        path: ends in ``.safetensors``; missing folders are made.
        card: as for :func:`save_tensors`.
        half: store parameters as float16.

    Raises:
        WeightsError: as :func:`save_tensors`, or a parameter does not fit float16.
    """
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    halved = parameters if half else set()
    tensors = _stored_tensors(network.state_dict(), halved)
    save_tensors(tensors, kind, cast(Any, network.config), path, card)


def save_tensors(
    tensors: Mapping[str, Tensor],
    kind: Kind,
    config: GlobalConfig | LocalConfig,
    path: str | os.PathLike[str],
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write the tensors of a network as they are to ``path``, and a card beside them.

    Both are written under another name in the same folder and then renamed, the card last: a reader finds the
    old files or the new ones, never half of one.

    Args:
        tensors: the state of the network that `config` builds.
        kind: "global" or "local".
        config: of the network.
        path: ends in ``.safetensors``; missing folders are made.
        card: command, steps, samples, seed, measured, ... Kind, preset, config, hash, version and time of
            writing are filled in here.

    Raises:
        WeightsError: the ending is another one, the configuration is of the other kind, or a value is not
            finite.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise WeightsError(f"The file name of weights must end in {SUFFIX}, but it is '{path.name}'.")
    if not isinstance(config, _CONFIGS[_checked_kind(kind)]):
        raise WeightsError(
            f"A {kind} expert was to be saved, but the network's configuration is a {type(config).__name__}."
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(
                f"'{name}' holds values that are not finite or exceed {torch.finfo(tensor.dtype).max:.6g}, "
                f"the largest of {str(tensor.dtype).removeprefix('torch.')}; the training has diverged or "
                "the file is damaged, use an earlier checkpoint."
            )
    data = safetensors.torch.save(dict(tensors), metadata={"format": "pt"})
    written = {
        "kind": kind,
        "preset": _preset_of(kind, config),
        "config": config.to_dict(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "command": None,
        "steps": None,
        "samples": None,
        "seed": None,
        "measured": {},
        "licence": LICENCE,
    }
    fixed = ("kind", "preset", "config", "sha256")
    written.update({key: value for key, value in (card or {}).items() if key not in fixed})
    text = json.dumps(written, indent=2, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace({path: data, card_path(path): text.encode()})
    logger.info("Wrote %s (%.1f MB)", path, len(data) / 1e6)


def load_expert(
    kind: Kind,
    path: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Build the network that the card names, fill it with the file's tensors and put it in evaluation mode.

    Args:
        kind: "global" or "local".
        path: the weight file; None takes :func:`default_path`.
        device: where the network goes.

    Returns:
        A ``RegionNetwork`` or ``LocalNetwork``, parameters in float32.

    Raises:
        WeightsError: file or card missing or damaged, hash not the card's, preset or configuration unknown,
            weights of the other expert, or names and shapes that differ from the network's.
    """
    path = default_path(kind) if path is None else Path(path)
    card, data = _read(path)
    if card["kind"] != _checked_kind(kind):
        raise WeightsError(
            f"'{path}' holds weights of the {card['kind']} expert, but the {kind} expert was asked for; "
            "give the other file."
        )
    tensors = _parse(path, data)
    del data
    return _filled(_config_of(card, card_path(path)), tensors, path).to(device).eval()


def verify(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Check a weight file as :func:`load_expert` would, all but the arithmetic, and return its card.

    Raises:
        WeightsError: as for :func:`load_expert`.
    """
    path = Path(path)
    card, data = _read(path)
    network = outline(_config_of(card, card_path(path)))
    _check_names(network.state_dict(), _parse(path, data), path)
    return card


def list_weights(directory: str | os.PathLike[str] | None = None) -> list[WeightFile]:
    """Every weight file of a folder (default: :func:`model_dir`), sorted by name, each verified.

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
            card = verify(path)
        except WeightsError as error:
            problem = str(error)
        entries.append(WeightFile(path, path.stat().st_size, card, problem))
    return entries


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


def _checked_kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise WeightsError(f"Unknown kind of expert '{kind}'; known are {' and '.join(KINDS)}.")
    return kind


def _preset_of(kind: Kind, config: object) -> str:
    index = KINDS.index(kind)
    if isinstance(config, GlobalConfig):
        # A mask-quality head changes no mask, and published files have it or not.
        config = dataclasses.replace(config, iou_head=0)
    return next((name for name, pair in PRESETS.items() if pair[index] == config), "custom")


def _config_of(card: Mapping[str, Any], card_file: Path) -> GlobalConfig | LocalConfig:
    if card["preset"] not in PRESETS and card["preset"] != "custom":
        raise WeightsError(
            f"The card '{card_file}' names the unknown preset '{card['preset']}'; known are "
            f"{', '.join(PRESETS)}: update DualClickMed or use other weights."
        )
    try:
        return _CONFIGS[card["kind"]].from_dict(card["config"])
    except (TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"The card '{card_file}' describes a network that this version can't build ({error}): update "
            "DualClickMed or use other weights."
        ) from error


def outline(config: GlobalConfig | LocalConfig) -> nn.Module:
    """A network without values: on the meta device it costs no memory and no random numbers."""
    with torch.device("meta"):
        return _built(config)


def _built(config: GlobalConfig | LocalConfig) -> nn.Module:
    if isinstance(config, GlobalConfig):
        return build.build_global(config)
    return build.build_local(config)


def _stored_tensors(state: Mapping[str, Tensor], halved: set[str]) -> dict[str, Tensor]:
    stored = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu()
        if name in halved and value.is_floating_point():
            value = value.half()
        stored[name] = value.clone(memory_format=torch.contiguous_format)
    return stored


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
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


def _parse(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(
            f"'{path}' is not a readable safetensors file ({error}); convert or fetch it again."
        ) from error


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The names that are missing, unexpected or of another shape, the first few of each; '' for none."""
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing {_some(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"unexpected {_some(unexpected)}")
    other = [
        f"{name} (expected {tuple(expected[name].shape)}, found {tuple(tensor.shape)})"
        for name, tensor in sorted(found.items())
        if name in expected and tensor.shape != expected[name].shape
    ]
    if other:
        problems.append(f"of another shape {_some(other)}")
    return "; ".join(problems)


def _check_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    if problems := differences(expected, found):
        raise WeightsError(
            f"'{path}' does not fit the network that its card describes: {problems}. "
            "Use weights of this preset and version."
        )


def _filled(config: GlobalConfig | LocalConfig, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    network = outline(config)
    state = network.state_dict()
    _check_names(state, tensors, path)
    if {name for name, _ in network.named_buffers()} <= state.keys():
        # Hundreds of megabytes need neither be drawn at random first nor be held twice.
        tensors = {name: value.to(state[name].dtype) for name, value in tensors.items()}
        network.load_state_dict(tensors, assign=True)
    else:
        network = _built(config)
        network.load_state_dict(tensors)
    return network


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _NAMED_KEYS
    return ", ".join(names[:_NAMED_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def _replace(contents: Mapping[Path, bytes]) -> None:
    """Write files so that, up to the last moment, a failure leaves everything as it was."""
    with ExitStack() as stack:
        # Left in reverse order: the first file is renamed first.
        parts = {path: stack.enter_context(replacing(path)) for path in reversed(list(contents))}
        for path, data in contents.items():
            with parts[path].open("wb") as stream:
                stream.write(data)
                os.fsync(stream.fileno())
