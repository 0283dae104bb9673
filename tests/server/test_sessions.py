"""Images that clients upload: only ids that were given, only files of the folder, archives without tricks."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dualclickmed.errors import UserError
from dualclickmed.imaging.volume import load_volume
from dualclickmed.server.answers import StorageFullError
from dualclickmed.server.sessions import MAX_FILES, SafeSessions, image_in, received, unpacked
from starlette.datastructures import UploadFile

from tests.support.volume_files import dicom_bytes, dicom_frames

ID = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
def sessions(tmp_path: Path) -> SafeSessions:
    return SafeSessions(str(tmp_path / "sessions"), 3600)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"voxels")
    return path


def test_a_session_is_found_again_also_by_another_server(sessions: SafeSessions, image: Path) -> None:
    session_id, info = sessions.add_session(str(image))
    assert Path(info.image).read_bytes() == b"voxels"
    other = SafeSessions(sessions.store_path, 3600)
    found = other.get_session(session_id)
    assert found is not None
    assert found.image == info.image
    other.remove_session(session_id)
    assert sessions.get_session(session_id) is None


@pytest.mark.parametrize("session_id", ["..", ".", "", "/etc", f"{ID}/..", "../sessions", "a\0"])
def test_ids_that_were_never_given_find_and_remove_nothing(
    sessions: SafeSessions, image: Path, session_id: str
) -> None:
    sessions.add_session(str(image))
    before = sorted(Path(sessions.store_path).parent.rglob("*"))
    assert sessions.get_session(session_id) is None
    if session_id:
        with pytest.raises(UserError):
            sessions.remove_session(session_id)
    assert sorted(Path(sessions.store_path).parent.rglob("*")) == before


def test_a_session_that_names_a_file_elsewhere_is_none(sessions: SafeSessions, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("nobody may read this")
    folder = Path(sessions.store_path) / ID
    folder.mkdir(parents=True)
    meta = {"name": ID, "path": str(folder), "image": str(secret), "last_access_ts": 1, "expiry": 3600}
    (folder / "meta.info").write_text(json.dumps(meta))
    assert sessions.get_session(ID) is None


@pytest.mark.parametrize("meta", ["", "{", "[]", '{"image": 3}'])
def test_what_a_crash_left_is_no_session_and_expires(sessions: SafeSessions, meta: str) -> None:
    folder = Path(sessions.store_path) / ID
    folder.mkdir(parents=True)
    (folder / "meta.info").write_text(meta)
    assert sessions.get_session(ID) is None
    # Some of it MONAI Label itself recognises as left over.
    if folder.exists():
        os.utime(folder, (time.time() - 1000, time.time() - 1000))
        assert sessions.remove_expired() == 1
    assert not folder.exists()


def test_sessions_expire_whether_or_not_this_server_made_them(sessions: SafeSessions, image: Path) -> None:
    session_id, info = sessions.add_session(str(image))
    other = SafeSessions(sessions.store_path, 3600)
    (Path(sessions.store_path) / "not a session").mkdir()
    assert other.remove_expired() == 0
    info.last_access_ts = int(time.time()) - 4000
    sessions._write_meta_info(session_id, info)
    assert other.remove_expired() == 1
    assert [path.name for path in Path(sessions.store_path).iterdir()] == ["not a session"]


def a_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def a_tar(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


TRICKY = {"a/1.dcm": b"one", "../../2.dcm": b"two", "/etc/3.dcm": b"three", "b/1.dcm": b"another one"}


@pytest.mark.parametrize("make", [a_zip, a_tar])
def test_archives_are_unpacked_side_by_side(tmp_path: Path, make: object) -> None:
    archive = make(tmp_path / "a", TRICKY)  # type: ignore[operator]
    out = tmp_path / "out"
    out.mkdir()
    unpacked(archive, out, 1000)
    assert sorted(path.read_bytes() for path in out.iterdir()) == [b"another one", b"one", b"three", b"two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out"]


def test_links_in_archives_are_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    unpacked(a_tar(tmp_path / "a", {"1.dcm": b"x"}, {"2.dcm": "/etc/passwd"}), out, 1000)
    assert [path.name for path in out.iterdir()] == ["1.dcm"]


@pytest.mark.parametrize("make", [a_zip, a_tar])
def test_what_a_system_keeps_beside_the_files_is_left_out(tmp_path: Path, make: object) -> None:
    out = tmp_path / "out"
    out.mkdir()
    entries = {
        "scan/1.dcm": b"x",
        "__MACOSX/scan/._1.dcm": b"y",
        "scan/.DS_Store": b"z",
        "scan/._1.dcm": b"z",
    }
    unpacked(make(tmp_path / "a", entries), out, 1000)  # type: ignore[operator]
    assert [path.name for path in out.iterdir()] == ["1.dcm"]


def test_one_file_of_dicom_is_a_series(tmp_path: Path) -> None:
    """A multi-frame file that is uploaded by itself."""
    array = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    file = UploadFile(io.BytesIO(dicom_bytes(dicom_frames(array, np.eye(4)))), filename="ct.dcm")
    image = received([file], tmp_path, False, 1 << 20)
    volume = load_volume(image_in(image))
    np.testing.assert_array_equal(volume.to_raw_array(volume.array), array)


@pytest.mark.parametrize("make", [a_zip, a_tar])
def test_archives_that_unpack_to_too_much_are_refused(tmp_path: Path, make: object) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="more than this server accepts"):
        unpacked(make(tmp_path / "a", {"zeros": bytes(10_000_000)}), out, 1_000_000)  # type: ignore[operator]
    with pytest.raises(UserError, match=f"may hold {MAX_FILES} files"):
        unpacked(a_zip(tmp_path / "b", {str(n): b"" for n in range(MAX_FILES + 1)}), out, 1000)


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04 broken", b"\x1f\x8b broken"])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    archive = tmp_path / "a"
    archive.write_bytes(data)
    with pytest.raises(UserError, match="archive"):
        unpacked(archive, tmp_path, 1000)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    archive = a_zip(tmp_path / "a", {"1.dcm": b"x" * 1000})
    data = bytearray(archive.read_bytes())
    data[40] ^= 0xFF
    archive.write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpacked(archive, out, 10_000)


def test_sessions_hold_no_more_than_their_quota_until_some_expire(tmp_path: Path) -> None:
    def image() -> str:
        path = tmp_path / "scan.nii.gz"
        path.write_bytes(bytes(400))
        return str(path)

    sessions = SafeSessions(str(tmp_path / "sessions"), 3600, most_bytes=1400)
    first, _ = sessions.add_session(image())
    second, _ = sessions.add_session(image())
    with pytest.raises(StorageFullError, match="sessions_gb"):
        sessions.add_session(image())
    assert sorted(path.name for path in Path(sessions.store_path).iterdir()) == sorted([first, second])
    meta = Path(sessions.store_path) / first / "meta.info"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "last_access_ts": time.time() - 4000}))
    third, _ = sessions.add_session(image())
    assert sessions.get_session(first) is None
    assert sessions.get_session(third) is not None


def test_a_header_and_the_file_that_it_names_are_one_image(sessions: SafeSessions, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    sent = {"a.mhd": b"header", "a.raw": b"voxels"}
    files = [UploadFile(io.BytesIO(data), filename=name) for name, data in sent.items()]
    path = received(files, tmp_path / "work", False, 1 << 20)
    assert image_in(path).name == "a.mhd"
    found, info = sessions.add_session(str(path))
    again = SafeSessions(sessions.store_path, 3600).get_session(found)
    assert again is not None and again.image == info.image
    assert Path(info.image).read_bytes() == b"header"
    assert Path(info.image).with_name("a.raw").read_bytes() == b"voxels"


def test_an_archive_with_a_nameless_entry_is_refused(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("0.dcm", b"voxels")
        archive.writestr("1.dcm", b"voxels")
    # The name's first byte ends it, which leaves nothing.
    damaged = io.BytesIO(packed.getvalue().replace(b"1.dcm", b"\0.dcm"))
    with pytest.raises(UserError, match="cannot be unpacked"):
        received([UploadFile(damaged, filename="a.zip")], tmp_path, True, 1 << 20)


def test_an_archive_of_one_image_is_that_image(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("inner/scan.NII.GZ", b"voxels")
    packed.seek(0)
    path = received([UploadFile(packed, filename="a.zip")], tmp_path, True, 1 << 20)
    assert path.name == "scan.NII.GZ"
