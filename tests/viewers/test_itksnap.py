"""ITK-SNAP's protocol: the requests of ITK-SNAP 4.4 and of newer builds, one after the other."""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from dualclickmed.server.limits import Limits
from dualclickmed.viewers.options import ViewerOptions
from dualclickmed.viewers.serving import Viewers

from .conftest import Kept

SIZE = (40, 30, 16)
"""Along (x, y, z)."""
OBLIQUE = [0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1]
FLIPPED = [-1, 0, 0, 0, -1, 0, 0, 0, 1]


def form(array: np.ndarray, direction: list[float] | None = None, **changes: Any) -> dict[str, Any]:
    """An upload as ITK-SNAP sends it: `array` (x, y, z), x fastest."""
    meta = {
        "dimensions": list(array.shape), "spacing": [0.5, 0.5, 2.0], "origin": [10, -20, 30],
        "direction": direction or OBLIQUE, "components_per_pixel": 1, "component_type": "float", **changes,
    }  # fmt: skip
    data = gzip.compress(array.astype("<f4").tobytes(order="F"))
    return {"files": {"file": ("image.raw.gz", data)}, "data": {"metadata": json.dumps(meta)}}


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 100, SIZE)


def mask_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "success"
    data = gzip.decompress(base64.b64decode(answer.json()["result"]))
    return np.frombuffer(data, dtype=np.int8).reshape(SIZE, order="F")


@pytest.fixture
def http(itksnap: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=itksnap, trust_env=False, timeout=120) as found:
        yield found


@pytest.fixture(params=["", "/v2"])
def prefix(request: pytest.FixtureRequest) -> str:
    """Of the paths: none in 4.4.0, /v2 in newer builds."""
    return str(request.param)


@pytest.fixture
def session(http: httpx.Client, prefix: str) -> str:
    path = "/start_session" if not prefix else "/v2/start_session/dualclickmed"
    found = str(http.get(path).json()["session_id"])
    answer = http.post(f"{prefix}/upload_raw/{found}?filename=image.nii.gz", **form(image()))
    assert answer.status_code == 200 and "message" in answer.json()
    return found


def test_the_server_says_what_it_is(http: httpx.Client) -> None:
    assert http.get("/status").json() == {"status": "ok", "version": "0.1.6"}
    (model,) = http.get("/v2/models").json()["models"]
    assert model["dimensions"] == 3 and model["interactions"] == ["point", "scribble", "lasso"]
    assert http.get(f"/v2/start_session/{model['id']}").status_code == 200
    assert http.get("/v2/start_session/other").status_code == 400


def test_points_are_answered_with_the_whole_mask(http: httpx.Client, session: str, prefix: str) -> None:
    def click(x: int, y: int, z: int, foreground: str) -> np.ndarray:
        where = f"x={x}&y={y}&z={z}" if not prefix else f"point={x}&point={y}&point={z}"
        path = f"{prefix}/process_point_interaction/{session}?{where}&foreground={foreground}"
        return mask_of(http.get(path))

    expected = np.zeros(SIZE, dtype=np.int8)
    expected[18:23, 8:13, 6:11] = 1
    assert np.array_equal(click(20, 10, 8, "true"), expected)
    expected[21:23, 8:13, 6:11] = 0
    assert np.array_equal(click(23, 10, 8, "false"), expected)


@pytest.mark.parametrize("direction", [OBLIQUE, FLIPPED, [0, 0, 1, 1, 0, 0, 0, 1, 0]])
def test_voxels_are_the_images_own_however_it_lies(http: httpx.Client, direction: list[float]) -> None:
    session = http.get("/start_session").json()["session_id"]
    http.post(f"/upload_raw/{session}", **form(image(), direction))
    mask = mask_of(http.get(f"/process_point_interaction/{session}?x=5&y=20&z=9&foreground=1"))
    assert mask[3:8, 18:23, 7:12].all() and mask.sum() == 125


def test_the_place_and_size_of_voxels_are_known(http: httpx.Client, kept: Kept) -> None:
    session = http.get("/start_session").json()["session_id"]
    http.post(f"/upload_raw/{session}", **form(image(), FLIPPED))  # type: ignore[arg-type]
    http.get(f"/process_point_interaction/{session}?x=5&y=20&z=9&foreground=true")
    http.get(f"/end_session/{session}")
    ((volume, _),) = kept.finished
    assert volume.spacing == (2.0, 0.5, 0.5)
    expected = [[0.5, 0, 0, -10], [0, 0.5, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]]
    assert np.allclose(volume.affine, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["scribble", "lasso"])
def test_scribbles_and_lassos_are_masks_of_the_image(
    http: httpx.Client, session: str, prefix: str, kind: str
) -> None:
    drawn = np.zeros(SIZE)
    drawn[10:20, 12:20, 8] = 1
    path = f"{prefix}/process_{kind}_interaction/{session}"
    mask = mask_of(http.post(f"{path}?foreground=true", **form(drawn)))
    assert mask[10:20, 12:20, 8].all()
    after = mask_of(http.post(f"{path}?foreground=false", **form(drawn)))
    assert not after[15, 16, 8] and after.sum() < mask.sum()


def test_a_session_ends_and_frees_its_memory(
    http: httpx.Client, session: str, prefix: str, viewers: Viewers
) -> None:
    assert viewers.budget.used > 0
    assert http.get(f"{prefix}/end_session/{session}").status_code == 200
    assert viewers.budget.used == 0
    path = f"{prefix}/process_point_interaction/{session}?x=1&y=1&z=1&foreground=true"
    assert http.get(path).status_code == 410


def test_reset_begins_another_object(http: httpx.Client, session: str, prefix: str) -> None:
    point = "x=20&y=10&z=8&foreground=true"
    http.get(f"/process_point_interaction/{session}?{point}")
    assert http.get(f"{prefix}/reset_interactions/{session}").status_code == 200
    other = mask_of(http.get(f"/process_point_interaction/{session}?x=5&y=5&z=3&foreground=true"))
    assert other.sum() == 125 and not other[20, 10, 8]


@pytest.mark.parametrize(
    "changes",
    [
        {"dimensions": [40, 30, 17]}, {"dimensions": [40, 30]}, {"dimensions": [1 << 15] * 3},
        {"dimensions": [40, 30, -16]}, {"spacing": [0, 1, 1]}, {"direction": [0] * 9},
        {"components_per_pixel": 3}, {"origin": ["a", 0, 0]}, {"spacing": [1e400, 1, 1]},
    ],
)  # fmt: skip
def test_an_upload_that_does_not_fit_is_refused(http: httpx.Client, changes: dict[str, Any]) -> None:
    session = http.get("/start_session").json()["session_id"]
    answer = http.post(f"/upload_raw/{session}", **form(image(), **changes))
    assert answer.status_code == 400 and len(answer.json()["detail"]) > 20


def test_forms_that_are_none_are_refused(http: httpx.Client, viewers: Viewers) -> None:
    session = http.get("/start_session").json()["session_id"]
    good = form(image())
    bad: list[dict[str, Any]] = [
        {"content": b"x" * 100},
        {"content": b"--b\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        {"files": good["files"]},
        {"data": good["data"], "files": {"other": b"1"}},
        {"files": {"file": b"no gzip"}, "data": good["data"]},
        {"files": good["files"], "data": {"metadata": "[" * 5000}},
    ]
    for request in bad:
        assert http.post(f"/upload_raw/{session}", **request).status_code in (400, 413, 415)
    http.get(f"/end_session/{session}")
    assert viewers.budget.used == 0


def advanced(viewers: Viewers, seconds: float) -> None:
    """Move the sessions' clock."""
    viewers.sessions["ITK-SNAP"]._clock = lambda: time.monotonic() + seconds


def test_a_client_that_crashed_does_not_keep_its_place(http: httpx.Client, viewers: Viewers) -> None:
    crashed, *others = (http.get("/start_session").json()["session_id"] for _ in range(3))
    full = http.get("/start_session")
    assert full.status_code == 503 and int(full.headers["Retry-After"]) <= 120
    advanced(viewers, 130)
    for session in others:
        assert http.post(f"/upload_raw/{session}", **form(image())).status_code == 200
    assert http.get("/start_session").status_code == 200
    gone = http.post(f"/upload_raw/{crashed}", **form(image()))
    assert gone.status_code == 410 and "Connect again" in gone.json()["detail"]
    for session in others:
        point = http.get(f"/process_point_interaction/{session}?x=5&y=20&z=9&foreground=true")
        assert point.status_code == 200


def test_a_client_that_crashed_does_not_keep_its_memory(kept: Kept) -> None:
    viewers = Viewers(ViewerOptions(itksnap=0, memory_bytes=160_000), Limits(), kept.served())
    viewers.start()
    try:
        with httpx.Client(base_url=viewers.addresses["ITK-SNAP"], trust_env=False, timeout=120) as http:
            crashed, session = (http.get("/start_session").json()["session_id"] for _ in range(2))
            assert http.post(f"/upload_raw/{crashed}", **form(image())).status_code == 200
            assert http.post(f"/upload_raw/{session}", **form(image())).status_code == 503
            advanced(viewers, 130)
            assert http.post(f"/upload_raw/{session}", **form(image())).status_code == 200
            assert http.post(f"/upload_raw/{crashed}", **form(image())).status_code == 410
    finally:
        viewers.stop()


def test_nor_does_it_keep_memory_from_viewers_with_another_protocol(kept: Kept) -> None:
    remote = pytest.importorskip("nnInteractive.inference.remote")
    options = ViewerOptions(itksnap=0, nninteractive=0, memory_bytes=160_000)
    viewers = Viewers(options, Limits(), kept.served())
    viewers.start()
    try:
        with (
            httpx.Client(base_url=viewers.addresses["ITK-SNAP"], trust_env=False, timeout=120) as crashed,
            httpx.Client(base_url=viewers.addresses["nnInteractive"], trust_env=False, timeout=120) as other,
        ):
            session = crashed.get("/start_session").json()["session_id"]
            assert crashed.post(f"/upload_raw/{session}", **form(image())).status_code == 200
            header = {
                "X-Lease-Token": other.post("/claim").json()["lease_token"],
                "X-Meta": json.dumps({"image_properties": {"spacing": [2, 1, 1]}}),
                "Content-Type": "application/octet-stream",
            }
            packed = remote.remote_session.pack_array(image()[None].astype(np.float32))
            assert other.post("/set_image", content=packed, headers=header).status_code == 503
            advanced(viewers, 130)
            assert other.post("/set_image", content=packed, headers=header).status_code == 200
            assert crashed.post(f"/upload_raw/{session}", **form(image())).status_code == 410
    finally:
        viewers.stop()


def test_points_outside_are_refused(http: httpx.Client) -> None:
    session = http.get("/start_session").json()["session_id"]
    http.post(f"/upload_raw/{session}", **form(image()))
    outside = (
        "x=40&y=1&z=1",
        "x=-1&y=1&z=1",
        "x=a&y=1&z=1",
        "x=1&y=1",
        "x=nan&y=1&z=1",
        "x=1e400&y=1&z=1",
    )
    for where in outside:
        answer = http.get(f"/process_point_interaction/{session}?{where}&foreground=true")
        assert answer.status_code == 400, where
    assert http.get(f"/process_point_interaction/{session}?x=1&y=1&z=1&foreground=maybe").status_code == 400
