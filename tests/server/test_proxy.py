"""OHIF's way to the archive, against an archive that notes what it was asked."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from dualclickmed.server import proxy
from dualclickmed.server.limits import Limits
from dualclickmed.server.routes import install
from dualclickmed.server.uploads import Files
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings

BODY = b"instances " * 100_000
NO_FILES = Files(lambda image: pytest.fail(image), lambda path: [], lambda image, path, info: None)


@dataclass
class Archive:
    url: str = ""
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    delay: float = 0.0


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    noted = Archive()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            noted.asked.append((self.command, self.path, headers, body))
            time.sleep(noted.delay)
            data = gzip.compress(BODY)
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Set-Cookie", "of=the archive")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        noted.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
        monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", noted.url)
        yield noted
        server.shutdown()


@pytest.fixture
def client() -> Iterator[TestClient]:
    web = FastAPI()
    install(web, Limits(), lambda: None, NO_FILES)
    with TestClient(web, base_url="http://127.0.0.1", raise_server_exceptions=False) as made:
        yield made


def test_a_query_reaches_the_archive_and_its_answer_comes_back(client: TestClient, archive: Archive) -> None:
    sent = {"Accept": "application/dicom+json", "Cookie": "a=b", "Authorization": "Bearer x", "X-Other": "1"}
    answer = client.get("/proxy/dicom/qido/studies?limit=5&PatientName=%2A", headers=sent)
    assert (answer.status_code, answer.content) == (200, BODY)
    assert answer.headers["content-type"] == "application/dicom+json"
    assert "set-cookie" not in answer.headers
    ((method, path, headers, _),) = archive.asked
    assert (method, path) == ("GET", "/dicom-web/studies?limit=5&PatientName=%2A")
    assert headers["accept"] == "application/dicom+json"
    # Whoever asks is nobody that the archive knows.
    assert {"cookie", "authorization", "x-other"}.isdisjoint(headers)


def test_what_is_stored_reaches_the_archive_whole(client: TestClient, archive: Archive) -> None:
    kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}
    answer = client.post("/proxy/dicom/stow/studies", content=BODY, headers=kind)
    assert answer.status_code == 200
    ((method, path, headers, body),) = archive.asked
    assert (method, path, body, headers["content-type"]) == (
        "POST",
        "/dicom-web/studies",
        BODY,
        kind["Content-Type"],
    )


def test_what_the_archive_does_not_have_stays_missing(client: TestClient, archive: Archive) -> None:
    assert client.get("/proxy/dicom/wado/studies/missing").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "%2e%2e/tools/execute-script",
        "studies/%2e%2e/%2e%2e/system",
        "a%5c..%5cb",
        "wado/%2e/x",
        "qido/.%2e/x",
    ],
)
def test_no_path_leads_out_of_dicomweb(client: TestClient, archive: Archive, path: str) -> None:
    answer = client.post(f"/proxy/dicom/{path}")
    assert answer.status_code == 400
    assert "leads out of DICOMweb" in answer.json()["detail"]
    assert archive.asked == []


def test_signs_in_a_path_stay_part_of_it(client: TestClient, archive: Archive) -> None:
    client.get("/proxy/dicom/studies/1%3Fx=y%23z")
    assert archive.asked[0][1] == "/dicom-web/studies/1%3Fx=y%23z"
    assert proxy._path_on_archive("", "studies/a%2e b@c") == "studies/a%252e%20b@c"


def test_an_archive_that_does_not_answer(
    client: TestClient, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", 0.2)
    archive.delay = 1.0
    assert client.get("/proxy/dicom/studies").status_code == 504
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:9/dicom-web")
    assert client.get("/proxy/dicom/studies").status_code == 502


def test_the_archives_password_goes_to_the_archive(
    client: TestClient, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", "orthanc")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "secret")
    client.get("/proxy/dicom/studies")
    assert archive.asked[0][2]["authorization"].startswith("Basic ")


def test_metadata_is_asked_for_as_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_WADO_PREFIX", "wado-rs")
    monkeypatch.setattr(settings, "MONAI_LABEL_QIDO_PREFIX", "qido-rs")
    assert proxy._path_on_archive("qido", "studies/1/metadata") == "wado-rs/studies/1/metadata"
    assert proxy._path_on_archive("qido", "studies") == "qido-rs/studies"
