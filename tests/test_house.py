"""Rules of the house that a program can check: nothing grows beyond what a reader takes in."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import tomllib

APP = Path(__file__).resolve().parents[1] / "apps" / "dualclickmed"
PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
ARCHITECTURE = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 500, 60, 8
COMMANDS = ("lib/cli/", "lib/evaluation/ablation.py:ablate")
"""Commands of the command line may be longer and take more parameters."""

AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def modules() -> Iterator[tuple[str, str]]:
    for path in sorted(APP.rglob("*.py")):
        yield path.relative_to(APP).as_posix(), path.read_text(encoding="utf-8")


def lines_of(function: AnyFunction) -> int:
    """Lines without the docstring."""
    total = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        total -= (first.end_lineno or 0) - first.lineno + 1
    return total


def parameters_of(function: AnyFunction) -> int:
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len(given) - (bool(given) and given[0].arg in ("self", "cls"))


def test_no_module_is_longer_than_a_reader_takes_in() -> None:
    long = {name for name, text in modules() if len(text.splitlines()) > MOST_LINES}
    assert long == set()


def test_no_function_is_too_long_or_takes_too_many_parameters() -> None:
    large = {
        f"{name}:{node.name}"
        for name, text in modules()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, Function)
        and (lines_of(node) > MOST_FUNCTION_LINES or parameters_of(node) > MOST_PARAMETERS)
    }
    assert {found for found in large if not found.startswith(COMMANDS)} == set()


def test_no_two_public_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for name, text in modules():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    assert {name: its for name, its in places.items() if len(its) > 1} == {}


def test_the_document_of_the_architecture_names_what_there_is() -> None:
    """Every room is listed, and every file and name on the way of a click exists."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    rooms = text[text.index("## Rooms") : text.index("## Glossary")]
    assert {p.name for p in (APP / "lib").iterdir() if not p.name.startswith(("_", "py."))} <= {
        name.rstrip("/") for name in re.findall(r"`([\w/.]+)`", rooms)
    }
    way = " ".join(text[text.index("## The way of a click") : text.index("## The two experts")].split())
    named = re.findall(r"`([\w/]+\.py)`(?:, `([\w.]+)`)?", way)
    assert len(named) > 50
    for path, name in named:
        file = APP / path if path == "main.py" else APP / "lib" / path
        assert file.is_file(), path
        defined = {
            n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, (*Function, ast.ClassDef))
        }
        assert set(name.split(".") if name else ()) <= defined, f"{path}: {name}"


def documented() -> Iterator[tuple[str, AnyFunction | ast.ClassDef, str]]:
    """Every function and class with its module's name and its docstring."""
    for name, text in modules():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (*Function, ast.ClassDef)):
                yield name, node, ast.get_docstring(node) or ""


def test_every_argument_has_a_line_of_its_own_in_docstrings() -> None:
    crowded = [
        f"{name}: {line.strip()}"
        for name, _, docstring in documented()
        for section in re.findall(r"^(?:Args|Attributes):\n((?: {4}.*\n?|\n)+)", docstring, re.MULTILINE)
        for line in section.splitlines()
        if re.search(r"[.;] [a-z_]+(?:, [a-z_]+)*: ", line)
    ]
    assert crowded == []


def names_of(node: AnyFunction | ast.ClassDef) -> set[str]:
    """Parameters of a function; fields of a class and parameters of its methods."""
    if isinstance(node, ast.ClassDef):
        methods = [names_of(member) for member in node.body if isinstance(member, Function)]
        targets = [member.target for member in node.body if isinstance(member, ast.AnnAssign)]
        return {target.id for target in targets if isinstance(target, ast.Name)}.union(*methods)
    return {found.arg for found in ast.walk(node.args) if isinstance(found, ast.arg)}


def described_outside_sections(docstring: str, names: set[str]) -> list[str]:
    """Lines of a docstring, but for those below a heading, that describe one of the names: ``name: text``."""
    prose = re.sub(r"^[A-Z][a-z]+:\n(?:(?: {4}.*)?(?:\n|\Z))+", "", docstring, flags=re.MULTILINE)
    lists = re.compile(r"(?:^|[.;] )(\w+(?: \([^)]*\))?(?:, \w+(?: \([^)]*\))?)*): ")
    return [
        line.strip()
        for line in prose.splitlines()
        if any(names & set(re.findall(r"\w+", listed)) for listed in lists.findall(line.strip()))
    ]


def test_no_argument_or_attribute_is_described_outside_a_section_of_a_docstring() -> None:
    loose = [
        f"{name}:{node.name}: {line}"
        for name, node, docstring in documented()
        for line in described_outside_sections(docstring, names_of(node))
    ]
    assert loose == []


def test_the_picture_of_the_rooms_shows_the_layers_that_are_enforced() -> None:
    contracts = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    rank = {room: at for at, layer in enumerate(contracts[0]["layers"]) for room in layer.split(" | ")}
    text = ARCHITECTURE.read_text(encoding="utf-8")
    picture = text[text.index("```mermaid") : text.index("## The way of a click")]
    # One row of the picture may hold several layers, the upper ones first.
    floors = [
        [rank[word] for word in re.findall(r"\w+", floor) if word in rank]
        for floor in re.findall(r"\w+(?:\[\"[^\"]*\"\])?", picture.split("\n", 2)[2])
    ]
    floors = [floor for floor in floors if floor]
    assert {at for floor in floors for at in floor} == set(rank.values())
    for upper, lower in itertools.pairwise(floors):
        assert max(upper) <= min(lower)


def test_there_is_one_of_each() -> None:
    """One reader of files, one write that replaces files, one conversion between RAS and LPS."""
    reading = ("nib.load(", "sitk.ReadImage(", "nrrd.read(", "dcmread(", "LoadImage(")
    flushing = ("os.fsync(", "os.replace(", "os.rename(")
    # See the decision "One atomic write" in docs/architecture.md; weights are flushed with their card.
    readers = {"lib/imaging/dicom_files.py"}
    flushers = {
        "lib/atomic_files.py",
        "lib/server/studies.py",
        "lib/weights/download.py",
        "lib/weights/files.py",
        "lib/learning/record.py",
    }
    allowed = {
        **dict.fromkeys(reading, readers),
        **dict.fromkeys(flushing, flushers),
        "np.diag([-": {"lib/imaging/placing.py"},
    }
    elsewhere = {
        f"{name}: {what}"
        for name, text in modules()
        for what, places in allowed.items()
        if what in text and name not in places
    }
    assert elsewhere == set()


def test_the_folders_of_tests_are_the_rooms() -> None:
    """Tests mirror the rooms: each folder of tests is a room, or one of those named here."""
    rooms = {p.name for p in (APP / "lib").iterdir() if p.is_dir()}
    folders = {p.name for p in Path(__file__).parent.iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert folders <= rooms | {"browser", "integration", "packaging", "page", "support"}


def test_what_tests_share_lies_in_support() -> None:
    """No test module imports another one, so that each can be run, moved and removed alone."""
    tests = Path(__file__).parent
    shared = [
        f"{path.relative_to(tests)}:{node.lineno}"
        for path in sorted(tests.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if re.search(r"(^|\.)test_\w+$", name)
    ]
    assert shared == []


def test_files_are_parsed_in_the_loader_alone() -> None:
    """Images and labels come through `imaging.reading`; few modules parse them for it."""
    parser = re.compile(
        r"\b(nib|nibabel|nrrd|itk|sitk|pydicom)\.(load|read|imread|ReadImage|dcmread|ImageFileReader|"
        r"ImageSeriesReader)\(|\bLoadImaged?\("
    )
    found = {name for name, text in modules() if parser.search(text)}
    # Pixels of a checked DICOM file, and the place that ITK gives to a NIfTI header of ours.
    assert found == {"lib/imaging/dicom_files.py", "lib/imaging/placing.py"}
