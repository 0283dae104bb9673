"""Generated bad requests to a running server: never a 500, nothing written elsewhere, no memory lost.

`make test-server` sends 2,000 of them, the usual tests fewer.
"""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.configs import wire
from dualclickmed.experts.dual import STRATEGIES
from dualclickmed.imaging.mask_files import DTYPES, EXTENSIONS
from dualclickmed.infers.dialects import CLICKS
from dualclickmed.infers.layers import EXISTING, OVERLAPS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.annotators import resident
from tests.support.live import LABELS, Server, an_image, save, serving

OUTSIDE = "outside the studies.txt"
SECRET = b"nobody may read this"
MAX_GROWTH = 64 << 20
"""Bytes that the server may have grown by; the caches' fill and the allocator's habits are below it."""

TRICKS = (
    *(
        "",
        ".",
        "..",
        "../ct",
        "..%2f..%2fetc%2fpasswd",
        "../../../../etc/passwd",
        "/etc/passwd",
        "\\\\host\\share",
    ),
    *("ct/../../x", "ct\0.nii.gz", "~root", "file:///etc/passwd", "C:\\x", "....//....//x", "%00", "ct%00"),
    *(
        "..\\..\\x",
        "ct\n",
        "ct\r\nX: y",
        "\u202ect",
        "𝕔𝕥",
        "ﬀ",
        "a" * 300,
        "a" * 5000,
        "é" * 130,
        "CON",
        "-rf",
        "*",
    ),
    *(
        "ct",
        "${HOME}",
        "{{7*7}}",
        "'; --",
        "<script>",
        "\ud800",
        "meta.info",
        ".lock",
        "datastore_v2.json",
        "labels",
    ),
)
NUMBERS = (0, -1, 1, 27, 1 << 31, 1 << 63, 10**400, -(10**30), 1.5, 1e308, 1e-320)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))

texts = st.one_of(st.sampled_from(TRICKS), st.text(max_size=60))
numbers = st.one_of(st.sampled_from((*NUMBERS, *NOT_FINITE)), st.integers(), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
points = st.lists(st.one_of(st.integers(-3, 90), numbers), max_size=5)
clicks = st.one_of(
    st.lists(points, max_size=6),
    st.just([[27, 30, 19]]),
    st.just([[27, 30, 19]] * 12_000),
    st.lists(numbers, max_size=8),
    scalars,
)
values = st.recursive(
    st.one_of(scalars, clicks),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
OPTIONS: dict[str, tuple[Any, ...]] = {
    wire.STRATEGY: (*STRATEGIES, ["local", "paper"], "Fused"),
    wire.CLICKS: CLICKS,
    wire.EXISTING: EXISTING,
    wire.OVERLAP: OVERLAPS,
    wire.LOCKED: (["liver"], ["liver", "liver"], '["spleen"]', ["background"], "liver", [["liver"]]),
    wire.RESULT_CONTENT: ("mask", "uncertainty", ["uncertainty"]),
    wire.RESULT_EXTENSION: (*EXTENSIONS, "nii.gz", "..nrrd", ".NRRD", ".nrrd/../x", ".dcm"),
    wire.RESULT_DTYPE: (*DTYPES, "bool", "object", "uint8,uint8"),
    wire.LABEL_INFO: ([{"name": "liver", "idx": 2}], [{"name": 3}], [{}], [None], {"name": "liver"}),
    wire.CT_WINDOW: ("lung", "none"),
    wire.DEVICE: ("cpu", "cuda", "cuda:999"),
}
"""Values that mean something, or nearly do; whole requests of them go further than random ones."""
KEYS = (
    *LABELS,
    *sorted(wire.EXPECTED),
    *("save_label", "label_tag", "description", "session", "timeout", "client_id", "user", "multi_gpu"),
    *("method", "path", "name"),
)
objects = st.dictionaries(st.one_of(st.sampled_from(KEYS), texts), values, max_size=6)
nearly_right = st.fixed_dictionaries(
    {"liver": st.just([[27, 30, 19]])}, optional=dict.fromkeys(KEYS[4:], values)
)
chosen = st.fixed_dictionaries(
    {"liver": st.sampled_from([[[27, 30, 19]], [[27, 30, 19], [5, 8, 3]], [[1, 1, 1]] * 70])},
    optional={
        "spleen": clicks,
        "background": st.sampled_from([[], [[2, 2, 2]], [[27, 30, 19]]]),
        **{key: st.sampled_from(words) for key, words in OPTIONS.items()},
    },
)


@dataclass
class Raw:
    """One request as it goes over the wire."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    kind: str | None = None


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except ValueError:
        return json.dumps(value).encode()


json_texts = st.one_of(
    objects.map(_json),
    nearly_right.map(_json),
    chosen.map(_json),
    values.map(_json),
    st.binary(max_size=40),
    st.sampled_from(
        [
            *(
                b"",
                b"{",
                b"[]",
                b"null",
                b"NaN",
                b'"',
                b'{"a":1}x',
                b"\xff\xfe{\x00}\x00",
                b'{"liver":[[1,2,3],]}',
            ),
            *(b"[" * 5000, b'{"a":' * 3000, b'{"liver":' + b"9" * 5000 + b"}", b'{"liver":"\\ud800"}'),
            b'{"liver":[' + b"[1,2,3]," * 200_000 + b"[1,2,3]]}",
        ]
    ),
)
file_names = st.one_of(st.none(), st.sampled_from([*TRICKS, "a.nii.gz", "a.nrrd", "a.zip", "a.tar", "a.exe"]))


def _nifti(shape: tuple[int, ...], dtype: str) -> bytes:
    array = np.zeros(shape, dtype)
    array[shape[0] // 2] = 1
    return gzip.compress(nib.Nifti1Image(array, np.eye(4)).to_bytes())


# Segmentations of the image, of another one, of a slice, with numbers that are no labels.
SEGMENTATIONS = (
    _nifti((40, 40, 24), "uint8"),
    _nifti((16, 16, 16), "uint8"),
    _nifti((40, 40), "uint8"),
    _nifti((40, 40, 24), "float32"),
)
contents = st.one_of(
    st.sampled_from(SEGMENTATIONS),
    st.binary(max_size=200),
    st.just(b"\x1f\x8b broken"),
    st.just(b"PK\x05\x06" + b"\0" * 18),
    st.just(b"NRRD0005\ntype: short\ndimension: 3\nsizes: 99999 99999 99999\nencoding: raw\n\n"),
    st.just(b"NRRD0005\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: /etc/passwd\n\n"),
)


@st.composite
def forms(draw: st.DrawFn, text_field: str, file_field: str | None) -> tuple[bytes, str]:
    """A multipart body, now and then broken, and its content type."""
    boundary = draw(st.sampled_from(["frontier", "x" * 70, "--", "ä"]))
    parts = []
    for _ in range(draw(st.integers(0, 2))):
        parts.append((text_field, None, draw(json_texts)))
    if file_field is not None:
        for _ in range(draw(st.integers(0, 2))):
            parts.append((file_field, draw(file_names), draw(contents)))  # type: ignore[arg-type]
    lines = []
    for name, file_name, data in parts:
        disposition = f'form-data; name="{name}"'
        if file_name is not None:
            escaped = file_name.encode("utf-8", "surrogatepass").replace(b'"', b"%22")
            named = b'; filename="' + escaped.replace(b"\r", b"%0D").replace(b"\n", b"%0A") + b'"'
        else:
            named = b""
        lines.append(
            f"--{boundary}\r\nContent-Disposition: {disposition}".encode() + named + b"\r\n\r\n" + data
        )
    body = b"\r\n".join([*lines, f"--{boundary}--\r\n".encode()])
    cut = draw(st.sampled_from([None, None, None, 10, -4]))
    kind = draw(
        st.sampled_from(
            ["multipart/form-data; boundary={}"] * 6 + ["multipart/form-data", "text/plain; {}", "{}"]
        )
    )
    return body[:cut], kind.format(boundary)


ids = st.one_of(st.sampled_from(["ct", "other"]), texts)
tags = st.one_of(st.just("final"), texts)


@st.composite
def requests_to_the_server(draw: st.DrawFn) -> Raw:
    """Any endpoint with arguments that are wrong, or nearly right."""
    segment = st.one_of(st.sampled_from(["dualclickmed", "dualclickmed_object"]), texts)
    which = draw(st.integers(0, 15))
    query: dict[str, str] = {}
    body, kind = b"", None
    if which <= 4:
        task = draw(segment)
        query = {
            "image": draw(ids),
            "output": draw(st.sampled_from(["image", "json", "all", "dicom_seg", "xml"])),
        }
        if draw(st.booleans()):
            query["session_id"] = draw(texts)
        body, kind = draw(forms("params", draw(st.sampled_from([None, "file", "label"]))))
        return Raw("POST", f"/infer/{_quoted(task)}", query, body, kind)
    if which <= 6:
        body, kind = draw(forms("params", "label"))
        return Raw("PUT", "/datastore/label", {"image": draw(ids), "tag": draw(tags)}, body, kind)
    if which == 7:
        body, kind = draw(forms("params", "file"))
        return Raw(
            "PUT",
            draw(st.sampled_from(["/datastore/image", "/datastore/"])),
            {"image": draw(texts)},
            body,
            kind,
        )
    if which == 8:
        body, kind = draw(forms("info", None))
        path = draw(
            st.sampled_from(["/datastore/image/info", "/datastore/label/info", "/datastore/updatelabelinfo"])
        )
        return Raw("PUT", path, {"image": draw(ids), "label": draw(ids), "tag": draw(tags)}, body, kind)
    if which == 9:
        body, kind = draw(forms("x", "files"))
        query = {
            "uncompress": draw(st.sampled_from(["true", "false", "x"])),
            "expiry": str(draw(st.integers())),
        }
        return Raw("PUT", "/session/", query, body, kind)
    if which == 10:
        path = f"/session/{_quoted(draw(texts))}"
        return Raw(draw(st.sampled_from(["GET", "DELETE"])), path, {"image": "true", "update_ts": "true"})
    if which == 11:
        method = draw(st.sampled_from(["GET", "HEAD", "DELETE"]))
        path = draw(
            st.sampled_from(["/datastore/image", "/datastore/label", "/datastore/label/info", "/datastore/"])
        )
        names = {"image": draw(texts), "id": draw(texts), "label": draw(ids), "tag": draw(tags)}
        return Raw(
            method, path, {**names, "check_sum": draw(texts), "output": draw(st.sampled_from(["all", "x"]))}
        )
    if which == 12:
        name = _quoted(draw(st.one_of(st.sampled_from(["first", "random", "dualclickmed"]), texts)))
        path = (
            draw(st.sampled_from(["/activelearning/", "/scoring/", "/batch/infer/no-", "/train/no-"])) + name
        )
        return Raw("POST", path, {}, draw(json_texts), "application/json")
    if which == 13:
        below = draw(
            st.sampled_from(
                ["/ohif/", "/static/", "/proxy/dicom/", "/proxy/dicom/wado/", "/model/", "/model/info/"]
            )
        )
        return Raw(draw(st.sampled_from(["GET", "POST"])), below + _quoted(draw(texts)))
    if which == 14:
        path = draw(
            st.sampled_from(["/logs/", "/logs/gpu", "/datastore/dataset", "/info/", "/reload", "/health"])
        )
        return Raw("GET", path, {"lines": str(draw(st.integers())), "limit_cases": str(draw(st.integers()))})
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"]))
    return Raw(
        method,
        "/" + _quoted(draw(texts)),
        {draw(texts): draw(texts)},
        draw(st.binary(max_size=50)),
        "text/plain",
    )


def _quoted(text: str) -> str:
    return quote(_bytes(text), safe="/%")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def sent(server: Server, request: Raw) -> tuple[int, bytes]:
    host, _, port = server.url.rpartition("//")[2].partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    query = urlencode({_bytes(name): _bytes(value) for name, value in request.query.items()})
    headers = {} if request.kind is None else {"Content-Type": request.kind.encode("latin-1", "replace")}
    cut_short = False
    try:
        try:
            connection.request(request.method, f"{request.path}?{query}", request.body, headers)
        except (BrokenPipeError, ConnectionResetError):
            # Refused before all of it was sent; the answer is mostly there all the same.
            cut_short = True
        try:
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (ConnectionError, http.client.HTTPException):
            if not cut_short:
                raise
            assert server.get("/health").status_code == 200
            return 413, b""
    finally:
        connection.close()


def files_around(server: Server) -> set[Path]:
    """Every file beside the studies, where a path that leads out of them would end."""
    folder = server.studies.parent
    inside = (server.studies, server.temporary, folder / "sessions")
    return {path for path in folder.rglob("*") if not any(path.is_relative_to(inner) for inner in inside)}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    def studies(folder: Path) -> None:
        folder.mkdir()
        save(folder, "ct", an_image((40, 40, 24)))
        save(folder, "other", an_image((16, 16, 16)))
        (folder.parent / OUTSIDE).write_bytes(SECRET)

    # A small cache, so that its filling does not look like growth.
    with serving(tmp_path_factory.mktemp("fuzz"), studies, {"cache_gb": "0.05"}) as started:
        yield started


def hold(server: Server, requests: int) -> None:
    """Send that many generated requests and check what must hold after each, and after all of them."""
    click = {"liver": [[27, 30, 19]]}
    temporary = set(server.temporary.rglob("*"))
    good = server.infer("dualclickmed", "ct", click)
    assert good.status_code == 200, good.text
    statuses: dict[int, int] = {}
    before: list[int] = []
    around = files_around(server)

    @settings(
        max_examples=requests,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests_to_the_server())
    def one(request: Raw) -> None:
        status, body = sent(server, request)
        statuses[status] = statuses.get(status, 0) + 1
        assert status < 500, f"{status} for {request}: {body[:300]!r}"
        assert SECRET not in body
        assert b"root:x:0" not in body
        if sum(statuses.values()) == max(50, requests // 10):
            before.append(resident(server))

    one()
    assert sum(statuses.values()) >= requests
    # Most must have been refused: a generator that sends good requests tests nothing.
    assert sum(count for status, count in statuses.items() if status >= 400) > requests / 2, statuses
    grown = resident(server) - before[0]
    assert grown < MAX_GROWTH, f"{grown / 2**20:.0f} MiB more after {statuses}"
    assert files_around(server) == around
    # What was uploaded and refused is gone, once it was answered. Sessions are kept until they expire.
    deadline = time.monotonic() + 10
    while (left := set(server.temporary.rglob("*")) - temporary) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == set()
    again = server.infer("dualclickmed", "ct", click)
    assert again.status_code == 200, again.text
    assert again.content == good.content
    assert server.get("/info/").status_code == 200
    assert server.get("/datastore/?output=all").status_code == 200
    logging.getLogger(__name__).info("Answers by status: %s", dict(sorted(statuses.items())))


def test_bad_requests_are_refused_and_leave_nothing(target: Server) -> None:
    hold(target, 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_bad_requests(target: Server) -> None:
    hold(target, 2000)
