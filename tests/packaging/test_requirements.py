"""The lists of packages agree with each other, and the empty wheels with what makes them."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tomllib
from dualclickmed import __version__
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.support.requirements import lines
from tests.support.scripts import ROOT, script


def test_the_list_for_a_clone_is_the_packages_own_with_all_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in ("server", "train", "eval", "viewers"):
        wanted += project["optional-dependencies"][extra]
    names = {canonicalize_name(Requirement(line).name) for line in wanted}
    listed = [Requirement(line) for line in lines("requirements.txt")]
    ours = {r.name for r in listed if "standin" in str(r.specifier)}
    assert {canonicalize_name(r.name) for r in listed} - ours == names
    assert [r.name for r in listed[:5]] == ["monailabel", "monai", "torch", "numpy", "pynrrd"]


def test_every_package_of_the_lists_is_pinned() -> None:
    pinned = {
        canonicalize_name(Requirement(line).name): Requirement(line) for line in lines("constraints.txt")
    }
    for file in ("requirements.txt", "requirements-dev.txt", "requirements-browser.txt"):
        for requirement in map(Requirement, lines(file)):
            if "standin" in str(requirement.specifier):
                continue
            (pin,) = pinned[canonicalize_name(requirement.name)].specifier
            assert requirement.specifier.contains(pin.version), (file, requirement.name)


def test_stand_ins_are_what_their_source_makes(tmp_path: Path) -> None:
    module = script("stand-ins/make.py")
    made = {module.make(name, version, tmp_path).name for name, version in module.VERSIONS.items()}
    kept = {wheel.name for wheel in module.FOLDER.glob("*.whl")}
    assert made == kept
    for name in made:
        assert (tmp_path / name).read_bytes() == (module.FOLDER / name).read_bytes(), name
    asked = {line for line in lines("requirements.txt") if "standin" in line}
    assert asked == {f"{name}=={version}+{module.LABEL}" for name, version in module.VERSIONS.items()}


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_monai_labels_own_writer_runs_on_the_stand_in_for_itk(tmp_path: Path, ending: str) -> None:
    from monai.transforms import LoadImage
    from monailabel.transform.writer import write_itk

    mask = np.zeros((4, 5, 6), dtype=np.uint8)
    mask[1, 2, 3] = 7
    affine = np.array([[0, -2, 0, 5], [1.5, 0, 0, -3], [0, 0, 2.5, 1], [0, 0, 0, 1]], dtype=float)
    path = tmp_path / f"mask{ending}"
    write_itk(mask, str(path), affine, None, True)
    # MONAI takes itk for installed, and must still read what only its other readers can.
    read = LoadImage(image_only=True)(str(path))
    np.testing.assert_array_equal(np.asarray(read), mask)
    np.testing.assert_allclose(np.asarray(read.affine), affine, atol=1e-5)
    if ending == ".nii.gz":
        np.testing.assert_allclose(nib.load(path).affine, affine, atol=1e-5)


@pytest.mark.parametrize(
    ("origin", "page"),
    [
        ("https://host.example/group/dualclickmed.git", "https://host.example/group/dualclickmed"),
        ("https://host.example/group/dualclickmed", "https://host.example/group/dualclickmed"),
        ("git@host.example:group/dualclickmed.git", "https://host.example/group/dualclickmed"),
        ("ssh://git@host.example/group/dualclickmed.git", "https://host.example/group/dualclickmed"),
    ],
)
def test_the_packages_address_is_where_it_was_cloned_from(origin: str, page: str) -> None:
    assert script("setup.py").addresses(origin) == {"Homepage": page, "Source": page}


@pytest.mark.parametrize(
    "origin",
    ["", "/home/me/clone", "file:///clone", "https://me:secret@host.example/a/b", "http://10.0.0.1:3000/a/b"],
)
def test_a_private_address_stays_out_of_the_package(origin: str) -> None:
    assert script("setup.py").addresses(origin) == {}


def test_changelog_and_citation_are_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    found = re.search(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", changelog, flags=re.M)
    assert found is not None and found[1] == __version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\ndate-released: {found[2]}\n" in citation


def test_hosted_checks_run_the_same_command_on_every_python_that_is_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = SpecifierSet(project["requires-python"])
    named = {text.rpartition(" ")[2] for text in project["classifiers"] if ":: Python :: 3." in text}
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    (matrix,) = re.findall(r"^ +python: \[(.*)\]$", workflow, flags=re.M)
    versions = set(re.findall(r'"([\d.]+)"', matrix))
    assert versions == named == {f"3.{minor}" for minor in range(30) if promised.contains(f"3.{minor}")}
    assert re.search(r"run: make test\b", workflow)
