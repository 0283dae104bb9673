"""Challenge case files: what is read, what is refused, and answers that depend on the file alone."""

from __future__ import annotations

import functools
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dualclickmed.cli.app import app
from dualclickmed.errors import UserError
from dualclickmed.evaluation.challenge import answer, predict_folder
from dualclickmed.experts import DualExpert
from dualclickmed.imaging.case_files import read_case
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.prompts import Click
from dualclickmed.predictor import Predictor
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.support.case_files import write_case

SHAPE = (20, 24, 28)
BOX = {
    "z_min": 4,
    "z_max": 11,
    "z_mid": 8,
    "z_mid_x_min": 6,
    "z_mid_y_min": 5,
    "z_mid_x_max": 15,
    "z_mid_y_max": 14,
}
OTHER_BOX = {**BOX, "z_mid_x_min": 18, "z_mid_x_max": 25}
REPOSITORY = Path(__file__).parents[2]


def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    grey = rng.normal(60, 8, SHAPE)
    grey[4:12, 5:15, 6:16] += 90
    grey[4:12, 5:15, 18:26] += 140
    return np.clip(grey, 0, 255).astype(np.uint8)


def save(path: Path, **arrays: Any) -> Path:
    """As the challenge's own programs do, lists of dicts included."""
    np.savez_compressed(path, **{"imgs": image(), "spacing": np.array([0.8, 0.9, 2.5]), **arrays})
    return path


# Reading ------------------------------------------------------------------------------------------------


def test_boxes_and_clicks_are_read_as_the_challenge_writes_them(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.npz",
        boxes=[BOX, OTHER_BOX],
        clicks=[
            {"fg": [[5, 6, 7], [6, 7, 8]], "bg": [list(np.array([1, 2, 3]))]},
            {"fg": [], "bg": []},
        ],
        clicks_order=np.array([["fg", "bg", "fg"], []], dtype=object),
        prev_pred=np.zeros(SHAPE, np.uint8),
    )
    case = read_case(path)
    assert case.boxes is not None and case.boxes[0] == Box((4, 5, 6), (12, 15, 16))
    assert case.clicks == (
        (Click((5, 6, 7)), Click((1, 2, 3), False), Click((6, 7, 8))),
        (),
    )
    assert case.values == (1, 2) and case.truth is None
    # Arrays are (z, y, x), the file's spacing is (x, y, z).
    assert case.spacing == (0.8, 0.9, 2.5) and case.volume.spacing == (2.5, 0.9, 0.8)
    prompts = case.prompts()
    assert list(prompts) == [1, 2] and prompts[2].box == Box((4, 5, 18), (12, 15, 26))


def test_orders_of_equal_length_become_a_text_array_and_none_is_no_click(tmp_path: Path) -> None:
    clicks = [{"fg": [[1, 1, 1]], "bg": [[2, 2, 2]]}, {"fg": [[3, 3, 3]], "bg": [[4, 4, 4]]}]
    text = read_case(save(tmp_path / "a.npz", clicks=clicks, clicks_order=[["bg", "fg"], ["fg", "bg"]]))
    assert text.clicks is not None and [c.positive for c in text.clicks[0]] == [False, True]
    order = np.array([["bg", None, "fg"], ["fg", None, "bg"]], dtype=object)
    assert read_case(save(tmp_path / "b.npz", clicks=clicks, clicks_order=order)).clicks == text.clicks
    without = read_case(save(tmp_path / "c.npz", clicks=clicks))
    assert without.clicks is not None and [c.positive for c in without.clicks[1]] == [True, False]


def test_a_written_case_is_read_back(tmp_path: Path) -> None:
    boxes = [Box((1, 2, 3), (4, 6, 8)), Box((0, 0, 0), (20, 24, 28))]
    clicks = [[Click((1, 2, 3)), Click((9, 9, 9), False), Click((2, 3, 4))], []]
    truth = np.zeros(SHAPE, np.uint16)
    truth[1:4, 2:6, 3:8], truth[10:, 10:, 10:] = 7, 3
    write_case(tmp_path / "a.npz", image(), (1.0, 2.0, 3.0), boxes, clicks, truth)
    case = read_case(tmp_path / "a.npz")
    assert case.boxes == tuple(boxes) and case.clicks == tuple(map(tuple, clicks))
    assert case.spacing == (1.0, 2.0, 3.0) and np.array_equal(case.image, image())
    # Classes are the sorted values of the truth where there is one.
    assert case.values == (3, 7) and case.truth is not None and np.array_equal(case.truth, truth)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_version_of_pickles_is_read(tmp_path: Path, protocol: int) -> None:
    entries = np.empty(1, dtype=object)
    entries[0] = {"fg": [np.array([1, 2, 3]), [np.int64(4), 5, 6]], "bg": (np.array([7, 8, 9], np.int16),)}
    case = read_case(with_pickle(tmp_path / "a.npz", "clicks", pickle.dumps(entries, protocol=protocol)))
    assert case.clicks == ((Click((1, 2, 3)), Click((4, 5, 6)), Click((7, 8, 9), False)),)


def with_pickle(path: Path, name: str, data: bytes) -> Path:
    """A case file with one part of any content."""
    save(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{name}.npy", header.getvalue() + data)
    return path


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {}",), "system"),
        (eval, ("open({!r}, 'w')",), "eval"),
        (functools.partial, (os.mkdir, "{}"), "functools.partial"),
        (np.load, ("{}",), "load"),
        (np.fromfile, ("{}",), "fromfile"),
        (getattr, ("text", "upper"), "getattr"),
    ],
)
def test_nothing_in_a_file_is_run(
    tmp_path: Path, function: Any, arguments: tuple[Any, ...], named: str
) -> None:
    mark = tmp_path / "ran"
    told = [a.format(str(mark)) if isinstance(a, str) else a for a in arguments]
    entries = np.empty(1, dtype=object)
    entries[0] = {"fg": [Calls(function, *told)], "bg": []}
    for part in ("boxes", "clicks", "clicks_order"):
        for protocol in (0, 2, 4):
            path = with_pickle(tmp_path / "evil.npz", part, pickle.dumps(entries, protocol=protocol))
            with pytest.raises(
                UserError, match=f"'evil.npz' can't be read as a case file \\({part}\\).*{named}"
            ):
                read_case(path)
    assert not mark.exists()


def test_arrays_that_ask_for_the_memory_of_the_machine_are_refused(tmp_path: Path) -> None:
    reconstruct = np.core.multiarray._reconstruct  # type: ignore[attr-defined]
    data = pickle.dumps(Calls(reconstruct, np.ndarray, (10**12,), b"b"))
    with pytest.raises(UserError, match="not empty at first"):
        read_case(with_pickle(tmp_path / "a.npz", "boxes", data))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**5, 10**5, 10**5)}
    )
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("imgs.npy", header.getvalue() + b"1234")
    with pytest.raises(UserError, match="does not fit its"):
        read_case(tmp_path / "b.npz")


@settings(max_examples=80)
@given(data=st.binary(max_size=60), kind=st.sampled_from(["pickle", "array", "file"]))
def test_noise_is_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str) -> None:
    folder = tmp_path_factory.mktemp("noise")
    path = folder / "a.npz"
    if kind == "pickle":
        with_pickle(path, "boxes", b"\x80\x04" + data)
    elif kind == "array":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("imgs.npy", b"\x93NUMPY\x01\x00" + data)
    else:
        path.write_bytes(data)
    with pytest.raises(UserError, match=r"'a\.npz'"):
        read_case(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"imgs": np.zeros((3, 4))}, "imgs with three axes"),
        ({"imgs": np.zeros((3, 4, 5), complex)}, "imgs with three axes"),
        ({"spacing": np.array([1.0, 0.0, 1.0])}, "three positive numbers"),
        ({"spacing": np.array([1.0, 1.0])}, "three positive numbers"),
        ({"gts": np.zeros((3, 4, 5), np.uint8)}, "gts .* of the shape"),
        ({"boxes": [{**BOX, "z_max": 20}]}, "must lie in the image"),
        ({"boxes": [{**BOX, "z_min": 12}]}, "must lie in the image"),
        ({"boxes": [{"z_min": 1}]}, "must have whole numbers"),
        ({"boxes": [{**BOX, "z_min": 4.5}]}, "must have whole numbers"),
        ({"clicks": [{"fg": [[1, 2]], "bg": []}]}, "triples of whole numbers"),
        ({"clicks": [["fg"]]}, "must be a dict"),
        ({"clicks": [{"fg": [[1, 2, 28]], "bg": []}]}, "must lie in the image"),
        ({"clicks": [{"fg": [[1, 2, 3]], "bg": []}], "clicks_order": [["bg"]]}, "name every click once"),
        ({"clicks": [{"fg": [], "bg": []}], "clicks_order": [[], []]}, "as many classes"),
        ({"boxes": [BOX], "clicks": [{"fg": [], "bg": []}] * 2}, "1 in boxes, 2 in clicks"),
        ({"boxes": [BOX], "gts": np.indices(SHAPE)[0] % 3}, "1 in boxes, 2 in gts"),
        ({"gts": np.indices(SHAPE)[0] * 100}, "at most 255"),
        ({}, "at least one class"),
    ],
)
def test_what_does_not_fit_together_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "case.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        _ = read_case(path).values
    assert "case.npz" in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no case file"):
        read_case(tmp_path / "absent.npz")
    with pytest.raises(UserError, match="no folder"):
        list(predict_folder(tmp_path / "absent", tmp_path / "out", None))
    with pytest.raises(UserError, match="holds no case file"):
        list(predict_folder(tmp_path, tmp_path / "out", None))
    save(tmp_path / "a.npz", boxes=[BOX])
    with pytest.raises(UserError, match="input and as output"):
        list(predict_folder(tmp_path, tmp_path, None))


# Answering ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expert() -> DualExpert:
    return Predictor.from_weights(device="cpu").expert


def clicked(path: Path) -> Path:
    return save(
        path,
        boxes=[BOX, OTHER_BOX],
        clicks=[{"fg": [[8, 10, 10]], "bg": [[8, 10, 20]]}, {"fg": [[8, 10, 22]], "bg": []}],
        clicks_order=np.array([["fg", "bg"], ["fg"]], dtype=object),
    )


def test_an_answer_depends_on_its_file_alone(tmp_path: Path, expert: DualExpert) -> None:
    first = save(tmp_path / "first.npz", boxes=[BOX, OTHER_BOX])
    later = clicked(tmp_path / "later.npz")
    segs, failures = answer(read_case(later), expert)
    assert not failures and segs.dtype == np.uint8 and segs.shape == SHAPE
    # Another expert that has seen the earlier step, with a cold cache, in another order.
    other = Predictor.from_weights(device="cpu").expert
    answer(read_case(first), other)
    assert np.array_equal(answer(read_case(later), other)[0], segs)
    assert segs[8, 10, 10] == 1 and segs[8, 10, 22] == 2 and segs[8, 10, 20] != 1
    for value, columns in ((1, slice(6, 16)), (2, slice(18, 26))):
        truth = np.zeros(SHAPE, bool)
        truth[4:12, 5:15, columns] = True
        overlap = 2 * (truth & (segs == value)).sum() / (truth.sum() + (segs == value).sum())
        assert overlap > 0.8


def test_classes_keep_the_values_of_the_truth(tmp_path: Path, expert: DualExpert) -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[0], truth[1] = 5, 130
    segs, _ = answer(read_case(save(tmp_path / "a.npz", boxes=[BOX, OTHER_BOX], gts=truth)), expert)
    assert set(np.unique(segs)) == {0, 5, 130}
    assert np.median(np.argwhere(segs == 130)[:, 2]) > 16 > np.median(np.argwhere(segs == 5)[:, 2])


def test_without_a_box_the_clicks_answer_and_a_class_without_prompts_is_empty(
    tmp_path: Path, expert: DualExpert
) -> None:
    clicks = [{"fg": [], "bg": []}, {"fg": [[8, 10, 22]], "bg": []}]
    segs, failures = answer(read_case(save(tmp_path / "a.npz", clicks=clicks)), expert)
    assert not failures and segs[8, 10, 22] == 2 and not (segs == 1).any()


def test_a_class_that_fails_does_not_take_the_others_along(tmp_path: Path, expert: DualExpert) -> None:
    # Without a box, background clicks alone say nothing about where the object is.
    clicks = [{"fg": [], "bg": [[1, 1, 1]]}, {"fg": [[8, 10, 22]], "bg": []}]
    segs, failures = answer(read_case(save(tmp_path / "a.npz", clicks=clicks)), expert)
    assert segs[8, 10, 22] == 2 and not (segs == 1).any()
    assert len(failures) == 1 and failures[0].startswith("class 1:")


def test_the_command_answers_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    save(folder / "good.npz", boxes=[BOX])
    (folder / "bad.npz").write_bytes(b"no archive")
    result = CliRunner().invoke(
        app, ["predict", "--input", str(folder), "--output", str(out), "--device", "cpu"]
    )
    assert result.exit_code == 2 and "1 of 2 case files" in result.output
    assert sorted(p.name for p in out.iterdir()) == ["good.npz"]
    with np.load(out / "good.npz") as answer:
        assert answer.files == ["segs"] and answer["segs"].shape == SHAPE and answer["segs"].max() == 1


def test_the_challenges_program_runs_without_the_server_s_packages(tmp_path: Path) -> None:
    folder, out = tmp_path / "inputs", tmp_path / "outputs"
    folder.mkdir()
    save(folder / "case.npz", boxes=[BOX])
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "for name in ('monailabel', 'pydicom', 'nrrd', 'tensorboard', 'matplotlib', 'skimage'):\n"
        "    sys.modules[name] = None\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["sh", str(REPOSITORY / "predict.sh"), str(folder), str(out), "--device", "cpu"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(out / "case.npz") as answer:
        assert answer["segs"].any()
