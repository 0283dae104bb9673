"""What both experts share: a network on its device, a cache of embeddings, and the precision it runs in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import torch

from ..byte_cache import ByteCache
from ..networks.global_network import RegionNetwork
from ..networks.local_network import LocalNetwork
from .precision import chosen_precision

NetworkT = TypeVar("NetworkT", RegionNetwork, LocalNetwork)


class NetworkExpert(Generic[NetworkT]):
    """A network that answers prompts.

    Args:
        network: trained; it is moved to `device` and put into evaluation mode.
        device: where it runs.
        cache: holds embeddings; may be shared with other experts.
        precision: of the network, one of `precision.PRECISIONS`; ``auto`` is resolved here, once.
    """

    def __init__(
        self, network: NetworkT, device: str | torch.device, cache: ByteCache, precision: str = "float32"
    ) -> None:
        self.device = torch.device(device)
        self.network: NetworkT = network.to(self.device).eval()
        self._cache = cache
        self._autocast = chosen_precision(self.network, self.device, precision)
        self.weights_key = object()
        """Identifies these weights in the keys of a shared cache."""

    def _precision(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)
