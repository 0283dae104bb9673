"""The form of 3D Slicer's MONAI Label panel in Qt, driven by the extension's own code.

Slicer binds Qt by PythonQt, where a property is an attribute; PySide6 has a method for it. `Bound` is that
difference. Widgets that only Slicer and CTK have are drawn as plain ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import MagicMock

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtCore import Property, Qt
from PySide6.QtGui import QFont, QIcon, QPaintEvent
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import (
    QApplication,
    QHBoxLayout,
    QProgressBar,
    QPushButton,
    QStyle,
    QStyleOptionButton,
    QStylePainter,
    QWidget,
)

from tests.support.slicer import PLUGIN, extension

WIDTH = 460
HEADER = 26
"""Height of a section's header in pixels."""
CASTS = {"setEnabled": bool, "setVisible": bool, "setValue": int}
"""What PythonQt converts an argument to where PySide6 refuses it."""


class Section(QWidget):
    """ctkCollapsibleButton: a header, and below it what can be folded away."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, HEADER, 0, 0)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter, option = QStylePainter(self), QStyleOptionButton()
        option.initFrom(self)
        option.rect.setHeight(HEADER)
        option.text = ("\u25b8  " if self._collapsed else "\u25be  ") + self._text
        painter.drawControl(QStyle.ControlElement.CE_PushButton, option)

    def _fold(self, collapsed: bool) -> None:
        self._collapsed = collapsed
        self.setMaximumHeight(HEADER if collapsed else 16777215)

    def _name(self, text: str) -> None:
        self._text = text

    text = Property(str, lambda self: self._text, _name)
    collapsed = Property(bool, lambda self: self._collapsed, _fold)
    collapsedHeight = Property(int, lambda self: HEADER, lambda self, height: None)


class PlaceWidget(QWidget):
    """qSlicerMarkupsPlaceWidget: buttons to place points and to delete them."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for icon in (QStyle.StandardPixmap.SP_DialogYesButton, QStyle.StandardPixmap.SP_TrashIcon):
            button = QPushButton(self.style().standardIcon(icon), "", self)
            button.setMaximumWidth(32)
            row.addWidget(button)
        row.addStretch()


class Loader(QUiLoader):
    """Reads the extension's form."""

    OURS: ClassVar = {"ctkCollapsibleButton": Section, "qSlicerMarkupsPlaceWidget": PlaceWidget}

    def createWidget(self, className: str, parent: QWidget | None = None, name: str = "") -> QWidget:
        """A widget of the form."""
        if className == "ctkComboBox":
            className = "QComboBox"
        if className.startswith("Q"):
            return super().createWidget(className, parent, name)
        widget = self.OURS.get(className, QWidget)(parent)
        widget.setObjectName(name)
        return widget


class Bound:
    """A widget as PythonQt shows it: properties are attributes, and what is unknown here does nothing."""

    def __init__(self, widget: QWidget) -> None:
        object.__setattr__(self, "widget", widget)

    def __getattr__(self, name: str) -> Any:
        widget = self.widget
        if widget.metaObject().indexOfProperty(name) >= 0:
            return widget.property(name)
        # `connect` belongs to PythonQt: nobody presses a button here.
        if name == "connect" or not hasattr(widget, name):
            return MagicMock()
        method = getattr(widget, name)
        cast = CASTS.get(name)
        return method if cast is None else lambda value: method(cast(value or 0))

    def __setattr__(self, name: str, value: object) -> None:
        self.widget.setProperty(name, value)


class Form:
    """The form's widgets by their names."""

    def __init__(self, widget: QWidget) -> None:
        self._widget = widget

    def __getattr__(self, name: str) -> Bound:
        found = self._widget.findChild(QWidget, name)
        assert found is not None, f"The form has no '{name}'."
        return Bound(found)


class Panel:
    """The extension's panel, connected to a server.

    Attributes:
        shown: the form.
        widget: the extension's own object, which fills it.
    """

    def __init__(self, plugin: Any, url: str, folder: Path) -> None:
        QApplication.instance() or QApplication([])
        self.shown = Loader().load(str(PLUGIN / "Resources" / "UI" / "MONAILabel.ui"))
        plugin.qt.QIcon, plugin.qt.Qt = QIcon, Qt
        plugin.slicer.util.loadUI = lambda path: Bound(self.shown)
        plugin.slicer.util.childWidgetVariables = lambda form: Form(form.widget)
        plugin.slicer.mrmlScene.GetFirstNodeByClass = lambda name: None
        plugin.ScriptedLoadableModuleWidget.setup = lambda widget: None
        widget: Any = plugin.MONAILabelWidget()
        widget.layout = widget.parent = MagicMock()
        widget.resourcePath = str
        widget.addObserver = widget.removeObserver = lambda *a: None
        widget.updateServerUrlGUIFromSettings = widget.updateParameterNodeFromGUI = lambda *a: None
        widget._parameterNode = SimpleNamespace(GetParameter=lambda name: "")
        widget.initializeParameterNode = lambda: None
        widget.setup()
        widget.logic = plugin.MONAILabelLogic(str(folder), url, lambda _: None, "user-xyz", None)
        widget.updateServerSettings = lambda: None
        self.widget = widget
        widget.ui.serverComboBox.setCurrentText(url)

    def fetch(self) -> None:
        """Press the button beside the server's address."""
        self.widget.fetchInfo()

    def bar(self, name: str) -> QProgressBar:
        """One of the form's bars."""
        found = self.shown.findChild(QProgressBar, name)
        assert found is not None
        return found

    def save(self, path: Path) -> None:
        """Write what the panel looks like (.png)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        font = QFont("DejaVu Sans", 9)
        for child in (self.shown, *self.shown.findChildren(QWidget)):
            child.setFont(font)
        self.shown.resize(WIDTH, self.shown.minimumSizeHint().height())
        self.shown.ensurePolished()
        assert self.shown.grab().save(str(path))


@contextmanager
def panel(url: str, folder: Path) -> Iterator[Panel]:
    """The panel of a server.

    Args:
        url: of the server.
        folder: for temporary files.
    """
    with extension() as (plugin, _):
        yield Panel(plugin, url, folder)
