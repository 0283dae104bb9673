"""How several clicks of one interaction become masks, by name; `rounds` carries it out."""

from __future__ import annotations

from typing import Literal

Mode = Literal["alternatives", "chain", "together"]
"""How the clicks of one interaction are shown to the global expert.

alternatives: each makes a prompt and a mask of its own, the history plus this one click, all decoded in one
batch; the next interaction goes on from the first (the paper's "batch processing", section 2.3). chain: one
is added after the other, with a mask after each. together: between one and all of them are added at once and
give one mask, as many clicks seen for a fraction of the cost.
"""
