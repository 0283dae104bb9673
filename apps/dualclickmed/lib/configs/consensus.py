"""Which label trains where several annotators have labelled an image."""

from __future__ import annotations

LAST, MAJORITY, STAPLE = "last", "majority", "staple"
CONSENSUS = (LAST, MAJORITY, STAPLE)
"""The one submitted last, what more than half of them have drawn, or STAPLE's estimate."""
