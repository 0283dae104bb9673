"""What may be part of a path, of a record, of a name."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest
from dualclickmed.errors import UserError
from dualclickmed.server import checks
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("value", ["ct", "1.2.840.113619", "my scan (1)", "Bauch-é", "a.b"])
def test_plain_ids_pass(value: str) -> None:
    assert checks.plain_id(value) == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "1 to 200"),
        ("../x", "no folders"),
        ("a/b", "no folders"),
        ("a\\b", "no folders"),
        ("..", "no dot"),
        (".lock", "no dot"),
        ("a\0", "printable"),
        ("a\n", "printable"),
        ("\ud800", "printable"),
        ("a" * 201, "1 to 200"),
        ("é" * 101, "1 to 200"),
    ],
)
def test_ids_that_could_lead_elsewhere_are_refused(value: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        checks.plain_id(value)


@given(st.text(max_size=300))
def test_an_id_that_passes_names_one_file_of_its_folder(value: str) -> None:
    try:
        checks.plain_id(value)
    except UserError:
        return
    path = PurePosixPath("/studies") / f"{value}.nii.gz"
    assert path.parent == PurePosixPath("/studies")
    assert len(path.name.encode()) <= 255


@pytest.mark.parametrize("value", ["final", "original", "v1.2", "A_b-c"])
def test_plain_tags_pass(value: str) -> None:
    assert checks.plain_tag(value) == value


@pytest.mark.parametrize("value", ["", ".", "..", "../x", "a/b", "a..b", "-rf", "é", "a b", "a" * 65])
def test_other_tags_are_refused(value: str) -> None:
    with pytest.raises(UserError, match="tag is up to 64"):
        checks.plain_tag(value)


def test_sessions_have_the_ids_that_the_server_gives() -> None:
    assert checks.session_id("") == ""
    given_id = "01234567-89ab-cdef-0123-456789abcdef"
    assert checks.session_id(given_id) == given_id
    for other in ("x", given_id.upper(), f"{given_id}/..", f"{given_id}\n"):
        with pytest.raises(UserError, match="session's id"):
            checks.session_id(other)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.nii.gz", ".nii.gz"),
        ("A.NII", ".nii"),
        ("x.seg.nrrd", ".seg.nrrd"),
        ("../../x.v1.tar.gz", ".tar.gz"),
        ("", ".nii.gz"),
        (None, ".nii.gz"),
    ],
)
def test_uploads_go_by_their_ending_alone(name: str | None, ending: str) -> None:
    assert checks.upload_ending(name) == ending


@pytest.mark.parametrize("name", ["a.exe", "nii", "a.nii.gz.exe", "a.nii/../../x"])
def test_other_uploads_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="must end in one of"):
        checks.upload_ending(name)


@given(st.text(max_size=300), st.integers(0, 9999))
def test_the_name_of_an_upload_stays_in_its_folder(name: str, number: int) -> None:
    path = PurePosixPath("/received") / checks.upload_name(name, number)
    assert path.parent == PurePosixPath("/received")
    assert path.name not in ("", ".", "..", "meta.info")
    assert path.name.isascii()
    assert len(path.name) <= 100


def test_plain_names_of_slices_are_kept() -> None:
    assert checks.upload_name("IM 0001.dcm", 3) == "IM 0001.dcm"
    assert checks.upload_name("C:\\scans\\IM1", 3) == "IM1"
    assert checks.upload_name("../meta.info", 3) == "file3"
    assert checks.upload_name("..", 3) == "file3"


def test_checksums() -> None:
    digest = "AB" * 32
    assert checks.checksum(digest) == ("SHA256", digest.lower())
    assert checks.checksum(f"md5:{'0' * 32}") == ("MD5", "0" * 32)
    for wrong in ("", "SHA256:", f"SHA1:{'0' * 40}", f"MD5:{digest}", "x" * 64):
        with pytest.raises(UserError, match="A checksum is"):
            checks.checksum(wrong)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "it is list"),
        ("null", "it is NoneType"),
        ('{"a": NaN}', "NaN or an infinity"),
        ('{"a": -Infinity}', "NaN or an infinity"),
        ('{"a": "\\ud800"}', "not Unicode"),
        ('{"\\udfff": 1}', "not Unicode"),
        ("[" * 100_000, "cannot be read"),
        ('{"a": ' + "[" * 20 + "]" * 20 + "}", "nested"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "may have"),
    ],
)
def test_json_that_cannot_be_kept_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        checks.json_object(text)


def test_clicks_may_hold_nan_for_the_tasks_to_refuse() -> None:
    assert set(checks.json_object('{"liver": [[NaN, 1, 2]]}', finite=False)) == {"liver"}


unicode = st.text(st.characters(exclude_categories=("Cs",)))  # type: ignore[arg-type]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e300, 1e300) | unicode,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(unicode, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(unicode, json_values, max_size=4))
def test_what_json_can_hold_passes_unchanged(value: dict[str, object]) -> None:
    assert checks.json_object(json.dumps(value)) == value


def test_no_text_is_an_empty_object() -> None:
    assert checks.json_object("  ") == {}
