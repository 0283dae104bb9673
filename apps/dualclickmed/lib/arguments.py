"""What several commands read from their options."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import UserError


def pairs(option: str, form: str, texts: Sequence[str]) -> dict[str, str]:
    """Names and values of an option that may be repeated.

    Args:
        option: for the message: --conf.
        form: likewise: KEY=VALUE.
        texts: as they were given; a later one goes before an earlier one of the same name.

    Raises:
        UserError: one has no name or no "=".
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UserError(f"{option} takes {form}, but '{text}' came.")
        found[key] = value
    return found
