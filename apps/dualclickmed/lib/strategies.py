"""Who answers a request, by name; all of it is in `experts.dual`.

A file of its own, so that the command line can name them without loading PyTorch.
"""

from __future__ import annotations

DEFAULT_STRATEGY = "fused"
"""What every door uses where nothing is asked for: it measured better than ``paper``."""
STRATEGIES = ("paper", "global", "local", "fused")
"""What a user may ask for."""
