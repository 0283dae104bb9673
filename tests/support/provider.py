"""An identity provider as MONAI Label asks it at log-in: a realm's public key, tokens for passwords."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

REALM = "/realms/monailabel"
TOKENS = f"{REALM}/protocol/openid-connect/token"


@dataclass(frozen=True)
class Provider:
    """A running provider.

    Attributes:
        url: of its realm, for MONAI_LABEL_AUTH_REALM_URI.
        key: what it signs tokens with.
    """

    url: str
    key: rsa.RSAPrivateKey

    @property
    def settings(self) -> dict[str, str]:
        """Variables of a server that asks it."""
        return {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": self.url}


def public_part(key: rsa.RSAPrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def token_of(
    key: object, *roles: str, user: str = "ann", seconds: float = 600, algorithm: str = "RS256"
) -> str:
    """A token for somebody with roles, signed with a key."""
    payload = {
        "preferred_username": user,
        "realm_access": {"roles": list(roles)},
        "exp": int(time.time() + seconds),
    }
    return jwt.encode(payload, key, algorithm=algorithm)  # type: ignore[arg-type]


@contextmanager
def providing(users: Mapping[str, tuple[str, tuple[str, ...]]] | None = None) -> Iterator[Provider]:
    """A provider on a port of its own.

    Args:
        users: name to password and roles.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = b"".join(public_part(key).splitlines()[1:-1]).decode()

    class Realm(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            base = f"http://{self.headers['Host']}"
            self._answer(200, {"public_key": public, "token_endpoint": base + TOKENS})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            form = dict(urllib.parse.parse_qsl(self.rfile.read(length).decode()))
            password, roles = (users or {}).get(form.get("username", ""), (None, ()))
            if password is None or form.get("password") != password:
                self._answer(401, {"error": "invalid_grant", "error_description": "Invalid user credentials"})
                return
            told = {"access_token": token_of(key, *roles, user=form["username"]), "token_type": "Bearer"}
            self._answer(200, told)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, status: int, told: Mapping[str, str]) -> None:
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Realm) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Provider(f"http://127.0.0.1:{server.server_address[1]}{REALM}", key)
        server.shutdown()
