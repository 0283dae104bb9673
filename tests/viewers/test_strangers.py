"""Viewers that do not behave: odd orders of calls, several at once, uploads that end, arrays of any kind."""

from __future__ import annotations

import gzip
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from dualclickmed.viewers.serving import Viewers

from .conftest import Kept

remote = pytest.importorskip("nnInteractive.inference.remote")
pack_array = remote.remote_session.pack_array
unpack_array = remote.remote_session.unpack_array

SHAPE = (12, 20, 24)
OCTETS = {"Content-Type": "application/octet-stream"}
PATIENCE = 60.0


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 100, (1, *SHAPE)).astype(np.float32)


@pytest.fixture
def http(nninteractive: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=nninteractive, trust_env=False, timeout=120) as found:
        yield found


@pytest.fixture
def snap(itksnap: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=itksnap, trust_env=False, timeout=120) as found:
        yield found


class Viewer:
    """A viewer that applies what it is answered, and remembers what it showed after each interaction."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.lease = {"X-Lease-Token": http.post("/claim").json()["lease_token"]}
        self.shown = np.zeros(SHAPE, np.uint8)
        self.past: list[np.ndarray] = []

    def send(self, path: str, body: Any = None, array: np.ndarray | None = None, /, **meta: Any) -> Any:
        if array is None:
            return self.http.post(path, json=body if body is not None else meta, headers=self.lease)
        headers = {**self.lease, **OCTETS, "X-Meta": json.dumps(meta)}
        return self.http.post(path, content=pack_array(array), headers=headers)

    def load(self, seed: int = 0) -> None:
        told = {"image_properties": {"spacing": [2, 1, 1]}}
        assert self.send("/set_image", None, image(seed), **told).status_code == 200
        self.clear()

    def clear(self) -> None:
        self.shown, self.past = np.zeros(SHAPE, np.uint8), []

    def apply(self, answer: httpx.Response) -> bool:
        """Show what changed; whether something was predicted."""
        assert answer.status_code == 200, answer.text
        meta = json.loads(answer.headers["X-Meta"])
        if meta["bbox"] is not None:
            region = tuple(slice(a, b) for a, b in meta["bbox"])
            self.shown = self.shown.copy()
            self.shown[region] = unpack_array(answer.content)
        return bool(meta["ran_prediction"])

    def interact(self, path: str, *given: Any, **meta: Any) -> None:
        self.past.append(self.shown)
        meta = {"include_interaction": True, "run_prediction": True, **meta}
        self.apply(self.send(path, *given, **meta))

    def point(self, *index: int, inside: bool = True) -> None:
        body = {"coordinates": list(index), "include_interaction": inside, "run_prediction": True}
        self.past.append(self.shown)
        self.apply(self.send("/add_point_interaction", body))

    def undo(self) -> None:
        ran = self.apply(self.send("/undo", {}))
        assert ran == bool(self.past)
        if self.past:
            np.testing.assert_array_equal(self.shown, self.past.pop())


def a_step(viewer: Viewer, rng: random.Random) -> None:
    """Something that a user may do at any time, right or wrong."""
    z, y, x = (rng.randrange(n) for n in SHAPE)
    mask = np.zeros(SHAPE, np.uint8)
    mask[z, max(0, y - 3) : y + 3, max(0, x - 3) : x + 3] = 1
    box = [[z, z + 1], [max(0, y - 4), y + 1], [max(0, x - 4), x + 1]]
    steps: list[Callable[[], Any]] = [
        lambda: viewer.point(z, y, x, inside=rng.random() < 0.7),
        lambda: viewer.interact("/add_scribble_interaction", None, mask, interaction_bbox=None),
        lambda: viewer.interact("/add_lasso_interaction", None, mask, interaction_bbox=None),
        lambda: viewer.interact("/add_bbox_interaction", None, bbox_coords=box),
        lambda: viewer.undo(),
        lambda: viewer.undo(),
        lambda: begins(viewer, mask),
        lambda: anew(viewer, "/reset_interactions"),
        lambda: viewer.load(rng.randrange(5)),
        lambda: wrong(viewer, "/add_point_interaction", {"coordinates": [z, y, x + 100]}),
        lambda: wrong(viewer, "/add_bbox_interaction", {"bbox_coords": [[0, 0], [1, 2], [1, 2]]}),
        lambda: wrong(viewer, "/add_lasso_interaction", None, np.zeros((3, 3, 3), np.uint8)),
        lambda: wrong(viewer, "/add_scribble_interaction", None, np.zeros(SHAPE, np.uint8)),
        lambda: wrong(viewer, "/add_initial_seg_interaction", None, np.zeros((1, 2, 3), np.uint8)),
    ]
    rng.choice(steps)()


def begins(viewer: Viewer, mask: np.ndarray) -> None:
    viewer.past.append(viewer.shown)
    viewer.apply(viewer.send("/add_initial_seg_interaction", None, mask, run_prediction=False))
    # A client shows the mask by itself: the answer is empty.
    viewer.shown = mask


def anew(viewer: Viewer, path: str) -> None:
    assert viewer.send(path, {}).status_code == 200
    viewer.clear()


def wrong(viewer: Viewer, path: str, *given: Any) -> None:
    meta = {"include_interaction": True, "run_prediction": True, "interaction_bbox": None}
    answer = viewer.send(path, *given, **({} if given[0] else meta))
    assert answer.status_code == 400, (path, answer.text)
    assert answer.json()["detail"].endswith(".")


@pytest.mark.parametrize("seed", range(3))
def test_viewers_in_any_order_show_the_server_s_mask(http: httpx.Client, viewers: Viewers, seed: int) -> None:
    rng = random.Random(seed)
    both = [Viewer(http), Viewer(http)]
    for viewer in both:
        viewer.load()
    for _ in range(60):
        a_step(rng.choice(both), rng)
    for viewer in both:
        # A buffer that is new gets all of the mask with the next change.
        assert viewer.send("/set_target_buffer", {"shape": list(SHAPE), "dtype": "uint8"}).status_code == 200
        expected, viewer.shown = viewer.shown, np.zeros(SHAPE, np.uint8)
        viewer.apply(viewer.send("/predict", {"force_full_refine": True}))
        np.testing.assert_array_equal(viewer.shown, expected)
        assert viewer.send("/release", {}).status_code == 200
    assert viewers.budget.used == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/set_target_buffer", {"shape": list(SHAPE), "dtype": "uint8"}),
        ("/reset_interactions", {}),
        ("/undo", {}),
        ("/predict", {"force_full_refine": False}),
        ("/add_point_interaction", {"coordinates": [1, 1, 1], "include_interaction": True}),
        ("/add_bbox_interaction", {"bbox_coords": [[1, 2]] * 3, "include_interaction": True}),
    ],
)
def test_what_needs_an_image_says_so(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    viewer = Viewer(http)
    answer = viewer.send(path, body)
    assert answer.status_code == 400 and "An image must be sent first" in answer.json()["detail"]
    viewer.load()
    viewer.point(3, 4, 5)


def test_undo_beyond_the_beginning_changes_nothing(http: httpx.Client) -> None:
    viewer = Viewer(http)
    viewer.load()
    viewer.point(3, 4, 5)
    for _ in range(20):
        viewer.undo()
    viewer.point(3, 4, 5)
    assert viewer.shown.any()


def test_an_empty_mask_and_one_of_all_voxels_can_be_begun_with(http: httpx.Client) -> None:
    viewer = Viewer(http)
    viewer.load()
    begins(viewer, np.zeros(SHAPE, np.uint8))
    viewer.point(3, 4, 5)
    assert viewer.shown[3, 4, 5] and viewer.shown.sum() < 200
    anew(viewer, "/reset_interactions")
    begins(viewer, np.ones(SHAPE, np.uint8))
    viewer.point(3, 4, 5, inside=False)
    assert not viewer.shown[3, 4, 5] and viewer.shown.sum() > viewer.shown.size - 200


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "uint16", "int32", "uint64", "int64", "float16", "float64"]
)
def test_images_of_every_kind_are_taken(http: httpx.Client, dtype: str) -> None:
    viewer = Viewer(http)
    array = (np.abs(image()) % 2).astype(dtype)
    assert viewer.send("/set_image", None, array).status_code == 200
    viewer.point(3, 4, 5)
    assert viewer.shown.any()


@pytest.mark.parametrize(
    "array",
    [
        np.full((1, *SHAPE), np.nan, np.float32),
        np.full((1, *SHAPE), np.inf, np.float64),
        np.where(np.indices((1, *SHAPE))[3] > 9, np.inf, 0.0),
        np.zeros((2, *SHAPE), np.float32),
        np.zeros(SHAPE[1:], np.float32),
        np.zeros((1, *SHAPE), np.complex64),
        np.zeros((1, *SHAPE), ">f4"),
    ],
    ids=["nan", "infinite", "partly infinite", "two channels", "a plane", "complex", "big-endian"],
)
def test_an_image_that_cannot_be_one_leaves_the_session_usable(http: httpx.Client, array: np.ndarray) -> None:
    viewer = Viewer(http)
    try:
        answer = viewer.send("/set_image", None, array)
    except (TypeError, ValueError):
        pytest.skip("the client's own packing refuses it")
    # The dtype's name says nothing of the order of bytes: that array is read, with other values.
    assert answer.status_code in ((200, 400) if array.dtype.str == ">f4" else (400,)), answer.text
    viewer.load()
    viewer.point(3, 4, 5)
    assert viewer.shown.any()


SPACINGS = (0, -1, 1e-300, 1e300, "1", None, True, [1], 1e-9, 1e9)


@pytest.mark.parametrize("value", SPACINGS, ids=map(str, SPACINGS))
def test_a_spacing_that_cannot_be_one_is_refused_or_harmless(http: httpx.Client, value: Any) -> None:
    viewer = Viewer(http)
    told = {"image_properties": {"spacing": [value, 1, 1], "direction": "north", "origin": {}}}
    answer = viewer.send("/set_image", None, image(), **told)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        viewer.point(3, 4, 5)
        box = {"bbox_coords": [[3, 4], [2, 9], [2, 9]], "include_interaction": True, "run_prediction": True}
        assert viewer.send("/add_bbox_interaction", box).status_code in (200, 400)


def ended_upload(address: str, path: str, headers: dict[str, str], body: bytes, length: int) -> None:
    """Send the beginning of a body, and close the connection."""
    host, port = address.removeprefix("http://").split(":")
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {length}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + b"\r\n" + body)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_upload_that_ends_frees_what_it_took_and_keeps_the_image(
    http: httpx.Client, nninteractive: str, viewers: Viewers
) -> None:
    viewer = Viewer(http)
    viewer.load()
    viewer.point(3, 4, 5)
    held = viewers.budget.used
    body = pack_array(image())
    for path in ("/set_image", "/add_lasso_interaction", "/add_initial_seg_interaction"):
        meta = {"X-Meta": json.dumps({"include_interaction": True, "run_prediction": True})}
        headers = {**viewer.lease, **OCTETS, **meta}
        ended_upload(nninteractive, path, headers, body[: len(body) // 2], 1 << 20)
    until(lambda: viewers.budget.used == held)
    viewer.point(8, 9, 10)
    viewer.undo()
    viewer.undo()


def test_clients_that_share_a_lease_wait_for_each_other(http: httpx.Client, nninteractive: str) -> None:
    viewer = Viewer(http)
    viewer.load()
    statuses: list[int] = []

    def click(at: int) -> None:
        body = {"coordinates": [3, 4, at], "include_interaction": True, "run_prediction": True}
        answer = httpx.post(
            f"{nninteractive}/add_point_interaction", json=body, headers=viewer.lease, trust_env=False,
            timeout=120,
        )  # fmt: skip
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=click, args=(at,)) for at in range(0, 24, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert statuses == [200] * 8
    viewer.send("/set_target_buffer", {"shape": list(SHAPE), "dtype": "uint8"})
    viewer.apply(viewer.send("/predict", {}))
    assert all(viewer.shown[3, 4, at] for at in range(0, 24, 3))


def test_a_session_that_is_released_in_the_middle_ends_for_all_its_clients(
    http: httpx.Client, nninteractive: str, viewers: Viewers, kept: Kept
) -> None:
    viewer = Viewer(http)
    viewer.load()
    viewer.point(3, 4, 5)
    assert viewer.send("/release", {}).status_code == 200
    for path in ("/release", "/heartbeat", "/undo", "/predict"):
        assert viewer.send(path, {}).status_code == 410, path
    assert http.get("/lease_status", headers=viewer.lease).status_code == 410
    until(lambda: len(kept.finished) == 1)
    assert viewers.budget.used == 0


# ITK-SNAP ---------------------------------------------------------------------------------------------

SIZE = SHAPE[::-1]
GEOMETRY = {
    "dimensions": list(SIZE),
    "spacing": [1.0, 1.0, 2.0],
    "origin": [0.0, 0.0, 0.0],
    "direction": [1, 0, 0, 0, 1, 0, 0, 0, 1],
    "components_per_pixel": 1,
    "component_type": "float",
}


def form(array: np.ndarray, **changes: Any) -> dict[str, Any]:
    packed = gzip.compress(np.ascontiguousarray(array).tobytes())
    return {
        "files": {"file": ("image.raw.gz", packed)},
        "data": {"metadata": json.dumps({**GEOMETRY, **changes})},
    }


def started(snap: httpx.Client, **changes: Any) -> tuple[str, httpx.Response]:
    session = str(snap.get("/start_session").json()["session_id"])
    return session, snap.post(f"/upload_raw/{session}", **form(image()[0], **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"direction": [0] * 9},
        {"direction": [1, 0, 0, 1, 0, 0, 0, 0, 1]},
        {"direction": [1e-200, 0, 0, 0, 1, 0, 0, 0, 1]},
        {"spacing": [0, 1, 1]},
        {"spacing": [1e-300, 1, 1]},
        {"origin": [float(2**60), 0, 0]},
        {"dimensions": [SIZE[0] + 1, *SIZE[1:]]},
        {"dimensions": [65536, 65536, 65536]},
        {"components_per_pixel": 3},
    ],
    ids=lambda changes: str(next(iter(changes.items())))[:40],
)
def test_a_geometry_that_cannot_be_one_is_refused(
    snap: httpx.Client, viewers: Viewers, changes: dict[str, Any]
) -> None:
    session, answer = started(snap, **changes)
    assert answer.status_code == 400, answer.text
    assert snap.post(f"/upload_raw/{session}", **form(image()[0])).status_code == 200
    assert click(snap, session).status_code == 200
    assert snap.get(f"/end_session/{session}").status_code == 200
    assert viewers.budget.used == 0


def click(snap: httpx.Client, session: str) -> httpx.Response:
    return snap.get(f"/process_point_interaction/{session}?x=5&y=4&z=3&foreground=true")


def test_a_mask_that_lies_elsewhere_is_refused(snap: httpx.Client) -> None:
    session, _ = started(snap)
    mask = np.zeros(SHAPE, np.float32)
    mask[3, 4:9, 5:9] = 1
    path = f"/process_lasso_interaction/{session}?foreground=true"
    for changes in (
        {"direction": [-1, 0, 0, 0, 1, 0, 0, 0, 1]},
        {"spacing": [1.0, 1.0, 3.0]},
        {"origin": [0.0, 0.0, 30.0]},
    ):
        answer = snap.post(path, **form(mask, **changes))
        assert answer.status_code == 400 and "lie" in answer.json()["detail"], changes
    assert snap.post(path, **form(mask)).status_code == 200


@pytest.mark.parametrize("dtype", ["int16", "float64"])
def test_voxels_of_another_kind_are_told_by_their_number(snap: httpx.Client, dtype: str) -> None:
    session = str(snap.get("/start_session").json()["session_id"])
    answer = snap.post(f"/upload_raw/{session}", **form(image()[0].astype(dtype)))
    assert answer.status_code == 400 and "bytes" in answer.json()["detail"]


def test_an_order_that_makes_no_sense_is_told(snap: httpx.Client) -> None:
    session = str(snap.get("/start_session").json()["session_id"])
    assert click(snap, session).status_code == 400
    assert snap.get(f"/reset_interactions/{session}").status_code == 400
    assert snap.get(f"/end_session/{session}").status_code == 200
    for answer in (click(snap, session), snap.get(f"/end_session/{session}"), click(snap, "nobody")):
        assert answer.status_code == 410
    for path in (f"/upload_raw/{session}", f"/process_lasso_interaction/{session}"):
        assert snap.get(path).status_code == 405


def test_an_upload_to_itk_snap_s_routes_that_ends_frees_what_it_took(
    snap: httpx.Client, itksnap: str, viewers: Viewers
) -> None:
    session, _ = started(snap)
    held = viewers.budget.used
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    for path in ("upload_raw", "process_scribble_interaction"):
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        ended_upload(itksnap, f"/{path}/{session}", headers, head + bytes(1000), 1 << 20)
    until(lambda: viewers.budget.used == held)
    assert click(snap, session).status_code == 200
