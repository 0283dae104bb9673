"""The two experts and what joins them; they know volumes and prompts, and nothing of HTTP or files."""

from .dual import DEFAULT_STRATEGY, STRATEGIES, DualExpert, Result
from .global_expert import GlobalExpert
from .local_expert import LocalExpert
from .prediction import Prediction

__all__ = [
    "DEFAULT_STRATEGY",
    "STRATEGIES",
    "DualExpert",
    "GlobalExpert",
    "LocalExpert",
    "Prediction",
    "Result",
]
