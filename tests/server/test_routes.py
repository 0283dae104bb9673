"""MONAI Label's endpoints behind the checks, on an app that only pretends to segment."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
from dualclickmed.cancellation import Stopped, check
from dualclickmed.errors import TooLargeError, UserError
from dualclickmed.imaging.volume import from_array
from dualclickmed.server import routes
from dualclickmed.server.limits import Limits
from dualclickmed.server.sessions import SafeSessions
from dualclickmed.server.studies import Studies
from dualclickmed.server.uploads import Files
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException


class App:
    """What the endpoints ask of the app."""

    def __init__(self, folder: Path) -> None:
        studies = folder / "studies"
        studies.mkdir()
        (studies / "ct.nii.gz").write_bytes(b"an image")
        self._datastore = Studies(str(studies), extensions=("*.nii.gz", "*.nii", "*.nrrd"))
        self._sessions = SafeSessions(str(folder / "sessions"))
        self._infers = {"dualclickmed": object()}
        self._trainers: dict[str, Any] = {"dualclickmed_local": object()}
        self._scoring_methods: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []
        self.work: Any = lambda request: None
        self.saving = 0

    def datastore(self) -> Studies:
        return self._datastore

    def sessions(self) -> SafeSessions:
        return self._sessions

    def info(self) -> dict[str, Any]:
        return {"name": "pretended", "trainers": list(self._trainers)}

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        self.work(request)
        path = Path(tempfile.mkstemp(prefix="dualclickmed-", suffix=".nrrd")[1])
        path.write_bytes(b"a mask")
        return {"file": str(path), "label": str(path), "params": {"ok": True}}

    def infer_wsi(self, request: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("whole slides must not get so far")

    def on_save_label(self, image: str, label: str) -> dict[str, Any]:
        return {"noted": image}

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["strategy"] != "first":
            raise MONAILabelException(MONAILabelError.APP_INIT_ERROR, "There is no such strategy")
        return {"id": "ct"}

    def model_file(self, model: str, validate: bool = True) -> None:
        return None

    def model_info(self, model: str) -> None:
        return None


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    made = App(tmp_path)
    modules = (*routes.MODULES, routes)
    for module in modules:
        if hasattr(module, "app_instance"):
            monkeypatch.setattr(module, "app_instance", lambda: made)
    monkeypatch.setattr("monailabel.utils.async_tasks.task.app_instance", lambda: made)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return made


def _refuse(image: str, path: Path, info: Any) -> None:
    if path.read_bytes().startswith(b"garbage"):
        raise UserError("This label cannot be read.")


def _notes(path: Path) -> list[str]:
    if path.is_file() and path.read_bytes().startswith(b"garbage"):
        raise UserError("This image cannot be read.")
    return ["A note about it."]


READ_ALL = Files(lambda image: from_array(np.zeros((2, 3, 4), np.uint8)), _notes, _refuse)
"""Every file is readable but those that start with the word."""


def client_of(limits: Limits, problem: str | None = None) -> TestClient:
    web = FastAPI()
    routes.install(web, limits, lambda: problem, READ_ALL)
    return TestClient(web, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def client(app: App, tmp_path: Path) -> Iterator[TestClient]:
    with client_of(Limits(upload_bytes=1 << 20)) as made:
        yield made
    # Whatever was answered: nothing is left of it.
    assert list((tmp_path / "temporary").iterdir()) == []


def params(value: Any) -> dict[str, Any]:
    return {"params": (None, value if isinstance(value, (str, bytes)) else json.dumps(value))}


def test_a_click_is_answered(client: TestClient, app: App) -> None:
    answer = client.post("/infer/dualclickmed?image=ct&output=image", files=params({"liver": [[1, 2, 3]]}))
    assert (answer.status_code, answer.content) == (200, b"a mask")
    assert app.asked[0]["liver"] == [[1, 2, 3]]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("text", ["{", "[]", "null", '"x"', "{" * 5000, '{"liver": "\\ud800"}', "\xff"])
def test_parameters_that_are_no_object_are_a_400(client: TestClient, app: App, text: str) -> None:
    answer = client.post("/infer/dualclickmed?image=ct", files=params(text.encode("latin-1")))
    assert answer.status_code == 400, answer.text
    assert "params" in answer.json()["detail"]
    assert app.asked == []


@pytest.mark.parametrize("image", ["../x", "/etc/passwd", "a\0", ".", "a" * 300])
def test_ids_that_lead_elsewhere_are_a_400_everywhere(client: TestClient, image: str) -> None:
    upload = ("x.nii.gz", b"data")
    answers = [
        client.post("/infer/dualclickmed", params={"image": image}, files=params({})),
        client.get("/datastore/image", params={"image": image}),
        client.head("/datastore/image", params={"image": image}),
        client.delete("/datastore/image", params={"id": image}),
        client.get("/datastore/image/info", params={"image": image}),
        client.put("/datastore/image/info", params={"image": image}, data={"info": "{}"}),
        client.put("/datastore/image", params={"image": image}, files={"file": upload}),
        client.put("/datastore/label", params={"image": image}, files={"label": upload}),
        client.get("/datastore/label", params={"label": image, "tag": "final"}),
        client.get("/datastore/label/info", params={"label": image, "tag": "final"}),
        client.delete("/datastore/label", params={"id": image, "tag": "final"}),
    ]
    assert [answer.status_code for answer in answers] == [400] * len(answers)


@pytest.mark.parametrize("tag", ["../../x", "a/b", "..", "é", "x" * 65])
def test_tags_that_lead_elsewhere_are_a_400(client: TestClient, tmp_path: Path, tag: str) -> None:
    before = sorted((tmp_path / "studies").rglob("*"))
    answer = client.put(
        "/datastore/label", params={"image": "ct", "tag": tag}, files={"label": ("x.nii.gz", b"data")}
    )
    assert answer.status_code == 400
    assert "tag" in answer.json()["detail"]
    assert sorted((tmp_path / "studies").rglob("*")) == before


def test_a_label_is_stored_whatever_its_file_was_called(client: TestClient, tmp_path: Path) -> None:
    for name in ("label.nii.gz", "../../../etc/x.v1 2.nii.gz", "é ü.nii.gz"):
        answer = client.put(
            "/datastore/label?image=ct", files={**params({"user": "x"}), "label": (name, name.encode())}
        )
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"noted": "ct", "image": "ct", "label": "ct"}
        assert (tmp_path / "studies/labels/final/ct.nii.gz").read_bytes() == name.encode()
    assert client.get("/datastore/label?label=ct&tag=final").content == name.encode()
    assert client.put("/datastore/label?image=ct", files={"label": ("x.exe", b"")}).status_code == 400
    assert client.put("/datastore/label?image=other", files={"label": ("x.nii", b"")}).status_code == 404


def test_submits_do_not_come_in_between_each_other(client: TestClient, app: App) -> None:
    inside, most = [0], [0]

    def noted(image: str, label: str) -> dict[str, Any]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return {}

    app.on_save_label = noted  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as several:
        files = {"label": ("x.nii.gz", b"data")}
        answers = list(several.map(lambda _: client.put("/datastore/label?image=ct", files=files), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert most == [1]


def test_an_image_is_added_under_its_own_name(client: TestClient, tmp_path: Path) -> None:
    answer = client.put("/datastore/image", files={"file": ("dir/my scan.nii.gz", b"voxels")})
    assert answer.json() == {"image": "my scan", "notes": ["A note about it."]}
    assert (tmp_path / "studies" / "my scan.nii.gz").read_bytes() == b"voxels"
    again = client.put("/datastore/image?image=my scan", files={"file": ("x.nii.gz", b"other voxels")})
    assert again.status_code == 400
    assert "with other voxels" in again.json()["detail"]
    assert client.put("/datastore/image", files={"file": ("../..", b"x")}).status_code == 400


def test_information_must_be_a_finite_object(client: TestClient, app: App) -> None:
    for text in ("{", "[]", '{"x": NaN}', '{"x": 1e999}'):
        assert client.put("/datastore/image/info?image=ct", data={"info": text}).status_code == 400
    assert client.put("/datastore/image/info?image=ct", data={"info": '{"strategy": 1}'}).status_code == 400
    assert client.put("/datastore/image/info?image=no", data={"info": "{}"}).status_code == 404
    for text in ("", " \t", '{"x": 1}'):
        assert client.put("/datastore/image/info?image=ct", files={"info": (None, text)}).status_code == 200
    assert client.get("/datastore/image/info?image=ct").json()["x"] == 1
    assert client.post("/activelearning/first", json={"client_id": "x"}).json()["id"] == "ct"


def test_checksums_are_compared(client: TestClient) -> None:
    digest = hashlib.sha256(b"an image").hexdigest()
    for good in (digest, f"SHA256:{digest}", f"MD5:{hashlib.md5(b'an image').hexdigest()}"):
        assert client.head(f"/datastore/image?image=ct&check_sum={good}").status_code == 200
    assert client.head(f"/datastore/image?image=ct&check_sum={'0' * 64}").status_code == 404
    assert client.head("/datastore/image?image=ct&check_sum=CRC:1").status_code == 400
    assert client.head("/datastore/image?image=no").status_code == 404


def test_sessions_keep_uploads_under_safe_names(client: TestClient, app: App, tmp_path: Path) -> None:
    files = [("files", (name, name.encode())) for name in ("../../1.dcm", "1.dcm", "meta.info", "/etc/x")]
    created = client.put("/session/", files=files).json()
    folder = Path(created["session_info"]["image"])
    assert folder.is_relative_to(tmp_path / "sessions")
    assert sorted(path.read_bytes() for path in folder.iterdir()) == sorted(
        name.encode() for _, (name, _) in files
    )
    session = created["session_id"]
    assert client.get(f"/session/{session}").status_code == 200
    client.post(f"/infer/dualclickmed?session_id={session}", files=params({}))
    assert app.asked[0]["image"] == str(folder)
    assert client.delete(f"/session/{session}").status_code == 200
    assert client.get(f"/session/{session}").status_code == 404
    for other in ("..", "x", "%2e%2e", "01234567-89ab-cdef-0123-456789abcdef"):
        assert client.get(f"/session/{other}").status_code in (400, 404)
        assert client.delete(f"/session/{other}").status_code in (400, 404, 405)


def test_a_session_of_an_archive(client: TestClient) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../a.dcm", b"one")
        archive.writestr("b.dcm", b"two")
    created = client.put("/session/?uncompress=true", files={"files": ("x.zip", stream.getvalue())}).json()
    assert sorted(path.name for path in Path(created["session_info"]["image"]).iterdir()) == [
        "a.dcm",
        "b.dcm",
    ]
    assert client.put("/session/?uncompress=true", files={"files": ("x.zip", b"none")}).status_code == 400


def test_what_is_not_offered_is_refused_with_a_reason(client: TestClient) -> None:
    slides = client.post("/infer/wsi_v2/dualclickmed?image=ct")
    assert (slides.status_code, "2D" in slides.json()["detail"]) == (400, True)
    assert client.put("/model/dualclickmed", files={"file": ("x.pt", b"")}).status_code == 403
    assert client.delete("/model/dualclickmed").status_code == 403
    assert client.get("/model/dualclickmed").status_code == 404
    assert client.post("/reload").status_code == 404
    assert client.get("/logs/").status_code == 403
    assert client.get("/datastore/dataset").status_code == 404
    assert client.get("/proxy/dicom/studies").status_code == 404
    assert client.post("/activelearning/other").status_code == 400
    assert client.get("/ohif/..%2f..").status_code in (200, 400, 404)
    assert client.post("/infer/dualclickmed", files=params({})).status_code == 400
    seg = client.post("/infer/dualclickmed?image=ct&output=dicom_seg", files=params({}))
    assert (seg.status_code, "DICOMweb" in seg.json()["detail"]) == (400, True)


def test_logs_are_shown_if_the_server_was_told_to(app: App) -> None:
    with client_of(Limits(logs=True)) as client:
        assert client.get("/logs/?lines=0").status_code == 400
        assert client.get("/logs/?lines=99999999999999999999").status_code == 400
        # There is none in this test.
        assert client.get("/logs/").status_code == 404


def test_the_data_set_is_sent_and_its_file_removed(client: TestClient, app: App, tmp_path: Path) -> None:
    label = tmp_path / "x.nii.gz"
    label.write_bytes(b"a label")
    app.datastore().save_label("ct", str(label), "final", {})
    answer = client.get("/datastore/dataset")
    names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
    assert sorted(names) == ["image/ct.nii.gz", "label/ct.nii.gz", "metadata.json"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/train/unknown", {}, 404),
        ("/train/dualclickmed_local", {"model": ["x"]}, 400),
        ("/train/dualclickmed_local", {"model": "unknown"}, 400),
        ("/train/dualclickmed_local", {"x": "y" * 100_000}, 400),
        ("/train/", {"dualclickmed_local": 3}, 400),
        ("/scoring/unknown", {}, 404),
        ("/batch/infer/unknown", {}, 404),
    ],
)
def test_no_process_is_started_for_what_cannot_run(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, status: int
) -> None:
    monkeypatch.setattr(
        "monailabel.utils.async_tasks.task.run_background_task", lambda *_: pytest.fail("it was started")
    )
    assert client.post(path, json=body).status_code == status


def test_what_json_cannot_hold_is_not_repeated(client: TestClient) -> None:
    answer = client.post("/train/x", content=b"[NaN]", headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "body"


def test_uploads_are_limited(client: TestClient) -> None:
    big = {"label": ("x.nii.gz", b"x" * (2 << 20))}
    answer = client.put("/datastore/label?image=ct", files=big)
    assert answer.status_code == 413
    assert "upload_gb" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("wrong click"), 400),
        (Stopped("took too long"), 503),
        (MemoryError(), 503),
        (requests.ConnectionError("archive"), 502),
        (RuntimeError("a bug"), 500),
    ],
)
def test_errors_tell_who_can_do_something(
    client: TestClient, app: App, error: Exception, status: int
) -> None:
    def work(request: dict[str, Any]) -> None:
        raise error

    app.work = work
    files = {**params({}), "file": ("x.nii.gz", b"an upload")}
    answer = client.post("/infer/dualclickmed", files=files)
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) is (status == 503)
    assert "an upload" not in answer.text


def test_light_requests_are_answered_while_one_computes(client: TestClient, app: App) -> None:
    begun, go = threading.Event(), threading.Event()

    def work(request: dict[str, Any]) -> None:
        begun.set()
        assert go.wait(20)

    app.work = work
    with ThreadPoolExecutor(1) as other:
        later = other.submit(client.post, "/infer/dualclickmed?image=ct", files=params({}))
        assert begun.wait(20)
        assert client.get("/info/").json()["name"] == "pretended"
        assert client.get("/health").json() == {
            "ready": True,
            "waiting": 0,
            "stuck": 0,
            "reading": [],
            "reason": None,
        }
        assert client.put("/datastore/label?image=ct", files={"label": ("x.nii", b"x")}).status_code == 200
        go.set()
        assert later.result().status_code == 200


def test_a_computation_that_takes_too_long_is_ended(app: App) -> None:
    def work(request: dict[str, Any]) -> None:
        for _ in range(2000):
            time.sleep(0.01)
            check()

    app.work = work
    with client_of(Limits(timeout=1.0)) as client:
        start = time.monotonic()
        answer = client.post("/infer/dualclickmed?image=ct", files=params({}))
        assert answer.status_code == 503
        assert "not ready within 1 seconds" in answer.json()["detail"]
        assert time.monotonic() - start < 10


def test_health_says_what_is_missing(app: App) -> None:
    with client_of(Limits(), "The weights are damaged.") as client:
        answer = client.get("/health")
        assert answer.status_code == 503
        assert answer.json()["reason"] == "The weights are damaged."


def test_other_sites_pages_are_refused(client: TestClient) -> None:
    answer = client.get("/info/", headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403
    assert client.get("/info/", headers={"Host": "evil.example"}).status_code == 403


def test_garbage_is_refused_and_replaces_nothing(client: TestClient, tmp_path: Path) -> None:
    garbage, label = ("x.nii.gz", b"garbage"), ("x.nii.gz", b"a label")
    where = {"image": "ct", "tag": "final"}
    assert client.put("/datastore/label", params=where, files={"label": label}).status_code == 200
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "studies").rglob("*.nii.gz"))
    answers = [
        client.put("/datastore/image?image=new", files={"file": garbage}),
        client.put("/datastore/label", params={**where, "tag": "draft"}, files={"label": garbage}),
        client.put("/session/", files={"files": garbage}),
    ]
    assert [answer.status_code for answer in answers] == [400] * 3
    assert all("cannot be read" in answer.json()["detail"] for answer in answers)
    after = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "studies").rglob("*.nii.gz"))
    assert after == before
    assert not (tmp_path / "sessions").exists() or list((tmp_path / "sessions").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 507, "full"),
        (OSError(errno.EDQUOT, "Quota"), 507, "full"),
        (OSError(errno.EROFS, "Read-only file system"), 409, "read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), 409, "read-only"),
        (FileNotFoundError(errno.ENOENT, "No such file"), 409, "removed"),
        (OSError(errno.EIO, "Input/output error"), 503, "Input/output"),
        (np.linalg.LinAlgError("Singular matrix"), 400, "axes"),
        (TooLargeError("An image may take 4 GiB."), 413, "4 GiB"),
        (MemoryError(), 503, "memory"),
        (KeyError("version"), 500, "its log"),
    ],
)
def test_errors_of_the_machine_are_sentences(
    client: TestClient, app: App, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, word: str
) -> None:
    def fail(*args: Any, **named: Any) -> Any:
        raise error

    app.work = fail
    monkeypatch.setattr(app, "info", fail)
    monkeypatch.setattr(app.datastore(), "save_label", fail)
    upload = ("x.nii.gz", b"a label")
    answers = [
        client.get("/info/"),
        client.put("/datastore/label?image=ct&tag=final", files={"label": upload}),
    ]
    monkeypatch.setattr(app, "info", dict)
    answers.append(client.post("/infer/dualclickmed?image=ct", files={**params({}), "label": upload}))
    assert [answer.status_code for answer in answers] == [status] * 3
    assert all(word in answer.json()["detail"] for answer in answers)


def test_a_full_disk_leaves_nothing_of_an_upload(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    upload = ("x.nii.gz", b"voxels")
    answers = [
        client.post("/infer/dualclickmed", files={**params({}), "file": upload}),
        client.post("/infer/dualclickmed?image=ct", files={**params({}), "label": upload}),
        client.put("/datastore/image?image=new", files={"file": upload}),
        client.put("/datastore/label?image=ct&tag=final", files={"label": upload}),
        client.put("/session/", files={"files": upload}),
    ]
    assert [answer.status_code for answer in answers] == [507] * 5


def test_an_uploaded_segmentation_and_the_name_of_a_label_are_two_things(
    client: TestClient, app: App
) -> None:
    sent = {**params({"label": "liver", "label_file": "/etc/passwd"}), "label": ("x.nii.gz", b"a label")}
    assert client.post("/infer/dualclickmed?image=ct&output=json", files=sent).status_code == 200
    (asked,) = app.asked
    assert asked["label"] == "liver"
    assert Path(asked["label_file"]).parent == Path(tempfile.gettempdir())


def test_a_binary_label_has_one_byte_for_each_voxel(client: TestClient, app: App, tmp_path: Path) -> None:
    where = {"image": "ct", "tag": "final"}
    short = client.put("/datastore/label", params=where, files={"label": ("label.bin", b"\1" * 23)})
    assert short.status_code == 400 and "24 voxels" in short.json()["detail"]
    whole = bytes(range(24))
    assert (
        client.put("/datastore/label", params=where, files={"label": ("label.bin", whole)}).status_code == 200
    )
    stored = nib.load(tmp_path / "studies" / "labels" / "final" / "ct.nii.gz")
    assert np.asarray(stored.dataobj).tobytes("F") == whole


def test_workers_that_do_not_end_are_told(app: App) -> None:
    web = FastAPI()
    found = routes.install(web, Limits(timeout=1), lambda: None, READ_ALL)
    with TestClient(web, base_url="http://127.0.0.1") as client:
        assert client.get("/health").status_code == 200
        long_ago = time.monotonic() - 1000
        found.turns.line._since = {1: long_ago}
        one = client.get("/health")
        assert (one.status_code, one.json()["stuck"]) == (200, 1)
        found.turns.line._since = {1: long_ago, 2: long_ago}
        both = client.get("/health")
        assert (both.status_code, both.json()["stuck"], both.json()["ready"]) == (503, 2, False)
        assert "stuck" in both.json()["reason"]
