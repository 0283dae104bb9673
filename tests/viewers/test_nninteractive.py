"""nnInteractive's protocol, driven by its own client."""

from __future__ import annotations

import dataclasses
import json
import random
import struct
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from dualclickmed.server.limits import Limits
from dualclickmed.viewers.options import ViewerOptions
from dualclickmed.viewers.serving import Viewers

from .conftest import Kept

remote = pytest.importorskip("nnInteractive.inference.remote")
pack_array = remote.remote_session.pack_array

SHAPE = (16, 30, 40)
META = {"include_interaction": True, "run_prediction": True, "interaction_bbox": None}


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 100, (1, *SHAPE)).astype(np.float32)


def connected(url: str, key: str | None = None):
    """A client with an image and a buffer."""
    client = remote.nnInteractiveRemoteInferenceSession(url, api_key=key)
    client.set_image(image(), {"spacing": [2.0, 1.0, 1.0]})
    client.set_target_buffer(np.zeros(SHAPE, dtype=np.uint8))
    return client


@pytest.fixture
def client(nninteractive: str) -> Iterator[object]:
    found = connected(nninteractive)
    yield found
    found.close()


@pytest.fixture
def http(nninteractive: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=nninteractive, trust_env=False, timeout=120) as found:
        yield found


def lease(http: httpx.Client, with_image: bool = True) -> dict[str, str]:
    """The header of a new session."""
    header = {"X-Lease-Token": http.post("/claim").json()["lease_token"]}
    if with_image:
        meta = {"X-Meta": json.dumps({"image_properties": {"spacing": [2, 1, 1]}})}
        octets = {"Content-Type": "application/octet-stream"}
        answer = http.post("/set_image", content=pack_array(image()), headers={**header, **meta, **octets})
        assert answer.json() == {"original_image_shape": [1, *SHAPE]}
    return header


def test_the_client_learns_what_it_may_do(client) -> None:
    assert client.ping()
    assert client.supported_interactions == dict.fromkeys(
        ("points", "bbox2d", "bbox3d", "scribble", "lasso"), True
    )
    assert client.license == "Apache-2.0" and client.supports_undo and client.supports_initial_label
    assert client.original_image_shape == (1, *SHAPE)
    assert client.lease_status()["idle_timeout_seconds"] == ViewerOptions().idle_seconds
    assert client.heartbeat() == pytest.approx(ViewerOptions().idle_seconds, abs=5)


def test_a_point_is_answered_with_what_changed(client) -> None:
    assert client.add_point_interaction([8.2, 10, 19.6], True) == [[6, 11], [8, 13], [18, 23]]
    assert client.target_buffer.sum() == 125
    assert client.add_point_interaction([8, 10, 23], False) == [[6, 11], [8, 13], [21, 23]]
    assert client.target_buffer[8, 10].nonzero()[0].tolist() == [18, 19, 20]


def test_a_rectangle_gets_a_third_side_and_another_one_tells_it(client) -> None:
    client.add_bbox_interaction([[8, 9], [10, 18], [12, 20]], True)
    # 8 x 8 mm need 10 mm, which are 5 slices; 6, so that the edges are whole.
    assert np.flatnonzero(client.target_buffer.any(axis=(1, 2))).tolist() == [6, 7, 8, 9, 10]
    client.add_bbox_interaction([[2, 12], [14, 15], [12, 20]], True)
    assert np.flatnonzero(client.target_buffer.any(axis=(1, 2))).tolist() == list(range(2, 12))


def test_a_box_is_taken_as_it_is(client) -> None:
    assert client.add_bbox_interaction([[2, 6], [3, 9], [4, 12]], True) == [[2, 6], [3, 9], [4, 12]]
    assert client.target_buffer[2:6, 3:9, 4:12].all()


def test_scribbles_and_lassos_come_as_parts_of_the_image(client) -> None:
    stroke = np.zeros((1, 3, 20), dtype=np.uint8)
    stroke[0, 1, 5:15] = 1
    client.add_scribble_interaction(stroke, True, interaction_bbox=[[8, 9], [4, 7], [10, 30]])
    assert client.target_buffer[8, 5, 13:27].all() and client.target_buffer[8, 5].sum() == 14
    ring = np.zeros(SHAPE, dtype=np.uint8)
    ring[8, 15:25, 15:25] = 1
    client.add_lasso_interaction(ring, True)
    assert client.target_buffer[8, 15:25, 15:25].all()


def test_undo_goes_back_five_times_and_then_says_that_there_is_no_more(client) -> None:
    before = []
    for at in range(5):
        before.append(client.target_buffer.copy())
        client.add_point_interaction([8, 10, 6 + 6 * at], at != 3)
    for mask in reversed(before):
        assert client.undo()
        assert np.array_equal(client.target_buffer, mask)
    assert not client.undo()


def test_prompts_may_wait_for_an_answer(client) -> None:
    client.add_point_interaction([8, 10, 10], True, run_prediction=False)
    client.add_point_interaction([8, 10, 20], True, run_prediction=False)
    assert not client.target_buffer.any()
    client._predict()
    assert client.target_buffer.sum() == 250


def test_a_segmentation_to_begin_with_is_corrected(client) -> None:
    start = np.zeros(SHAPE, dtype=np.uint8)
    start[4:12, 5:25, 5:35] = 1
    client.add_initial_seg_interaction(start)
    assert np.array_equal(client.target_buffer, start)
    client.add_point_interaction([8, 15, 20], False)
    assert client.target_buffer.sum() == start.sum() - 125
    client.undo()
    assert np.array_equal(client.target_buffer, start)


def test_the_next_object_begins_with_nothing(client) -> None:
    client.add_point_interaction([8, 10, 10], True)
    client.reset_interactions()
    assert not client.undo()
    client.add_point_interaction([8, 10, 20], True)
    assert client.target_buffer.sum() == 125


def test_two_clients_do_not_see_one_another(nninteractive: str) -> None:
    with connected(nninteractive) as first, connected(nninteractive) as second:
        first.add_point_interaction([8, 10, 10], True)
        second.add_point_interaction([8, 20, 30], True)
        first.add_point_interaction([8, 10, 14], True)
        assert first.target_buffer[8, 10, 8:17].all() and not first.target_buffer[8, 20, 30]
        assert second.target_buffer.sum() == 125


def test_a_session_that_ends_frees_its_memory(viewers: Viewers, nninteractive: str, kept: Kept) -> None:
    client = connected(nninteractive)
    client.add_point_interaction([8, 10, 10], True)
    assert viewers.budget.used >= 2 * np.prod(SHAPE)
    client.close()
    assert viewers.budget.used == 0 and len(viewers.sessions["nnInteractive"]) == 0
    assert len(kept.forgotten) == 1


def test_masks_that_a_user_made_are_handed_on_when_the_image_is_put_away(
    nninteractive: str, kept: Kept
) -> None:
    with connected(nninteractive) as client:
        client.add_point_interaction([8, 10, 10], True)
        first = client.target_buffer.copy()
        client.reset_interactions()
        client.reset_interactions()
        client.add_point_interaction([8, 20, 30], True)
        assert not kept.finished
    ((volume, masks),) = kept.finished
    assert volume.spacing == (2.0, 1.0, 1.0)
    assert np.array_equal(masks[0], first) and np.array_equal(masks[1], client.target_buffer)


def test_further_sessions_are_told_when_to_come_back(nninteractive: str, http: httpx.Client) -> None:
    for _ in range(3):
        lease(http, with_image=False)
    answer = http.post("/claim")
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) <= 120
    with pytest.raises(remote.ServerAtCapacityError):
        remote.nnInteractiveRemoteInferenceSession(nninteractive)


def test_a_session_that_has_ended_is_gone(nninteractive: str, viewers: Viewers) -> None:
    client = connected(nninteractive)
    viewers.sessions["nnInteractive"].close()
    with pytest.raises(remote.SessionExpiredError):
        client.add_point_interaction([8, 10, 10], True)
    client.close()


def test_an_idle_session_is_ended_by_itself(kept: Kept, options: ViewerOptions) -> None:
    viewers = Viewers(dataclasses.replace(options, idle_seconds=0.5, itksnap=None), Limits(), kept.served())
    viewers.look_seconds = 0.2
    viewers.start()
    try:
        client = connected(viewers.addresses["nnInteractive"])
        deadline = time.monotonic() + 30
        while viewers.budget.used and time.monotonic() < deadline:
            time.sleep(0.1)
        assert viewers.budget.used == 0 and len(kept.forgotten) == 1
        client.close()
    finally:
        viewers.stop()


def test_a_server_with_a_key_answers_nobody_without(kept: Kept, options: ViewerOptions) -> None:
    viewers = Viewers(dataclasses.replace(options, key="abc"), Limits(), kept.served())
    viewers.start()
    try:
        url = viewers.addresses["nnInteractive"]
        for headers in ({}, {"Authorization": "Bearer abd"}, {"Authorization": "abc"}):
            for path in ("/capabilities", "/healthz"):
                assert httpx.get(url + path, headers=headers, trust_env=False).status_code == 401
        connected(url, "abc").close()
    finally:
        viewers.stop()


def test_images_of_all_sessions_share_one_bound(kept: Kept, options: ViewerOptions) -> None:
    bound = 8 * int(np.prod(SHAPE))
    viewers = Viewers(dataclasses.replace(options, memory_bytes=bound), Limits(), kept.served())
    viewers.start()
    try:
        url = viewers.addresses["nnInteractive"]
        first = connected(url)
        with httpx.Client(base_url=url, trust_env=False) as http:
            large = np.zeros((1, 40, 40, 40), dtype=np.float32)
            header = {**lease(http, with_image=False), "Content-Type": "application/octet-stream"}
            answer = http.post("/set_image", content=pack_array(large), headers=header)
            assert answer.status_code == 400 and "bytes" in answer.json()["detail"]
            answer = http.post("/set_image", content=pack_array(image()), headers=header)
            assert answer.status_code == 503 and "Retry-After" in answer.headers
            first.close()
            answer = http.post("/set_image", content=pack_array(image()), headers=header)
            assert answer.status_code == 200
    finally:
        viewers.stop()


def test_arrays_may_be_larger_than_other_bodies(http: httpx.Client) -> None:
    noise = np.random.default_rng(0).integers(-3000, 3000, (1, 60, 120, 120)).astype(np.int16)
    body = pack_array(noise)
    assert len(body) > 1 << 20
    header = {**lease(http, with_image=False), "Content-Type": "application/octet-stream"}
    assert http.post("/set_image", content=body, headers=header).status_code == 200
    json_header = {**header, "Content-Type": "application/json"}
    assert http.post("/set_image", content=body, headers=json_header).status_code == 413


def test_other_sites_pages_and_names_stay_out(http: httpx.Client) -> None:
    assert http.get("/capabilities", headers={"Origin": "https://evil.example"}).status_code == 403
    assert http.get("/capabilities", headers={"Host": "evil.example"}).status_code == 403


def test_paths_that_are_not_there_say_so(http: httpx.Client) -> None:
    for path in ("/nothing", "/../etc/passwd", "/%2e%2e/claim"):
        assert http.get(path).status_code == 404
    assert http.get("/claim").status_code == 405


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/add_point_interaction", {"coordinates": [8, 10, 99], "include_interaction": True}),
        ("/add_point_interaction", {"coordinates": [8, 10], "include_interaction": True}),
        ("/add_point_interaction", {"coordinates": [8, 10, 10]}),
        ("/add_bbox_interaction", {"bbox_coords": [[1, 1], [2, 3], [4, 5]], "include_interaction": True}),
        ("/add_bbox_interaction", {"bbox_coords": [[90, 99], [2, 3], [4, 5]], "include_interaction": True}),
        ("/set_target_buffer", {"shape": [1, 2, 3], "dtype": "uint8"}),
        ("/set_do_autozoom", {"do_autozoom": "yes"}),
    ],
)
def test_mistakes_are_told_in_a_sentence(http: httpx.Client, path: str, body: dict[str, object]) -> None:
    answer = http.post(path, json=body, headers=lease(http))
    assert answer.status_code == 400
    assert len(answer.json()["detail"]) > 20 and answer.json()["detail"].endswith((".", ")."))


def test_an_image_comes_first(http: httpx.Client) -> None:
    header = lease(http, with_image=False)
    answer = http.post("/predict", json={}, headers=header)
    assert answer.status_code == 400 and "image" in answer.json()["detail"]


JSON_PATHS = (
    *("/set_target_buffer", "/set_do_autozoom", "/reset_interactions", "/add_point_interaction"),
    *("/add_bbox_interaction", "/undo", "/predict"),
)
ARRAY_PATHS = (
    "/set_image", "/add_scribble_interaction", "/add_lasso_interaction", "/add_initial_seg_interaction",
)  # fmt: skip
VALUES = (None, True, -1, 0, 1, 1e308, 1 << 70, "a", "", [], [1], [1, 2, 3], [[1, 2]] * 3, {}, [[9, 1]] * 3)
KEYS = ("coordinates", "include_interaction", "run_prediction", "bbox_coords", "shape", "dtype",
        "do_autozoom", "interaction_bbox", "image_properties", "spacing")  # fmt: skip


def _bad_body(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.randrange(60))
    if kind == 1:
        return b"[" * rng.randrange(1, 3000)
    return json.dumps({key: rng.choice(VALUES) for key in rng.sample(KEYS, rng.randrange(6))}).encode()


def _bad_array(rng: random.Random) -> bytes:
    data = bytearray(pack_array(np.ones((1, 5, 6, 7), dtype=rng.choice(["uint8", "float32", "int16"]))))
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.3:
        data[13:21] = struct.pack("<q", rng.choice([-1, 0, 1 << 40, 1 << 62]))
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)


def test_malformed_requests_are_refused_and_the_next_click_is_answered(
    http: httpx.Client, nninteractive: str, viewers: Viewers
) -> None:
    rng = random.Random(0)
    header = lease(http)
    statuses: dict[int, int] = {}
    for _ in range(300):
        token = header if rng.random() < 0.9 else {"X-Lease-Token": rng.choice(["", "x", "\xff" * 50])}
        headers = {name: value.encode("latin-1") for name, value in token.items()}
        if rng.random() < 0.5:
            answer = http.post(rng.choice(JSON_PATHS), content=_bad_body(rng), headers=headers)  # type: ignore[arg-type]
        else:
            meta = _bad_body(rng).replace(b"\n", b"").replace(b"\r", b"").replace(b"\0", b"")
            meta = rng.choice([json.dumps(META).encode(), bytes(byte for byte in meta if 32 < byte < 127)])
            octets = {"Content-Type": b"application/octet-stream", "X-Meta": meta}
            answer = http.post(
                rng.choice(ARRAY_PATHS),
                content=_bad_array(rng),
                headers={**headers, **octets},  # type: ignore[arg-type]
            )
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
    assert set(statuses) <= {200, 400, 410, 413, 431}, statuses
    assert statuses[400] > 150
    assert http.post("/release", headers=header).status_code == 200
    assert viewers.budget.used == 0
    with connected(nninteractive) as client:
        client.add_point_interaction([8, 10, 10], True)
        assert client.target_buffer.sum() == 125
