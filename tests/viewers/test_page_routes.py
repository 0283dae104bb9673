"""The page's routes on an app that only pretends to segment, behind the server's guards."""

from __future__ import annotations

import dataclasses
import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.configs.options import ServerOptions
from dualclickmed.errors import PromptError
from dualclickmed.experts import Result
from dualclickmed.imaging.volume import Volume, load_volume
from dualclickmed.infers.segmenter import Answer, SegmentRequest
from dualclickmed.learning.publishing import publish
from dualclickmed.server.guard import Guard
from dualclickmed.server.limits import Limits
from dualclickmed.server.review import ReadOnly
from dualclickmed.server.routes import answer_to
from dualclickmed.server.studies import Studies
from dualclickmed.trainers.learning import Learning
from dualclickmed.viewers import page_frames, page_routes
from dualclickmed.viewers.page_routes import HEADERS, Page
from dualclickmed.weights.files import default_path, load_expert, save_expert
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.frames import unframed
from tests.support.live import SMALL_SHAPE, an_affine, an_image, make_weights, save

IMAGE = "oblique"
LABELS = ["liver", "my own"]
CORNER, OPPOSITE = (3, 4, 5), (9, 8, 12)


class Segments:
    """Answers with the box that was asked for, in the value of its label."""

    def __init__(self) -> None:
        self.options = ServerOptions()
        self.experts = self
        self.asked: list[Any] = []
        self.volumes: dict[Path, Volume] = {}

    def waiting_for(self) -> str | None:
        return None

    def volume(self, image: Path, modality: str | None = None) -> Volume:
        return self.volumes.setdefault(image, load_volume(image, modality))

    def segment(self, request: SegmentRequest) -> Answer:
        volume, no_expert = request.image, Any
        assert isinstance(volume, Volume)
        prompts = request.find(volume, no_expert)
        before = request.layers.read(volume)
        self.asked.append((prompts, request.layers, before))
        labels = np.zeros(volume.shape, np.uint8)
        values = {}
        for value, (name, given) in enumerate(prompts.items(), start=1):
            if given.box is None:
                raise PromptError("This one wants a box.")
            labels[given.box.centres(volume.shape)] = value
            values[name] = value
        result = Result(labels, values, dict.fromkeys(values, "global"), [], {})
        return Answer(volume, result, {"refine": 0.01})


class App:
    def __init__(self, folder: Path) -> None:
        studies = folder / "studies"
        studies.mkdir()
        save(studies, IMAGE, an_image(SMALL_SHAPE), an_affine((2, 0, 1), (-1, 1, -1)))
        (folder / "secret.nii.gz").write_bytes(b"nobody's business")
        self._datastore = Studies(str(studies), extensions=("*.nii.gz",))
        self.options = ServerOptions()
        self.learning = Learning(self._datastore, studies, self.options)
        self.segmenter = Segments()

    def datastore(self) -> Studies:
        return self._datastore

    def info(self) -> dict[str, Any]:
        return {"version": "1", "strategies": {"first": {"description": "in order"}}, "trainers": {}}

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        return self.learning.on_save_label(image_id)


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


@pytest.fixture
def client(app: App) -> Iterator[TestClient]:
    async def at_once(request: object, work: Any) -> Any:
        return work()

    web = FastAPI()
    web.include_router(Page(app, at_once, answer_to, threading.Lock()).router())
    guarded = Guard(web, dataclasses.replace(Limits(), upload_bytes=1 << 20))
    with TestClient(guarded, base_url="http://127.0.0.1") as found:
        yield found


def packed(array: np.ndarray) -> bytes:
    return gzip.compress(array.astype(np.uint8).tobytes(order="F"))


def asked(client: TestClient, body: bytes | None = None, /, **changes: Any) -> Any:
    box = [edge for pair in zip(CORNER, OPPOSITE, strict=True) for edge in pair]
    params = {"labels": LABELS, "prompts": {"my own": {"box": box}}} | changes
    files: dict[str, Any] = {} if body is None else {"held": ("held.gz", body)}
    files["params"] = (None, json.dumps(params))
    return client.post("/page/segment", params={"image": IMAGE}, files=files)


def submitted(client: TestClient, voxels: bytes, /, **params: Any) -> Any:
    files = {"params": (None, json.dumps(params)), "voxels": ("label.gz", voxels)}
    return client.put("/page/label", params={"image": IMAGE}, files=files)


def test_the_server_s_address_leads_to_the_page(client: TestClient) -> None:
    page = client.get("/")
    assert page.url.path == "/page/" and "<title>DualClickMed" in page.text
    for name, value in HEADERS.items():
        assert page.headers[name] == value


def test_every_file_that_the_page_names_is_served(client: TestClient) -> None:
    for name in ("style.css", "main.js", "icon.svg"):
        assert name in client.get("/page/").text
        assert client.get(f"/page/{name}").status_code == 200
    assert client.get("/page/main.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path",
    ["../page_routes.py", "..%2Fpage_routes.py", "%2Fetc%2Fpasswd", "nothing.js", ".niivue.lock"],
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(f"/page/{path}").status_code in (404, 405)


def test_the_image_comes_as_it_lies_in_the_patient(client: TestClient, app: App, tmp_path: Path) -> None:
    about = client.get("/page/image", params={"image": IMAGE}).json()
    (tmp_path / "got.nii").write_bytes(client.get("/page/volume", params={"image": IMAGE}).content)
    found = nib.load(tmp_path / "got.nii")
    assert list(found.shape) == about["shape"]
    np.testing.assert_allclose(found.affine, about["affine"], atol=1e-4)


def test_an_answer_is_the_changed_box_with_the_page_s_own_values(client: TestClient, app: App) -> None:
    response = asked(client)
    assert response.status_code == 200, response.text
    header, parts = unframed(response.content)
    part = header["parts"][0]
    assert part["box"] == [3, 9, 4, 8, 5, 12]
    assert (parts["labels"] == 2).all()
    assert header["experts"] == {"my own": "global"}


def test_the_voxels_that_stay_reach_the_segmenter_under_their_names(client: TestClient, app: App) -> None:
    held = np.zeros((2, 3, 4), np.uint8)
    held[1, 2, 3] = 1
    assert asked(client, packed(held), held=[0, 2, 0, 3, 0, 4]).status_code == 200
    _, layers, before = app.segmenter.asked[-1]
    assert layers.existing == "correct"
    index = page_frames.to_canonical((1, 2, 3), app.segmenter.volume(path_of(app)).shape)
    assert np.argwhere(before.mask("liver")).tolist() == [list(index)]


def path_of(app: App) -> Path:
    return Path(app.datastore().get_image_uri(IMAGE))


def test_a_mistake_is_told_by_its_sentence(client: TestClient) -> None:
    response = asked(client, prompts={"liver": {"clicks": [[0, 0, 0, 1]]}})
    assert (response.status_code, response.json()["detail"]) == (400, "This one wants a box.")


def test_a_submitted_label_lies_on_the_image_s_grid_and_is_understood(client: TestClient, app: App) -> None:
    voxels = np.zeros((6, 4, 7), np.uint8)
    voxels[:3] = 2
    voxels[5, 3, 6] = 3
    response = submitted(
        client,
        packed(voxels),
        labels=["liver", "my own", "spleen"],
        box=[3, 9, 4, 8, 5, 12],
        clicks=4,
        client="Ada",
    )
    assert response.status_code == 200, response.text
    told = response.json()
    assert [(label["name"], label["voxels"]) for label in told["labels"]] == [("my own", 84), ("spleen", 1)]
    assert told["learning"]["by"] == "Ada"
    final = nib.load(app.datastore().get_label_uri(IMAGE, "final"))
    image = nib.load(path_of(app))
    np.testing.assert_allclose(final.affine, image.affine)
    about = client.get("/page/image", params={"image": IMAGE}).json()
    world = np.asarray(about["affine"]) @ [3 + 5, 4 + 3, 5 + 6, 1]
    index = np.rint(np.linalg.solve(image.affine, world))[:3].astype(int)
    # Values follow each other without a gap: the empty label is left out.
    assert np.asarray(final.dataobj)[tuple(index)] == 2
    assert np.bincount(np.asarray(final.dataobj).astype(int).ravel()).tolist()[1:] == [84, 1]


def test_a_submitted_label_comes_back_to_the_page(client: TestClient) -> None:
    voxels = np.zeros((6, 4, 7), np.uint8)
    voxels[2, 1, 3] = 1
    submitted(client, packed(voxels), labels=["my own"], box=[3, 9, 4, 8, 5, 12])
    header, parts = unframed(client.get("/page/label", params={"image": IMAGE}).content)
    assert header["labels"] == ["my own"]
    assert header["parts"][0]["box"] == [5, 6, 5, 6, 8, 9] and parts["labels"].tolist() == [[[1]]]
    images = client.get("/page/images").json()
    assert [(image["id"], image["done"], image["by"]) for image in images] == [(IMAGE, True, "page")]
    version = images[0]["versions"][0]["version"]
    again = client.get("/page/label", params={"image": IMAGE, "version": version})
    assert unframed(again.content)[0]["labels"] == ["my own"]


@pytest.mark.parametrize(
    ("voxels", "params"),
    [
        (packed(np.zeros((2, 2, 2))), {"labels": ["liver"], "box": [0, 2, 0, 2, 0, 2]}),
        (packed(np.full((2, 2, 2), 2)), {"labels": ["liver"], "box": [0, 2, 0, 2, 0, 2]}),
        (packed(np.ones((2, 2, 3))), {"labels": ["liver"], "box": [0, 2, 0, 2, 0, 2]}),
        (packed(np.ones((2, 2, 2))), {"labels": ["liver"]}),
        (packed(np.ones((2, 2, 2))), {"box": [0, 2, 0, 2, 0, 2]}),
        (b"", {"labels": ["liver"], "box": [0, 2, 0, 2, 0, 2]}),
    ],
    ids=["empty", "nameless", "more", "no box", "no names", "no voxels"],
)
def test_a_label_that_cannot_be_one_is_refused_and_leaves_nothing(
    client: TestClient, app: App, voxels: bytes, params: dict[str, Any]
) -> None:
    response = submitted(client, voxels, **params)
    assert response.status_code == 400 and response.json()["detail"]
    assert app.datastore().get_labels_by_image_id(IMAGE) == {}
    assert app.learning.record.submissions() == []


def test_only_images_of_the_studies_can_be_named(client: TestClient, tmp_path: Path) -> None:
    for image in ("../secret", "..", str(tmp_path / "secret.nii.gz"), ".hidden", "nobody", ""):
        for path in ("/page/image", "/page/volume", "/page/thumbnail", "/page/label"):
            response = client.get(path, params={"image": image})
            assert response.status_code in (400, 404), (path, image)
        response = client.post("/page/segment", params={"image": image}, files={"params": (None, "{}")})
        assert response.status_code in (400, 404), image


def test_a_version_is_one_of_the_image_s_own(client: TestClient) -> None:
    for version in ("../../secret", "0123456789abcdef"):
        response = client.get("/page/label", params={"image": IMAGE, "version": version})
        assert response.status_code == 404


def test_pages_of_other_sites_are_turned_away(client: TestClient) -> None:
    origin = {"Origin": "http://evil.example"}
    for method, path in (
        ("GET", "/page/state"),
        ("GET", f"/page/volume?image={IMAGE}"),
        ("POST", f"/page/segment?image={IMAGE}"),
        ("PUT", f"/page/label?image={IMAGE}"),
        ("POST", "/page/rollback?kind=global"),
    ):
        assert client.request(method, path, headers=origin).status_code == 403, path
        assert client.request(method, path, headers={"Host": "evil.example"}).status_code == 403, path


def test_uploads_are_bounded(client: TestClient) -> None:
    assert asked(client, bytes(2 << 20), held=[0, 1, 0, 1, 0, 1]).status_code == 413
    assert submitted(client, bytes(2 << 20), labels=["liver"], box=[0, 1, 0, 1, 0, 1]).status_code == 413


def test_thumbnails_are_small_pictures_and_are_remembered(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.get("/page/thumbnail", params={"image": IMAGE})
    assert first.content.startswith(b"\x89PNG") and len(first.content) < 20_000
    monkeypatch.delattr(page_routes, "load_volume")
    assert client.get("/page/thumbnail", params={"image": IMAGE}).content == first.content


def test_the_state_says_what_the_server_offers(client: TestClient) -> None:
    state = client.get("/page/state").json()
    assert state["labels"][0] == "liver" and state["strategies"][0] == "fused"
    assert state["next"] == {"first": "in order"}
    assert state["windows"]["soft tissue"] == [-160, 240]
    assert not state["review"] and not state["training"] and state["problem"] is None


def test_an_unknown_expert_cannot_be_rolled_back(client: TestClient) -> None:
    response = client.post("/page/rollback", params={"kind": "../x"})
    assert response.status_code == 400 and "global and local" in response.json()["detail"]


def test_an_expert_is_served_from_the_weights_before_again(
    client: TestClient, app: App, tmp_path: Path
) -> None:
    models = tmp_path / "model"
    make_weights(models)
    app.options = dataclasses.replace(app.options, model_dir=models)
    assert client.get("/page/state").json()["served"]["local"]["parent"] is None
    refused = client.post("/page/rollback", params={"kind": "local"})
    assert refused.status_code == 400 and "was not made from others" in refused.json()["detail"]
    parent = default_path("local", directory=models)
    trained = tmp_path / parent.name
    save_expert(load_expert("local", parent), "local", trained, {})
    name = publish(trained, parent, {}, models)
    served = client.get("/page/state").json()["served"]["local"]
    assert (served["name"], served["parent"]) == (name, parent.stem)
    answer = client.post("/page/rollback", params={"kind": "local"})
    assert answer.json() == {"before": name, "after": parent.stem}
    assert client.get("/page/state").json()["served"]["local"]["name"] == parent.stem
    assert default_path("local", directory=models) == parent


def test_a_server_for_review_changes_nothing(app: App) -> None:
    app.options = dataclasses.replace(app.options, review=True)

    async def never(request: object, work: Any) -> Any:
        raise AssertionError("nothing is segmented")

    web = FastAPI()
    web.include_router(Page(app, never, answer_to, threading.Lock()).router())
    with TestClient(ReadOnly(web), base_url="http://127.0.0.1") as client:
        assert client.get("/page/state").json()["review"] is True
        assert client.get("/page/label", params={"image": IMAGE}).status_code == 200
        refused = [
            asked(client),
            submitted(client, b""),
            client.post("/page/rollback", params={"kind": "local"}),
        ]
        assert [response.status_code for response in refused] == [403, 403, 403]
        assert "for review" in refused[0].json()["detail"]
