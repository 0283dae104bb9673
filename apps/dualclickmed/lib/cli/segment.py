"""`segment` of the command line."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..errors import PromptError, UserError
from .console import Device, ModelDir, Preset, say

if TYPE_CHECKING:
    from ..predictor import Predictor


def segment(
    image: Annotated[Path, typer.Argument(help="NIfTI, NRRD, MHA, or a folder of DICOM slices.")],
    out: Annotated[Path, typer.Option(help="The mask: .nii.gz, .nii, .nrrd or .seg.nrrd.")],
    point: Annotated[
        list[str] | None, typer.Option(help="i,j,k of a voxel inside (repeatable; default: none).")
    ] = None,
    background: Annotated[
        list[str] | None, typer.Option(help="i,j,k of a voxel outside (repeatable; default: none).")
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            help="i0,i1,j0,j1,k0,k1 around the object: voxels i0 to i1 - 1, and so on (default: no box)."
        ),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            help="Where there are points and background: fg,bg,... as they were clicked (default: guessed)."
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="fused (points: local expert, box: global expert, both refined by edges and clicks; the "
            "default), paper (the same without refinement), global or local."
        ),
    ] = None,
    window: Annotated[
        str, typer.Option(help="CT window: auto, soft tissue, lung, brain, bone or none.")
    ] = "auto",
    modality: Annotated[
        str | None, typer.Option(help="ct, mr, pt, us or microscopy (default: guessed from the file).")
    ] = None,
    name: Annotated[
        str, typer.Option(help="What the object is called in the mask and the picture.")
    ] = "object",
    picture: Annotated[
        Path | None, typer.Option(help="Also draw three slices with contours, as .png (default: no picture).")
    ] = None,
    device: Device = "auto",
    model_dir: ModelDir = None,
    preset: Preset = None,
) -> None:
    """Segment one object from clicks, a box, or both.

    Voxels are counted from 0 in the order of the file: i along its rows, j along its columns, k through its
    slices.
    """
    if not image.exists():
        raise UserError(f"The image '{image}' does not exist; give a file or a folder of DICOM slices.")
    from ..server.starting import import_monai

    import_monai()
    from ..experts.devices import resolved_device
    from ..imaging.label_map import colour_of
    from ..imaging.mask_files import EXTENSIONS, LabelledMask, Segment, write
    from ..imaging.volume import load_volume
    from ..predictor import Predictor
    from ..strategies import DEFAULT_STRATEGY
    from ..weights.cards import default_path

    points = [_whole_numbers("--point", text, 3) for text in point or []]
    outside = [_whole_numbers("--background", text, 3) for text in background or []]
    edges = None if box is None else _whole_numbers("--box", box, 6)
    ending = max((end for end in EXTENSIONS if out.name.lower().endswith(end)), key=len, default=None)
    if ending is None:
        raise UserError(f"The mask can be written as {', '.join(EXTENSIONS)}, but --out is '{out}'.")
    if picture is not None and picture.suffix.lower() != ".png":
        raise UserError(f"The picture is written as .png, but --picture is '{picture}'.")

    device_name = resolved_device(device)

    volume = load_volume(image, modality)
    predictor = Predictor.from_weights(
        default_path("global", preset, model_dir), default_path("local", preset, model_dir), device_name
    )
    predictor.set_image(volume)
    start = time.perf_counter()
    kinds = None if order is None else order.replace(",", " ").split()
    mask = predictor.predict(
        points, outside, edges, strategy=strategy or DEFAULT_STRATEGY, intensity=window, order=kinds
    )
    seconds = time.perf_counter() - start

    shown = Segment(name, 1, colour_of(name))
    written = write(LabelledMask(mask.astype("uint8"), volume.affine, [shown]), ending, compress=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Copied, not moved: a temporary file can be read by its owner only.
    shutil.copyfile(written, out)
    written.unlink()
    voxels = int(mask.sum())
    millilitres = voxels * float(abs(_determinant(volume.affine))) / 1000
    result = predictor.result
    assert result is not None
    expert = next(iter(result.strategies.values()))
    summary = f"{name}: {millilitres:.1f} ml, {voxels} voxels, {expert} expert, {seconds:.2f} s"
    say(Console(), f"{summary} -> {out}")
    if picture is not None:
        _draw(predictor, picture, shown, points, outside, edges, f"{image.name}: {summary}", window)
        say(Console(), f"Picture -> {picture}")


def _draw(
    predictor: Predictor,
    path: Path,
    segment: Any,
    points: Sequence[Sequence[int]],
    outside: Sequence[Sequence[int]],
    edges: Sequence[int] | None,
    caption: str,
    window: str,
) -> None:
    from ..demo.picture import save_picture
    from ..imaging.geometry import ordered_corners
    from ..imaging.prompts import Click, Prompts

    volume, result = predictor.volume, predictor.result
    assert result is not None
    clicks = [
        Click((int(z), int(y), int(x)), positive)
        for positive, group in ((True, points), (False, outside))
        if group
        for z, y, x in volume.to_canonical(group)
    ]
    box = None if edges is None else volume.box_to_canonical(*ordered_corners(edges))
    save_picture(
        path, volume, result.labels, [segment], [Prompts(tuple(clicks), box)], caption, intensity=window
    )


def _whole_numbers(option: str, text: str, count: int) -> list[int]:
    parts = text.replace(",", " ").split()
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise PromptError(
            f"{option} takes {count} whole numbers with commas between them, but '{text}' came."
        )
    return numbers


def _determinant(affine: Any) -> float:
    import numpy as np

    return float(np.linalg.det(affine[:3, :3]))
