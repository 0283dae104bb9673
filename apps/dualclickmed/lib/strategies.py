"""The names of the strategies, which `experts.dual` carries out.

In a file of its own, so that the command line can name them without loading PyTorch.
"""

from __future__ import annotations

DEFAULT_STRATEGY = "fused"
"""Used wherever no strategy is asked for: it measured better than ``paper``."""
STRATEGIES = ("paper", "global", "local", "fused")
"""What a user may ask for."""
