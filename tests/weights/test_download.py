"""Downloads from a server on this machine that is cut, changes its file, lies, or is not there."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from dualclickmed.errors import WeightsError
from dualclickmed.weights import download as downloads
from dualclickmed.weights import files as weights
from dualclickmed.weights.download import Entry, download, fetch, manifest

from tests.support import published


class Server(ThreadingHTTPServer):
    """Serves one file with byte ranges.

    cut: hang up after so many bytes of every answer. tag: version of the file. ranges: whether ranges are
    honoured. requests: the Range header of each. redirect: where every request is sent.
    """

    daemon_threads = True

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = data
        self.cut: int | None = None
        self.tag: str | None = '"one"'
        self.ranges = True
        self.requests: list[str | None] = []
        self.redirect: str | None = None
        self.status: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/folder/model.pth"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        if server.redirect is not None or server.status is not None:
            self.send_response(server.status or 302)
            if server.redirect is not None:
                self.send_header("Location", server.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if server.ranges and wanted and self.headers.get("If-Range") == server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        else:
            self.send_response(200)
        body = server.data[start:]
        self.send_header("Content-Length", str(len(body)))
        if server.tag is not None:
            self.send_header("ETag", server.tag)
        self.end_headers()
        self.wfile.write(body[: server.cut])
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("source") / "model.pth"
    torch.save({"model_state_dict": published.global_variant()}, path)
    return path.read_bytes()


@pytest.fixture
def server(checkpoint: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    published.use_small_sizes(monkeypatch)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server(checkpoint)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def entry(server: Server, checkpoint: bytes) -> Entry:
    digest = hashlib.sha256(checkpoint).hexdigest()
    return Entry(
        name="tried",
        kind="global",
        title="a test",
        url=server.url,
        size=len(checkpoint),
        sha256=digest,
        md5=None,
        licence="free",
        licence_url="https://example.org/licence",
        source="https://example.org",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_is_imported_and_leaves_nothing_else(entry: Entry, folder: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path, _, digest = download(entry, folder, progress=lambda done, total: seen.append((done, total)))
    assert names(folder) == ["tried.json", "tried.safetensors"]
    card = weights.verify(path)
    assert digest == entry.sha256
    assert card["source"]["url"] == entry.url and card["source"]["file"] == "model.pth"
    assert (card["source"]["sha256"], card["source"]["bytes"]) == (entry.sha256, entry.size)
    assert card["source"]["format"] == "SAM-Med3D, 64-voxel variant"
    assert card["licence"] == "free (https://example.org/licence)"
    assert seen[0] == (0, entry.size) and seen[-1] == (entry.size, entry.size)


@pytest.mark.parametrize("cut", [0, 1, 7, 1000, 65536, -1])
def test_a_cut_download_goes_on_from_where_it_stopped(
    cut: int, server: Server, entry: Entry, folder: Path
) -> None:
    assert entry.size is not None
    cut = cut if cut >= 0 else entry.size - 1
    server.cut = cut
    with pytest.raises(WeightsError, match=r"run the command again to go on|Run the command again to go on"):
        download(entry, folder)
    assert [name for name in names(folder) if not name.startswith(".")] == []
    assert (folder / ".tried.part").stat().st_size == cut
    server.cut = None
    path, _, _ = download(entry, folder)
    assert server.requests == [None, f"bytes={cut}-" if cut else None]
    assert names(folder) == ["tried.json", "tried.safetensors"]
    weights.verify(path)


def test_many_cuts_in_a_row(server: Server, entry: Entry, folder: Path) -> None:
    assert entry.size is not None
    server.cut = entry.size // 5 + 1
    for _ in range(4):
        with pytest.raises(WeightsError, match="go on from"):
            download(entry, folder)
    download(entry, folder)
    assert len(server.requests) == 5


def test_a_file_that_changed_in_between_comes_anew(
    server: Server, entry: Entry, folder: Path, checkpoint: bytes
) -> None:
    server.data, server.cut = b"\0" * len(checkpoint), 5000
    with pytest.raises(WeightsError, match="go on from"):
        download(entry, folder)
    server.data, server.cut, server.tag = checkpoint, None, '"two"'
    download(entry, folder)
    assert server.requests == [None, "bytes=5000-"]


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_version_everything_comes_anew(
    tag: str | None, server: Server, entry: Entry, folder: Path
) -> None:
    server.tag, server.cut = tag, 5000
    with pytest.raises(WeightsError, match="go on from"):
        download(entry, folder)
    server.cut = None
    download(entry, folder)
    assert server.requests == [None, None]


def test_a_server_without_ranges_sends_everything_anew(server: Server, entry: Entry, folder: Path) -> None:
    server.ranges, server.cut = False, 5000
    with pytest.raises(WeightsError, match="go on from"):
        download(entry, folder)
    server.cut = None
    download(entry, folder)
    assert server.requests == [None, "bytes=5000-"]


def test_a_whole_file_that_waits_for_its_import_is_not_fetched_again(
    server: Server, entry: Entry, folder: Path
) -> None:
    folder.mkdir()
    fetch(entry, folder / ".tried.part")
    download(entry, folder)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("field", "name"), [("sha256", "SHA256"), ("md5", "MD5")])
def test_another_file_than_expected_is_deleted(field: str, name: str, entry: Entry, folder: Path) -> None:
    wrong = dataclasses.replace(entry, **{"sha256": None, field: "0" * 32})
    with pytest.raises(
        WeightsError, match=rf"is not the file that is expected: its {name} is [0-9a-f]+, .* 0000"
    ):
        download(wrong, folder)
    assert names(folder) == []


def test_another_size_is_noticed_before_anything_is_written(entry: Entry, folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"bytes, but 5 are expected"):
        download(dataclasses.replace(entry, size=5), folder)
    assert names(folder) == []


def test_a_file_that_cannot_be_imported_is_deleted(server: Server, entry: Entry, folder: Path) -> None:
    server.data = b"<html>log in first</html>"
    unknown = dataclasses.replace(entry, size=None, sha256=None)
    with pytest.raises(WeightsError, match="is not a checkpoint"):
        download(unknown, folder, accept_unverified=True)
    assert names(folder) == []


def test_without_a_hash_it_must_be_wanted(server: Server, entry: Entry, folder: Path) -> None:
    unknown = dataclasses.replace(entry, size=None, sha256=None)
    with pytest.raises(WeightsError, match="pass --accept-unverified"):
        download(unknown, folder)
    assert server.requests == [] and not folder.exists()
    path, _, digest = download(unknown, folder, accept_unverified=True)
    assert digest == entry.sha256
    assert weights.read_card(path)["source"]["verified"] is False


def test_a_known_md5_is_enough(entry: Entry, folder: Path, checkpoint: bytes) -> None:
    known = dataclasses.replace(entry, sha256=None, md5=hashlib.md5(checkpoint).hexdigest())
    path, _, _ = download(known, folder)
    assert weights.read_card(path)["source"]["verified"] is True


def test_a_taken_name_is_noticed_before_the_download(server: Server, entry: Entry, folder: Path) -> None:
    download(entry, folder)
    with pytest.raises(WeightsError, match="There are weights 'tried' already"):
        download(entry, folder)
    assert len(server.requests) == 1
    download(entry, folder, replace=True)


def test_no_network_is_one_sentence(entry: Entry, server: Server, folder: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(
        WeightsError, match=r"can't be reached.*'weights import FILE --as global --name tried'"
    ):
        download(entry, folder)
    assert names(folder) == []


@pytest.mark.parametrize("status", [403, 404, 503])
def test_refusals_of_the_server_are_named(status: int, server: Server, entry: Entry, folder: Path) -> None:
    server.status = status
    with pytest.raises(WeightsError, match=rf"The server answered {status} .* or fetch the file elsewhere"):
        download(entry, folder)
    assert names(folder) == []


@pytest.mark.parametrize("url", ["http://example.org/a.pth", "ftp://127.0.0.1/a", "file:///etc/passwd"])
def test_only_https_is_followed(url: str, server: Server, entry: Entry, folder: Path) -> None:
    message = re.escape(f"only fetched over https, but the address is '{url}'")
    with pytest.raises(WeightsError, match=message):
        download(dataclasses.replace(entry, url=url), folder)
    server.redirect = url
    if not url.startswith("file"):  # urllib itself refuses to follow those
        with pytest.raises(WeightsError, match=message):
            download(entry, folder)
    assert names(folder) == []


def test_the_manifest_is_complete() -> None:
    entries = manifest()
    assert set(entries) == {"nv-segment-ct", "sam-med3d-turbo", "vista3d"}
    for entry in entries.values():
        assert entry.kind in weights.KINDS
        assert all(text.startswith("https://") for text in (entry.url, entry.licence_url, entry.source))
        assert weights.checked_name(entry.name) == entry.name
        for digest, length in ((entry.sha256, 64), (entry.md5, 32)):
            assert digest is None or re.fullmatch(rf"[0-9a-f]{{{length}}}", digest)
    with pytest.raises(WeightsError, match=r"no download 'sam'; there are: [a-z0-9, -]*sam-med3d-turbo"):
        downloads.entry_named("sam")
