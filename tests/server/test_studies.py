"""The studies folder: changes that are whole, in order, and survive a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from dualclickmed.errors import UserError
from dualclickmed.server.studies import Studies
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

ENDINGS = ("*.nii.gz", "*.nii", "*.nrrd")
FORKS = multiprocessing.get_context("fork")


def opened(folder: Path) -> Studies:
    return Studies(str(folder), extensions=ENDINGS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("a", "b"):
        (studies / f"{name}.nii.gz").write_bytes(f"image {name}".encode())
    return studies


@pytest.fixture
def studies(folder: Path) -> Studies:
    return opened(folder)


@pytest.fixture
def label(tmp_path: Path) -> Path:
    path = tmp_path / "tmp12345678.nii.gz"
    path.write_bytes(b"a label")
    return path


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "datastore_v2.json").read_text())
    return found


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def test_a_label_is_stored_with_what_is_known_about_it(studies: Studies, folder: Path, label: Path) -> None:
    assert studies.save_label("a", str(label), "final", {"label_info": [{"name": "liver"}]}) == "a"
    assert (folder / "labels" / "final" / "a.nii.gz").read_bytes() == b"a label"
    stored = record(folder)["objects"]["a"]["labels"]["final"]
    assert stored["info"]["label_info"] == [{"name": "liver"}]
    assert stored["ext"] == ".nii.gz"
    assert studies.get_label_uri("a", "final") == str((folder / "labels/final/a.nii.gz").resolve())
    assert half_written(folder) == []
    assert opened(folder).get_label_info("a", "final") == stored["info"]


def test_a_label_of_another_kind_of_file_takes_the_place_of_the_old_one(
    studies: Studies, folder: Path, label: Path
) -> None:
    studies.save_label("a", str(label), "final", {})
    other = label.with_name("x.nrrd")
    other.write_bytes(b"another")
    studies.save_label("a", str(other), "final", {})
    assert [path.name for path in (folder / "labels" / "final").iterdir()] == ["a.nrrd"]
    assert Path(studies.get_label_uri("a", "final")).read_bytes() == b"another"


@pytest.mark.parametrize("tag", ["../../x", "", "a/b", "..", "/tmp/x"])
def test_no_tag_leads_out_of_the_folder(studies: Studies, folder: Path, label: Path, tag: str) -> None:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match="tag"):
        studies.save_label("a", str(label), tag, {})
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("image", ["../x", "unknown", "/etc/passwd", "a\0", ".."])
def test_no_image_leads_out_of_the_folder(studies: Studies, folder: Path, label: Path, image: str) -> None:
    before = sorted(folder.parent.rglob("*"))
    assert studies.get_image_uri(image) == ""
    assert studies.get_label_uri(image, "final") == ""
    assert studies.get_image_info(image) == {}
    with pytest.raises(ImageNotFoundException):
        studies.save_label(image, str(label), "final", {})
    with pytest.raises(ImageNotFoundException):
        studies.remove_image(image)
    with pytest.raises(ImageNotFoundException):
        studies.update_image_info(image, {})
    with pytest.raises(LabelNotFoundException):
        studies.update_label_info(image, "final", {})
    studies.remove_label(image, "final")
    if image != "unknown":
        with pytest.raises(UserError):
            studies.add_image(image, str(label), {})
    assert sorted(folder.parent.rglob("*")) == before


def test_an_image_is_not_replaced_by_another(studies: Studies, folder: Path, label: Path) -> None:
    assert studies.add_image("new", str(label), {"who": "x"}) == "new"
    assert studies.add_image("new", str(label), {}) == "new"
    label.write_bytes(b"other voxels")
    with pytest.raises(UserError, match="with other voxels"):
        studies.add_image("new", str(label), {})
    assert (folder / "new.nii.gz").read_bytes() == b"a label"
    exotic = label.with_suffix(".xyz")
    exotic.write_bytes(b"")
    with pytest.raises(UserError, match=r"end in \.nii\.gz, \.nii, \.nrrd"):
        studies.add_image("exotic", str(exotic), {})


def test_an_image_goes_with_its_labels(studies: Studies, folder: Path, label: Path) -> None:
    studies.save_label("a", str(label), "final", {})
    studies.remove_image("a")
    assert studies.list_images() == ["b"]
    assert not (folder / "labels" / "final" / "a.nii.gz").exists()
    assert list(record(folder)["objects"]) == ["b"]


def test_files_that_come_and_go_are_noticed(studies: Studies, folder: Path) -> None:
    (folder / "c.nrrd").write_bytes(b"c")
    (folder / "labels" / "final" / "b.nii.gz").write_bytes(b"by hand")
    (folder / "a.nii.gz").unlink()
    studies.refresh()
    assert studies.list_images() == ["b", "c"]
    assert studies.get_labeled_images() == ["b"]
    assert sorted(record(folder)["objects"]) == ["b", "c"]


def test_what_cannot_be_stored_is_refused(studies: Studies, folder: Path, label: Path) -> None:
    before = record(folder)
    for info in ({"x": float("nan")}, {"x": "\ud800"}, {"x": "x" * (1 << 20)}):
        with pytest.raises(UserError):
            studies.update_image_info("a", info)
        with pytest.raises(UserError):
            studies.save_label("a", str(label), "final", info)
    with pytest.raises(UserError, match="'strategy' must be an object"):
        studies.update_image_info("a", {"strategy": "first"})
    assert record(folder) == before
    assert half_written(folder) == []


def test_two_processes_do_not_undo_each_other(folder: Path, label: Path) -> None:
    one, other = opened(folder), opened(folder)
    one.save_label("a", str(label), "final", {"by": "one"})
    other.save_label("b", str(label), "final", {"by": "other"})
    one.update_image_info("a", {"seen": True})
    objects = record(folder)["objects"]
    assert objects["a"]["labels"]["final"]["info"]["by"] == "one"
    assert objects["b"]["labels"]["final"]["info"]["by"] == "other"
    assert objects["a"]["image"]["info"]["seen"] is True


def test_readers_never_see_half_a_change(folder: Path, label: Path) -> None:
    studies = Studies(str(folder), extensions=ENDINGS)
    stop, problems = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if studies.list_images() != ["a", "b"] or not studies.get_image_uri("a"):
                problems.append(studies.list_images())
            studies.status()
            studies.datalist()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(30):
        studies.save_label("ab"[number % 2], str(label), "final", {"number": number})
        studies.refresh()
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []


def test_a_damaged_record_is_set_aside_and_made_anew(studies: Studies, folder: Path, label: Path) -> None:
    studies.save_label("a", str(label), "final", {})
    text = (folder / "datastore_v2.json").read_text()
    (folder / "datastore_v2.json").write_text(text[: len(text) // 2])
    again = opened(folder)
    assert again.get_labeled_images() == ["a"]
    assert [path.read_text() for path in folder.glob("datastore_v2-damaged-*.json")] == [
        text[: len(text) // 2]
    ]


def test_while_another_program_writes_the_record_the_old_one_counts(studies: Studies, folder: Path) -> None:
    (folder / "datastore_v2.json").write_text("{")
    studies.refresh()
    assert studies.list_images() == ["a", "b"]


STEPS = ("part", "note", "in place", "recorded")


@pytest.mark.parametrize("step", STEPS)
def test_a_label_that_was_cut_short_is_completed_or_gone(
    folder: Path, label: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A crash after each step of storing a label: from the note on, the next start completes it."""
    from dualclickmed.server import studies as module

    class Crash(BaseException):
        pass

    studies = opened(folder)
    studies.save_label("a", str(label), "final", {"by": "before"})
    label.write_bytes(b"the next")
    written, unlink = module.write_text, Path.unlink

    def failing(path: Path, text: str) -> None:
        name = path.name
        if step == "part" and name == ".pending.json":
            raise Crash
        if step == "in place" and name == "datastore_v2.json":
            raise Crash
        written(path, text)
        if step == "note" and name == ".pending.json":
            raise Crash

    def not_unlinked(path: Path, missing_ok: bool = False) -> None:
        if path.name == ".pending.json" and step == "recorded":
            raise Crash
        # What a killed process does not get round to.
        if not path.name.endswith(".part"):
            unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as crashing:
        crashing.setattr(module, "write_text", failing)
        crashing.setattr(Path, "unlink", not_unlinked)
        with pytest.raises(Crash):
            studies.save_label("a", str(label), "final", {"by": "next"})
    again = opened(folder)
    # Without a note nobody was promised anything; from the note on the label is there as a whole.
    stored, by = (
        Path(again.get_label_uri("a", "final")).read_bytes(),
        again.get_label_info("a", "final")["by"],
    )
    assert (stored, by) == ((b"a label", "before") if step == "part" else (b"the next", "next"))
    assert record(folder)["objects"]["a"]["labels"]["final"]["info"]["by"] == by
    assert half_written(folder) == []


def _submit_for_ever(folder: Path, promised: Path, seed: int, begun: Event) -> None:
    begun.set()
    studies = opened(folder)
    numbers = random.Random(seed)
    label = promised.with_name(f"label-{seed}.nii.gz")
    while True:
        number = numbers.randrange(10**9)
        image = numbers.choice("ab")
        label.write_bytes(f"{number}".encode() * numbers.randrange(1, 20_000))
        studies.save_label(image, str(label), "final", {"number": number})
        with promised.open("a") as stream:
            stream.write(f"{image} {number}\n")


@pytest.fixture
def killed(folder: Path) -> Iterator[tuple[Path, Path]]:
    promised = folder.parent / "promised.txt"
    promised.touch()
    yield folder, promised


def test_fifty_kills_while_labels_are_stored(killed: tuple[Path, Path]) -> None:
    folder, promised = killed
    numbers = random.Random(50)
    lines: list[list[str]] = []
    seed = 0
    # A busy machine stores little before a kill; kills in which nothing was promised would show nothing.
    while seed < 50 or len(lines) <= 20:
        seed += 1
        # Forked, so that a start costs nothing; nothing here computes in threads that a fork would lose.
        begun = FORKS.Event()
        process = FORKS.Process(target=_submit_for_ever, args=(folder, promised, seed, begun))
        process.start()
        assert process.pid is not None
        assert begun.wait(60)
        time.sleep(numbers.uniform(0.02, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        studies = opened(folder)
        assert half_written(folder) == []
        assert list(folder.glob("*damaged*")) == []
        lines = [line.split() for line in promised.read_text().splitlines()]
        for image, kept in dict(lines).items():
            data = Path(studies.get_label_uri(image, "final")).read_bytes()
            number = str(studies.get_label_info(image, "final")["number"])
            # The last one promised, or the one after it that was cut short; never an earlier one.
            assert number == kept or [image, number] not in lines
            # Voxels and what is known about them belong together.
            assert data == number.encode() * (len(data) // len(number))


ALL = ("*.nii.gz", "*.nii", "*.nrrd", "*.nhdr", "*.mha", "*.mhd")


def test_files_that_come_and_go_are_noticed_at_the_next_request(studies: Studies, folder: Path) -> None:
    for number in range(20):
        (folder / f"new{number}.nii.gz").write_bytes(b"image")
        assert studies.get_image_uri(f"new{number}") == str((folder / f"new{number}.nii.gz").resolve())
        assert f"new{number}" in studies.list_images()
        assert f"new{number}" in studies.get_unlabeled_images()
        (folder / f"new{number}.nii.gz").unlink()
        assert studies.list_images() == ["a", "b"]
    (folder / "labels" / "final" / "a.nii.gz").write_bytes(b"label")
    assert studies.get_labeled_images() == ["a"]
    (folder / "labels" / "final" / "a.nii.gz").unlink()
    assert studies.get_unlabeled_images() == ["a", "b"]


def test_endings_are_found_in_any_case_and_headers_with_their_data(tmp_path: Path) -> None:
    names = (
        "one.NII.GZ",
        "two.Nii",
        "three.mhd",
        "three.raw",
        "four.nhdr",
        "four.raw.gz",
        "five.MHA",
    )
    for name in (*names, "six.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = Studies(str(tmp_path), extensions=ALL)
    assert sorted(found.list_images()) == ["five", "four", "one", "three", "two"]
    assert Path(found.get_image_uri("one")).name == "one.NII.GZ"
    assert Path(found.get_image_uri("three")).name == "three.mhd"


def test_two_files_of_one_stem_are_both_found_by_their_full_names(tmp_path: Path, label: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in ("ct.nii.gz", "ct.nrrd", "mr.nii.gz"):
        (folder / name).write_bytes(name.encode())
    found = Studies(str(folder), extensions=ALL)
    assert sorted(found.list_images()) == ["ct.nii.gz", "ct.nrrd", "mr"]
    for name in ("ct.nii.gz", "ct.nrrd", "mr.nii.gz"):
        assert Path(found.get_image_uri(name)).read_bytes() == name.encode()
    found.save_label("ct.nrrd", str(label), "final", {})
    assert found.get_labeled_images() == ["ct.nrrd"]
    again = Studies(str(folder), extensions=ALL)
    assert again.get_labeled_images() == ["ct.nrrd"]
    assert Path(again.get_label_uri("ct.nrrd", "final")).read_bytes() == b"a label"


def test_an_image_keeps_its_id_and_its_label_when_another_of_its_stem_comes_and_goes(
    studies: Studies, folder: Path, label: Path
) -> None:
    studies.save_label("a", str(label), "final", {})
    (folder / "a.nrrd").write_bytes(b"another")
    assert studies.list_images() == ["a", "b", "a.nrrd"]
    assert studies.get_labeled_images() == ["a"]
    assert Path(studies.get_image_uri("a.nrrd")).read_bytes() == b"another"
    assert opened(folder).get_labeled_images() == ["a"]
    (folder / "a.nrrd").unlink()
    assert studies.list_images() == ["a", "b"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_told_at_the_start() -> None:
    with pytest.raises(UserError, match="must be one that the server can write to"):
        Studies("/proc/self", extensions=ENDINGS)
