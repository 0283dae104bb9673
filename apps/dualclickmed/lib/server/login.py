"""Corrects MONAI Label's log-in, which fails with present libraries.

MONAI Label 0.8.5 decodes tokens without naming the algorithms that it accepts. PyJWT refuses that since
version 2, so that nobody could log in; and where it does not refuse, a forger may choose the algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jwt
import requests
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.endpoints.user import auth

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Signatures of an identity provider's key pair; none that the public key alone could forge."""
_WRONG = (400, 401, 403)
"""What providers answer to a user or password that they do not know."""


def install() -> None:
    """Let MONAI Label read tokens by `user_of`."""
    auth.from_token = user_of


def refusal(error: requests.RequestException) -> HTTPException:
    """The answer to a log-in that the identity provider did not grant."""
    if getattr(error.response, "status_code", None) in _WRONG:
        return HTTPException(401, "The user or the password is wrong.")
    return HTTPException(502, "The identity provider that knows the users does not answer; try again later.")


def user_of(token: str) -> auth.User:
    """The user that a token belongs to.

    Raises:
        jwt.InvalidTokenError: the token is not valid: MONAI Label answers 401.
    """
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        return auth.DEFAULT_USER
    key = auth.get_public_key(settings.MONAI_LABEL_AUTH_REALM_URI)
    payload = jwt.decode(
        token, key, algorithms=list(ALGORITHMS), options={"verify_aud": False, "require": ["exp"]}
    )
    roles: Any = payload
    for part in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        roles = roles.get(part) if isinstance(roles, Mapping) else None
    username = payload.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME)
    if not isinstance(username, str):
        raise jwt.InvalidTokenError("The token names no user")
    return auth.User(
        username=username,
        email=payload.get(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL),
        name=payload.get(settings.MONAI_LABEL_AUTH_TOKEN_NAME),
        roles=[role for role in roles or [] if isinstance(role, str)],
    )
