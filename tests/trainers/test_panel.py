"""What 3D Slicer's panel shows of a training: its own code reads what the trainers tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from dualclickmed.configs.options import ServerOptions
from dualclickmed.learning.record import PUBLISHED, STARTED
from dualclickmed.learning.runs import ProgressWriter, new_run
from dualclickmed.server.studies import Studies
from dualclickmed.trainers.learning import Learning

from tests.support.slicer import extension


@pytest.fixture(scope="module")
def plugin() -> Iterator[ModuleType]:
    with extension() as (module, _):
        yield module


class Panel:
    """The extension's widget around one studies folder, with a training that is `RUNNING` or not.

    Attributes:
        bar, accuracy: values of the two progress bars.
        tip: of the first one.
    """

    def __init__(self, plugin: ModuleType, learning: Learning) -> None:
        self.learning = learning
        self.status = "RUNNING"
        widget = plugin.MONAILabelWidget.__new__(plugin.MONAILabelWidget)
        self.widget: Any = widget
        widget.ui = MagicMock(name="ui")
        widget.ui.trainingProgressBar.value = -1
        widget.timer = MagicMock()
        widget.updateServerSettings = widget.fetchInfo = lambda: None
        widget.logic = SimpleNamespace(
            info=self.info, train_status=lambda check_only: {"status": self.status}
        )

    def info(self) -> dict[str, Any]:
        stats = {name: trainer.stats() for name, trainer in self.learning.trainers().items()}
        return {"train_stats": self.learning.latest_first(stats)}

    def look(self) -> tuple[float, str, float]:
        """What the panel shows after its timer: progress in per cent, its tip, and accuracy in per cent."""
        bar, accuracy = self.widget.ui.trainingProgressBar, self.widget.ui.accuracyProgressBar
        self.widget.monitorTraining()
        bar.value = bar.setValue.call_args.args[0]
        return bar.value, bar.setToolTip.call_args.args[0], accuracy.setValue.call_args.args[0]


@pytest.fixture
def panel(plugin: ModuleType, tmp_path: Path) -> Panel:
    studies = Studies(str(tmp_path), extensions=("*.nii.gz",), auto_reload=False)
    return Panel(plugin, Learning(studies, tmp_path, ServerOptions()))


def begun(panel: Panel, kind: Any) -> ProgressWriter:
    record = panel.learning.record
    run = new_run(record.folder, kind)
    record.training(run.name, kind, STARTED, ["v"])
    return ProgressWriter(run, kind)


@pytest.mark.parametrize("kind", ["global", "local"])
def test_the_panel_shows_the_training_that_runs(
    panel: Panel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualclickmed.trainers.tasks.note_ended", lambda record: None)
    writer = begun(panel, kind)
    writer.say("reading")
    assert panel.look() == (1, "0/1 epoch is completed", 0)
    writer.measured(0.54, 0, better=True)
    writer.say("training", epoch=0, total_epochs=40)
    assert panel.look() == (1, "0/40 epoch is completed", 54)
    writer.say("training", epoch=10, total_epochs=40)
    assert panel.look() == (25, "10/40 epoch is completed", 54)
    writer.say("training", epoch=40, total_epochs=40)
    writer.measured(0.81, 40, better=True)
    writer.say("measuring", blend=1.0)
    assert panel.look() == (100, "40/40 epoch is completed", 81)
    panel.learning.record.training(writer.run.name, kind, PUBLISHED)
    writer.say(PUBLISHED)
    panel.status = "DONE"
    assert panel.look()[:2] == (100, "Training: DONE")
    # The next one begins at the start again, with the accuracy of what is served.
    panel.status = "RUNNING"
    panel.widget.timer = MagicMock()
    begun(panel, kind).say("reading")
    assert panel.look() == (1, "0/1 epoch is completed", 81)


def test_a_cancelled_training_is_shown_as_what_it_was(panel: Panel) -> None:
    begun(panel, "local").say("training", epoch=3, total_epochs=4)
    # Its process is gone: whoever looks first notes it.
    first = next(iter(panel.info()["train_stats"].values()))
    assert (first["kind"], first["state"], first["epoch"]) == ("local", "stopped", 3)
    assert "total_time" in first
