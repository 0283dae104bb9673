"""MONAI Label's own log-in (MONAI_LABEL_AUTH_ENABLE) against an identity provider of the test."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.live import Server, an_image, save, serving
from tests.support.provider import Provider, providing, public_part, token_of


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with providing({"ann": ("her password", ("monailabel-user",))}) as found:
        yield found


@pytest.fixture(scope="module")
def key(provider: Provider) -> rsa.RSAPrivateKey:
    return provider.key


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[Server]:
    """A server with log-in."""

    def studies(folder: Path) -> None:
        folder.mkdir()
        save(folder, "ct", an_image((24, 24, 20)))

    folder = tmp_path_factory.mktemp("login")
    with serving(folder, studies, environment=provider.settings, up="/auth/") as started:
        yield started


Token = Callable[..., str]


@pytest.fixture
def token(key: rsa.RSAPrivateKey) -> Token:
    def make(*roles: str, secret: object = key, **more: Any) -> str:
        return token_of(secret, *roles, **more)

    return make


def status(server: Server, method: str, path: str, token: str | None, **more: object) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return server.http.request(method, server.url + path, headers=headers, timeout=60, **more).status_code  # type: ignore[arg-type]


CLICK = {"params": (None, json.dumps({"liver": [[12, 12, 10]]}))}
PROTECTED = [
    ("GET", "/info/"),
    ("POST", "/infer/dualclickmed?image=ct"),
    ("GET", "/datastore/"),
    ("GET", "/datastore/image?image=ct"),
    ("PUT", "/datastore/label?image=ct"),
    ("DELETE", "/datastore/image?id=ct"),
    ("PUT", "/session/"),
    ("GET", "/proxy/dicom/studies"),
    ("POST", "/train/dualclickmed_local"),
    ("POST", "/activelearning/first"),
    ("GET", "/logs/"),
    ("GET", "/ohif/"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_without_a_token_nothing_is_told(closed: Server, method: str, path: str) -> None:
    assert status(closed, method, path, None) == 401


def test_a_user_may_click_and_an_annotator_submit(closed: Server, token: Token) -> None:
    user = token("monailabel-user")
    assert status(closed, "GET", "/info/", user) == 200
    assert status(closed, "POST", "/infer/dualclickmed?image=ct", user, files=CLICK) == 200
    whole = nib.Nifti1Image(
        np.ones((24, 24, 20), dtype=np.uint8), nib.load(closed.studies / "ct.nii.gz").affine
    )
    label = {"label": ("x.nii", bytes(whole.to_bytes()))}
    assert status(closed, "PUT", "/datastore/label?image=ct", user, files=label) == 403
    annotator = token("monailabel-user", "monailabel-annotator")
    assert status(closed, "PUT", "/datastore/label?image=ct", annotator, files=label) == 200
    assert status(closed, "DELETE", "/datastore/label?id=ct&tag=final", annotator) == 403
    assert status(closed, "DELETE", "/datastore/label?id=ct&tag=final", token("monailabel-admin")) == 200
    assert status(closed, "GET", "/logs/?lines=5", token("monailabel-admin")) == 200


def test_tokens_that_somebody_made_up_are_refused(
    closed: Server, token: Token, key: rsa.RSAPrivateKey
) -> None:
    roles = ("monailabel-admin", "monailabel-user")
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forged = [
        token(*roles, secret=other),
        token(*roles, seconds=-60),
        token(*roles, secret=None, algorithm="none"),
        _signed_with_the_public_key(token(*roles), public_part(key)),
        "",
        "x.y.z",
    ]
    assert [status(closed, "GET", "/info/", one) for one in forged] == [401] * len(forged)


def _signed_with_the_public_key(token: str, public: bytes) -> str:
    """The old trick: the public key as the secret of a symmetric signature."""

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signed = f"{encoded(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{token.split('.')[1]}"
    return f"{signed}.{encoded(hmac.new(public, signed.encode(), hashlib.sha256).digest())}"


def test_a_password_gets_a_token_and_a_wrong_one_a_sentence(closed: Server) -> None:
    def log_in(password: str) -> Any:
        form = {"grant_type": "password", "username": "ann", "password": password}
        return closed.http.post(f"{closed.url}/auth/token", data=form, timeout=60)

    token = log_in("her password").json()["access_token"]
    assert status(closed, "GET", "/info/", token) == 200
    refused = log_in("another one")
    assert (refused.status_code, refused.json()["detail"]) == (401, "The user or the password is wrong.")
