"""Weight files: one safetensors file for each expert, with a card (JSON) beside it.

The weight file holds tensors and nothing else, so reading one runs no code. The card says which network the
tensors belong to, how they were trained, what was measured, and the SHA-256 of the weight file, which every
load checks. Parameters that were trained here are stored as float16; buffers keep their type (positional
frequencies and running statistics lose more by rounding than the few kilobytes are worth). Imported weights
stay in float32, so that their outputs are the published ones.

:func:`default_path` tells which file each expert is served from: the one that :func:`select` wrote into the
folder, else the compact weights that ship.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import __version__
from ..atomic_files import replacing
from ..errors import WeightsError
from ..networks import build
from ..networks.configs import PRESETS, GlobalConfig, LocalConfig
from .cards import (
    KINDS,
    MODEL_DIR_VARIABLE,
    SELECTION,
    SHIPPED_PRESET,
    SUFFIX,
    Kind,
    WeightFile,
    card_path,
    checked_kind,
    checked_name,
    default_path,
    list_cards,
    model_dir,
    named_path,
    read_card,
    read_checked,
    selection,
    shipped_name,
)

__all__ = [
    "KINDS",
    "LICENCE",
    "MODEL_DIR_VARIABLE",
    "SELECTION",
    "SHIPPED_PRESET",
    "SUFFIX",
    "Kind",
    "WeightFile",
    "card_path",
    "checked_name",
    "default_path",
    "differences",
    "list_weights",
    "load_expert",
    "model_dir",
    "named_path",
    "outline",
    "read_card",
    "save_expert",
    "save_tensors",
    "select",
    "selection",
    "shipped_name",
    "verify",
]

logger = logging.getLogger(__name__)

LICENCE = "Apache-2.0"

_FORMER_PRESETS = ("unet",)
"""In cards of earlier versions. What a network is, its card's configuration says."""
_CONFIGS: dict[Kind, type[GlobalConfig] | type[LocalConfig]] = {
    "global": GlobalConfig,
    "local": LocalConfig,
}
_NAMED_KEYS = 4
"""How many parameter names an error lists before it only counts them."""


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
    if not isinstance(config, _CONFIGS[checked_kind(kind)]):
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
    # The card comes first: a card alone is not listed, weights without one would be listed as damaged.
    _replace({card_path(path): text.encode(), path: data})
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
    card, data = read_checked(path)
    if card["kind"] != checked_kind(kind):
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
    card, data = read_checked(path)
    network = outline(_config_of(card, card_path(path)))
    _check_names(network.state_dict(), _parse(path, data), path)
    return card


def list_weights(directory: str | os.PathLike[str] | None = None) -> list[WeightFile]:
    """Every weight file of a folder (default: :func:`model_dir`), sorted by name, each verified.

    Raises:
        WeightsError: the folder does not exist.
    """
    entries = []
    for entry in list_cards(directory):
        problem = entry.problem
        if problem is None:
            try:
                verify(entry.path)
            except WeightsError as error:
                problem = str(error)
        entries.append(
            dataclasses.replace(entry, card=entry.card if problem is None else None, problem=problem)
        )
    return entries


def _preset_of(kind: Kind, config: object) -> str:
    index = KINDS.index(kind)
    if isinstance(config, GlobalConfig):
        # A mask-quality head changes no mask, and published files have it or not.
        config = dataclasses.replace(config, iou_head=0)
    return next((name for name, pair in PRESETS.items() if pair[index] == config), "custom")


def _config_of(card: Mapping[str, Any], card_file: Path) -> GlobalConfig | LocalConfig:
    if card["preset"] not in {*PRESETS, *_FORMER_PRESETS, "custom"}:
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
    with torch.device("meta"), _Unfilled():
        return _built(config)


class _Unfilled(TorchFunctionMode):
    """Skips initial values on the meta device, for which PyTorch would import its compiler (2 s of a core);
    the few values that networks compute from are made on the processor.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        if func in (torch.arange, torch.randn):
            # No random numbers are drawn either, as they would change the caller's next ones.
            return (torch.empty if func is torch.randn else func)(*args, **{"device": "cpu", **given})
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


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
