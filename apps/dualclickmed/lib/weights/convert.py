"""Checkpoints of the published networks as weights of the `paper` preset, and the way back.

What `checkpoints.read_tensors` finds is recognised, converted to the tensors of our networks and saved with a
card that says what became of every name.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from ..atomic_files import replacing
from ..errors import WeightsError
from ..networks.configs import PRESETS, GlobalConfig, LocalConfig
from . import files as weights
from .checkpoints import file_hash, read_tensors

logger = logging.getLogger(__name__)

PUBLISHED: dict[weights.Kind, GlobalConfig | LocalConfig] = {
    "global": PRESETS["paper"][0],
    "local": PRESETS["paper"][1],
}
"""The networks that published checkpoints are of."""
PICKLE_ENDINGS = (".pth", ".pt")
INITIAL_SEED = 0
"""Of a patch embedding that is drawn anew."""

_PATCH = "image_encoder.patch_embed.proj.weight"
_MASK_TOKENS = "mask_decoder.mask_tokens.weight"
_IOU_HEAD = "mask_decoder.iou_prediction_head."
_HYPERNETWORKS = "mask_decoder.output_hypernetworks_mlps."
_POINTS = "prompt_encoder.point_embeddings."

_LOCAL_DROPPED = (
    "class_head.",
    "image_encoder.up_layers_auto.",
    # More mask tokens' networks, which the MONAI 1.3 bundle builds and never calls.
    "point_head.output_add_hypernetworks_mlps.",
)
_LOCAL_UNUSED = (
    "point_head.mask_downsample.",
    "point_head.class_embeddings.",
    "point_head.zeroshot_embed.",
    "point_head.special_class_embed.",
    "point_head.not_a_point_embed.",
)
"""Built by the published point head, and without effect on a mask made from clicks."""
# The MONAI 1.3 bundle has its own transformer, with the names of Segment Anything.
_OLD_MLP = re.compile(r"(point_head\.transformer\.layers\.\d+\.mlp\.)lin([12])\.")


@dataclass
class Conversion:
    """A checkpoint turned into the tensors of one of our networks.

    Attributes:
        format: of the checkpoint, as it was recognised.
        config: of the network.
        tensors: the network's state, float32.
        converted: names of tensors that were changed, with how (resampled, renamed, cast).
        dropped: names of the checkpoint's tensors that were left out.
        initialised: names of tensors that were not taken from the checkpoint, with how they were set.
    """

    format: str
    config: GlobalConfig | LocalConfig
    tensors: dict[str, Tensor]
    converted: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)


def import_checkpoint(
    path: str | os.PathLike[str],
    kind: weights.Kind,
    name: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    drop_patch_embedding: bool = False,
    half: bool = False,
    replace: bool = False,
    card: Mapping[str, Any] | None = None,
) -> tuple[Path, Conversion]:
    """Convert a published checkpoint and save it among the weights.

    Args:
        path: the checkpoint (.pth, .pt, .safetensors; its contents decide, not its name).
        kind: "global" or "local".
        name: what to call it; by default ``global-paper`` or ``local-paper``.
        directory: the folder of weights (`weights.model_dir`).
        drop_patch_embedding: draw the patch embedding anew instead of resampling it.
        half: store parameters as float16 (half the size, outputs differ in the third digit).
        replace: overwrite weights of that name.
        card: further entries for the card; its `source` adds to and overrides what is known of the file.

    Returns:
        The weight file, and what was done.

    Raises:
        WeightsError: the file is not a checkpoint, damaged, holds more than tensors and plain values, is of
            another network, or the name is taken. Nothing has been written then.
    """
    path = Path(path)
    target = import_target(kind, name, directory, replace)
    tensors = read_tensors(path)
    conversion = convert(kind, tensors, path.name, drop_patch_embedding)
    del tensors
    if half:
        _halve(conversion)
    source = {
        "file": path.name,
        "sha256": file_hash(path),
        "bytes": path.stat().st_size,
        "format": conversion.format,
    }
    written = {
        "command": f"weights import {shlex.quote(path.name)} --as {kind}",
        "licence": "that of the source",
        **(card or {}),
        "source": source | (card or {}).get("source", {}),
        "converted": conversion.converted,
        "dropped": conversion.dropped,
        "initialised": conversion.initialised,
    }
    weights.save_tensors(conversion.tensors, kind, conversion.config, target, written)
    return target, conversion


def import_target(
    kind: weights.Kind, name: str | None, directory: str | os.PathLike[str] | None, replace: bool
) -> Path:
    """The file that an import would write.

    Raises:
        WeightsError: the name has characters that are not allowed, belongs to the shipped weights, or is
            taken.
    """
    name = weights.checked_name((name or f"{kind}-paper").removesuffix(weights.SUFFIX))
    if name in {weights.shipped_name(kind) for kind in weights.KINDS}:
        raise WeightsError(f"'{name}' is the name of weights that ship; choose another with --name.")
    target = weights.model_dir(directory) / f"{name}{weights.SUFFIX}"
    if target.exists() and not replace:
        raise WeightsError(
            f"There are weights '{name}' already; choose another name with --name, or pass --replace."
        )
    return target


def export_expert(path: str | os.PathLike[str], to: str | os.PathLike[str]) -> Path:
    """Write weights as a checkpoint of the published layout, in float32.

    The global network becomes ``{"model_state_dict": ...}`` as its authors write it, the local one a
    dictionary with VISTA3D's names (without the automatic branch and the class head, which it does not have).
    As .safetensors both are a bare dictionary.

    Args:
        path: a weight file with its card.
        to: a new file that ends in .pth, .pt or .safetensors.

    Raises:
        WeightsError: the weights can't be used or are not of a published network, or the ending is another
            one, or the file exists.
    """
    path, to = Path(path), Path(to)
    endings = (*PICKLE_ENDINGS, weights.SUFFIX)
    if to.suffix not in endings:
        raise WeightsError(f"A checkpoint is written as {', '.join(endings)}, but the file is '{to}'.")
    if to.exists():
        raise WeightsError(f"'{to}' exists; remove it or choose another file.")
    card = weights.read_card(path)
    kind: weights.Kind = card["kind"]
    network = weights.load_expert(kind, path)
    if _without_iou_head(network.config) != PUBLISHED[kind]:
        raise WeightsError(
            f"'{path.name}' holds the preset {card['preset']}, which has no published layout; only "
            "weights of the preset paper can be exported."
        )
    # Copies, so that nothing but plain tensors, each with a storage of its own, goes into the file.
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    with replacing(to) as part:
        if to.suffix == weights.SUFFIX:
            safetensors.torch.save_file(state, part, metadata={"format": "pt"})
        else:
            torch.save({"model_state_dict": state} if kind == "global" else state, part)
    return to


def convert(
    kind: weights.Kind, tensors: Mapping[str, Tensor], source: str, drop_patch_embedding: bool = False
) -> Conversion:
    """Recognise the network that tensors are of and turn them into ours.

    Args:
        kind: what they are taken for.
        tensors: as `read_tensors` gives them.
        source: what error messages call them.
        drop_patch_embedding: as for `import_checkpoint`.

    Raises:
        WeightsError: they are of another network; the message lists the first names that do not fit.
    """
    other = weights.KINDS[1 - weights.KINDS.index(kind)]
    looks = _kind_of(tensors)
    if looks == other:
        raise WeightsError(f"'{source}' looks like a {other} network; import it with --as {other}.")
    conversion = (
        _convert_global(tensors, drop_patch_embedding) if kind == "global" else _convert_local(tensors)
    )
    expected = weights.outline(conversion.config).state_dict()
    if problems := weights.differences(expected, conversion.tensors):
        raise WeightsError(
            f"'{source}' is not a checkpoint of {_KNOWN[kind]}, or not of these sizes: {problems}."
        )
    _to_float32(conversion, source)
    return conversion


_KNOWN = {
    "global": "SAM-Med3D (vit_b_ori) or its 64-voxel variant",
    "local": "VISTA3D (vista3d132)",
}


def resampled_patch_embedding(weight: Tensor, patch: int) -> Tensor:
    """Patch embedding for smaller patches: so that a constant image gives the same response.

    A patch of 8 at twice the voxel size sees what a patch of 16 saw: the kernel is resampled by area.

    Args:
        weight: (dim, C, P, P, P), P a multiple of `patch`.
        patch: side of the new patches in voxels.

    Returns:
        (dim, C, patch, patch, patch)
    """
    factor = weight.shape[-1] // patch
    return F.avg_pool3d(weight.float(), factor) * factor**3


def _kind_of(tensors: Mapping[str, Tensor]) -> weights.Kind | None:
    if _PATCH in tensors and any(name.startswith("mask_decoder.") for name in tensors):
        return "global"
    if "image_encoder.encoder.conv_init.weight" in tensors:
        return "local"
    return None


def _convert_global(tensors: Mapping[str, Tensor], drop_patch_embedding: bool) -> Conversion:
    config = PUBLISHED["global"]
    assert isinstance(config, GlobalConfig)
    found = dict(tensors)
    done = Conversion("SAM-Med3D, 64-voxel variant", config, found)

    patch = found.get(_PATCH)
    if patch is not None and patch.shape[2:] == (2 * config.patch,) * 3:
        done.format = "SAM-Med3D"
        if drop_patch_embedding:
            layer = torch.nn.Conv3d(patch.shape[1], patch.shape[0], config.patch, device="meta")
            found[_PATCH] = _drawn(layer.weight.shape)
            done.dropped.append(_PATCH)
            done.initialised.append(f"{_PATCH} (at random, seed {INITIAL_SEED})")
        else:
            found[_PATCH] = resampled_patch_embedding(patch, config.patch)
            done.converted.append(f"{_PATCH} ({2 * config.patch}^3 to {config.patch}^3, area-resampled)")

    masks = found.get(_MASK_TOKENS)
    if masks is not None and masks.ndim == 2 and len(masks) > config.mask_tokens:
        found[_MASK_TOKENS] = masks[: config.mask_tokens]
        done.converted.append(f"{_MASK_TOKENS} (the first of {len(masks)})")
        rest = tuple(f"{_HYPERNETWORKS}{i}." for i in range(config.mask_tokens, len(masks)))
        # The quality head compares several masks; with one there is nothing to choose.
        _drop(done, (*rest, _IOU_HEAD))

    quality = found.get(f"{_IOU_HEAD}layers.0.weight")
    if quality is not None:
        done.config = dataclasses.replace(config, iou_head=quality.shape[0])
    for kind in range(config.point_kinds):
        name = f"{_POINTS}{kind}.weight"
        # The first two are background and foreground; nothing refers to the rest, which are for box corners.
        if kind >= 2 and name not in found:
            found[name] = torch.zeros(1, config.prompt_dim)
            done.initialised.append(f"{name} (zeros, not used)")
    return done


def _convert_local(tensors: Mapping[str, Tensor]) -> Conversion:
    config = PUBLISHED["local"]
    done = Conversion("VISTA3D", config, dict(tensors))
    _drop(done, _LOCAL_DROPPED)
    for name in list(done.tensors):
        renamed = _OLD_MLP.sub(r"\1linear\2.", name)
        if renamed != name and renamed not in done.tensors:
            done.format = "VISTA3D, names of the MONAI 1.3 bundle"
            done.tensors[renamed] = done.tensors.pop(name)
            done.converted.append(f"{name} (renamed to {renamed})")
    expected = weights.outline(config).state_dict()
    for name in sorted(n for n in expected.keys() ^ done.tensors.keys() if n.startswith(_LOCAL_UNUSED)):
        if name in expected:
            done.tensors[name] = torch.zeros(expected[name].shape)
            done.initialised.append(f"{name} (zeros, not used)")
        else:
            _drop(done, (name,))
    return done


def _drop(done: Conversion, prefixes: tuple[str, ...]) -> None:
    for name in [name for name in done.tensors if name.startswith(prefixes)]:
        del done.tensors[name]
        done.dropped.append(name)


def _drawn(shape: torch.Size) -> Tensor:
    """As a convolution draws its weights."""
    weight = torch.empty(shape)
    generator = torch.Generator().manual_seed(INITIAL_SEED)
    torch.nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
    return weight


def _to_float32(done: Conversion, source: str) -> None:
    storages: set[int] = set()
    changed = set()
    for name, value in done.tensors.items():
        if value.device.type != "cpu" or value.layout != torch.strided or not value.is_floating_point():
            raise WeightsError(
                f"'{source}' holds '{name}' as {value.dtype}, {value.layout}, on {value.device}; expected "
                "ordinary floating-point numbers."
            )
        if value.dtype != torch.float32:
            changed.add(str(value.dtype).removeprefix("torch."))
        plain = value.detach().to(torch.float32).contiguous()
        storage = plain.untyped_storage().data_ptr()
        # Names that share one storage may not share it in safetensors.
        done.tensors[name] = plain.clone() if storage in storages else plain
        storages.add(storage)
    if changed:
        done.converted.append(f"all tensors of {' and '.join(sorted(changed))} (to float32)")


def _halve(done: Conversion) -> None:
    for name, _ in weights.outline(done.config).named_parameters():
        done.tensors[name] = done.tensors[name].half()
    done.converted.append("all parameters (to float16)")


def _without_iou_head(config: object) -> object:
    return dataclasses.replace(config, iou_head=0) if isinstance(config, GlobalConfig) else config
