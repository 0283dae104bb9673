"""Errors that a user can cause and can put right.

Each message is a full sentence that says what was expected and what came. Callers at the edge (the MONAI
Label tasks, the command line) show it as it is; anything else that escapes is a bug of ours.
"""

from __future__ import annotations


class UserError(ValueError):
    """A request, a file or a setting that cannot be used; the message is meant for the person who gave it.

    Attributes:
        status: of HTTP, where it came with a request.
    """

    status = 400


class PromptError(UserError):
    """Clicks, a box or a mask that do not fit the volume or contradict one another."""


class VolumeError(UserError):
    """An image that cannot be read or is not a single 3D scalar volume."""


class TooLargeError(VolumeError):
    """A file that would take more memory than the server gives one image."""

    status = 413


class WeightsError(UserError):
    """A checkpoint that is missing, damaged, or made for another network."""
