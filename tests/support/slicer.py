"""3D Slicer around its MONAI Label extension: the extension's own code runs, and only Slicer is a stand-in.

MONAI Label's package brings the extension along. What it sends is therefore byte for byte what it sends in
Slicer, and what it does with an answer ends in the segments of `Slicer`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

PLUGIN = Path(sys.prefix) / "monailabel" / "plugins" / "slicer" / "MONAILabel"
FILE_EXTENSION = ".nii.gz"
"""Slicer's default for what it uploads."""

Array = npt.NDArray[Any]


class Matrix:
    """vtkMatrix4x4."""

    def __init__(self) -> None:
        self.array = np.eye(4)

    def MultiplyDoublePoint(self, point: Sequence[float]) -> tuple[float, ...]:
        return tuple((self.array @ np.asarray(point, dtype=float)).tolist())


class Mutable:
    """vtk.mutable."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __str__(self) -> str:
        return str(self.value)


class StringArray(list):
    """vtkStringArray."""

    InsertNextValue = list.append


class VolumeNode:
    """An image that Slicer has loaded."""

    def __init__(self, path: Path) -> None:
        self.name = path.name.split(".")[0]
        self.image = sitk.ReadImage(str(path))
        direction = np.reshape(self.image.GetDirection(), (3, 3))
        self.affine = np.eye(4)
        self.affine[:3, :3] = direction * self.image.GetSpacing()
        self.affine[:3, 3] = self.image.GetOrigin()
        # Slicer's world is RAS.
        self.affine[:2] *= -1

    def GetName(self) -> str:
        return self.name

    def GetRASToIJKMatrix(self, matrix: Matrix) -> None:
        matrix.array = np.linalg.inv(self.affine)  # type: ignore[assignment]

    def GetIJKToRASMatrix(self, matrix: Matrix) -> None:
        matrix.array = self.affine

    def in_patient(self, index: Sequence[float]) -> Array:
        """RAS millimetres of a voxel (i, j, k)."""
        return (self.affine @ [*index, 1.0])[:3]


class Points:
    """A list of control points (RAS)."""

    def __init__(self) -> None:
        self.points: list[Array] = []

    def GetNumberOfControlPoints(self) -> int:
        return len(self.points)

    def GetNthControlPointPosition(self, n: int) -> list[float]:
        return [float(p) for p in self.points[n]]

    def GetNthControlPointPositionWorld(self, n: int, found: list[float]) -> None:
        found[:] = self.points[n].tolist()


class Roi:
    """A markups ROI (RAS)."""

    def __init__(self) -> None:
        self.corners: tuple[Array, Array] | None = None

    def GetControlPointPlacementComplete(self) -> bool:
        return self.corners is not None

    def GetCenter(self, found: list[float]) -> None:
        assert self.corners is not None
        found[:] = (np.add(*self.corners) / 2).tolist()

    def GetSize(self) -> list[float]:
        assert self.corners is not None
        return [float(size) for size in np.abs(np.subtract(*self.corners))]


class Segment:
    """A segment: where it is, and the tags in which the extension keeps its clicks."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name = name
        self.mask = np.zeros(shape, dtype=bool)
        self.tags: dict[str, str] = {}

    def GetName(self) -> str:
        return self.name

    def SetTag(self, tag: str, value: str) -> None:
        self.tags[tag] = value

    def GetTag(self, tag: str, found: Mutable) -> bool:
        found.value = self.tags.get(tag, "")
        return tag in self.tags


class Segmentation:
    """vtkMRMLSegmentationNode and its vtkSegmentation in one."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.segments: dict[str, Segment] = {}

    def GetSegmentation(self) -> Segmentation:
        return self

    def AddEmptySegment(self, id: str, name: str, colour: object = None) -> None:
        self.segments[id] = Segment(name, self.shape)

    def GetSegmentIdBySegmentName(self, name: str) -> str:
        return next((id for id, segment in self.segments.items() if segment.name == name), "")

    def GetSegment(self, id: str) -> Segment | None:
        return self.segments.get(id)

    def GetNumberOfSegments(self) -> int:
        return len(self.segments)

    def GetNthSegmentID(self, n: int) -> str:
        return list(self.segments)[n]


class Labelmap:
    """vtkMRMLLabelMapVolumeNode."""

    def __init__(self, array: Array | None = None) -> None:
        self.array = array


class SegmentationsLogic:
    """What Slicer does between label maps and segments."""

    def __init__(self) -> None:
        self.grid: sitk.Image | None = None

    def ImportLabelmapToSegmentationNode(
        self, labelmap: Labelmap, node: Segmentation, ids: Sequence[str]
    ) -> None:
        """Label values 1..n are the n segments of the list, all of which are replaced."""
        assert labelmap.array is not None
        for value, id in enumerate(ids, start=1):
            if id not in node.segments:
                node.AddEmptySegment(id, id)
            node.segments[id].mask = labelmap.array == value

    def ExportSegmentsToLabelmapNode(
        self, node: Segmentation, ids: Sequence[str], labelmap: Labelmap, reference: VolumeNode
    ) -> None:
        """Segments become the values 1..n in the order of the list; later ones lie on top."""
        labelmap.array = np.zeros(node.shape, dtype=np.int16)
        for value, id in enumerate(ids, start=1):
            labelmap.array[node.segments[id].mask] = value
        self.grid = reference.image


class Failure(Exception):
    """The extension showed an error."""


@contextmanager
def extension() -> Iterator[tuple[ModuleType, SegmentationsLogic]]:
    """The extension's module, imported as Slicer does, and what stands for Slicer's own logic."""
    names = "ctk qt SampleData sitkUtils slicer slicer.i18n slicer.ScriptedLoadableModule slicer.util vtk"
    stand_ins = {name: MagicMock(name=name) for name in [*names.split(), "vtkSegmentationCore"]}
    logic = SegmentationsLogic()
    slicer = stand_ins["slicer"]
    slicer.util = stand_ins["slicer.util"]
    slicer.util.settingsValue = lambda name, default, converter=None: default
    slicer.util.saveNode = lambda node, path: _save(node, path, logic)
    slicer.util.errorDisplay = _fail
    slicer.util.warningDisplay = _fail
    slicer.util.VTKObservationMixin = type("VTKObservationMixin", (), {})
    slicer.modules.segmentations.logic = lambda: logic
    slicer.mrmlScene.AddNewNodeByClass = lambda name: Labelmap()
    stand_ins["sitkUtils"].PushVolumeToSlicer = lambda image, target, className: Labelmap(
        sitk.GetArrayFromImage(image).T
    )
    vtk = stand_ins["vtk"]
    vtk.vtkMatrix4x4, vtk.mutable, vtk.vtkStringArray = Matrix, Mutable, StringArray
    bases = ModuleType("slicer.ScriptedLoadableModule")
    for base in ("", "Widget", "Logic", "Test"):
        name = f"ScriptedLoadableModule{base}"
        setattr(bases, name, type(name, (), {"__init__": lambda self, *a: None}))
    stand_ins["slicer.ScriptedLoadableModule"] = bases  # type: ignore[assignment]
    stand_ins["slicer.i18n"].tr = str
    stand_ins["qt"].QDialog = stand_ins["qt"].QWidget = object
    stand_ins["ctk"].ctkSettingsPanel = object

    before = {name: sys.modules.get(name) for name in (*stand_ins, "MONAILabel", "MONAILabelLib")}
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(PLUGIN))
    try:
        yield importlib.import_module("MONAILabel"), logic
    finally:
        sys.path.remove(str(PLUGIN))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def _fail(message: str, detailedText: str = "", **more: object) -> None:
    raise Failure(f"{message}\n{detailedText}")


def _save(node: VolumeNode | Labelmap, path: str, logic: SegmentationsLogic) -> None:
    image = node.image if isinstance(node, VolumeNode) else sitk.GetImageFromArray(node.array.T)  # type: ignore[union-attr]
    if isinstance(node, Labelmap):
        image.CopyInformation(logic.grid)
    sitk.WriteImage(image, path)


class Slicer:
    """A user of the extension's *SmartEdit*.

    Args:
        plugin: what `extension` gave.
        logic: likewise.
        url: the server.
        image: a file that Slicer has loaded.
        folder: for temporary files.
    """

    def __init__(
        self, plugin: ModuleType, logic: SegmentationsLogic, url: str, image: Path, folder: Path
    ) -> None:
        self.volume = VolumeNode(image)
        sys.modules["slicer"].mrmlScene.GetFirstNodeByClass = lambda name: self.volume
        widget = plugin.MONAILabelWidget.__new__(plugin.MONAILabelWidget)
        self.widget: Any = widget
        widget.ui = MagicMock(name="ui")
        widget.ui.freezeUpdateCheckBox.checked = False
        widget.ui.segmentationModelSelector.currentText = ""
        widget.ui.optionsSection.currentIndex = widget.ui.optionsName.currentIndex = 0
        widget.tmpdir, widget.file_ext = str(folder), FILE_EXTENSION
        widget.logic = plugin.MONAILabelLogic(str(folder), url, lambda _: None, "user-xyz", None)
        widget.progressBar = MagicMock()
        widget.resetLabelState = False
        widget._volumeNode = self.volume
        widget._segmentNode = Segmentation(self.volume.image.GetSize())
        widget._scribblesROINode = widget._sam2ROINode = None
        widget.dgPositivePointListNode, widget.dgNegativePointListNode = Points(), Points()
        self.roi = Roi()
        widget.ui.sam2PlaceWidget.currentNode = lambda: self.roi
        widget.current_sample = {"id": self.volume.name}
        # Parts of the panel that only draw.
        for name in ("updateGUIFromParameterNode", "updateServerSettings", "onResetScribbles", "fetchInfo"):
            setattr(widget, name, lambda *a, **k: None)
        widget.getPermissionForImageDataUpload = lambda: True
        widget.info = widget.logic.info()
        widget.models = widget.info["models"]
        widget.updateSegmentationMask(None, widget.info["labels"])

    @property
    def segments(self) -> dict[str, Segment]:
        """By name."""
        return {segment.name: segment for segment in self.widget._segmentNode.segments.values()}

    def shown(self) -> set[str]:
        """Names of the segments that are not empty."""
        return {name for name, segment in self.segments.items() if segment.mask.any()}

    def option(self, task: str, name: str, value: str) -> None:
        """Choose an option of the extension's *Options* table."""
        choices = self.widget.info["models"][task]["config"][name]
        choices.remove(value)
        choices.insert(0, value)

    def segment(
        self,
        task: str,
        label: str,
        foreground: Sequence[Sequence[float]] = (),
        background: Sequence[Sequence[float]] = (),
    ) -> None:
        """Place points (voxels of the image) for a label and press *Update*.

        Raises:
            Failure: the extension shows an error.
        """
        widget = self.widget
        widget.ui.deepgrowModelSelector.currentText = task
        widget.ui.labelComboBox.currentText = label
        model = widget.models[task]
        widget.deepedit_multi_label = model["type"] == "deepedit" and len(model["labels"]) > 0
        for node, points in (
            (widget.dgPositivePointListNode, foreground),
            (widget.dgNegativePointListNode, background),
        ):
            node.points = [self.volume.in_patient(point) for point in points]
        widget.onClickDeepgrow(None)

    def draw_roi(self, first: Sequence[float], last: Sequence[float]) -> None:
        """Draw the ROI about two voxels."""
        self.roi.corners = (self.volume.in_patient(first), self.volume.in_patient(last))

    def remove_roi(self) -> None:
        self.roi.corners = None

    def upload_as_session(self) -> None:
        """Work on an image that is not of the server's studies."""
        self.widget.current_sample = {"id": self.volume.name, "session": True}

    def submit(self) -> None:
        """Press *Submit Label*."""
        self.widget.onSaveLabel()


@contextmanager
def recorded(plugin: ModuleType) -> Iterator[list[dict[str, Any]]]:
    """The parameters of every request that the extension's client sends."""
    utils = plugin.MONAILabelClient.infer.__globals__["MONAILabelUtils"]
    original = utils.http_multipart
    sent: list[dict[str, Any]] = []

    def send(method: str, url: str, selector: str, fields: Any, files: Any, headers: Any = None) -> Any:
        sent.append({"method": method, "selector": selector, **json.loads(fields["params"])})
        return original(method, url, selector, fields, files, headers or {})

    utils.http_multipart = send
    try:
        yield sent
    finally:
        utils.http_multipart = original
