"""A cache that is bounded by bytes and makes each entry once, however many threads ask for it."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from . import cancellation
from .cancellation import Stopped

logger = logging.getLogger(__name__)


class Sized(Protocol):
    """Anything that knows how many bytes it holds."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class ByteCache:
    """Least recently used entries go first once the sum of their ``nbytes`` would exceed `max_bytes`.

    Thread-safe. Threads that ask for the same missing key at the same time wait for the one that makes it.
    An entry larger than `max_bytes` is returned and not kept, so 0 keeps nothing.
    A copy in another process begins empty.

    Args:
        max_bytes: most bytes held at any time.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._making: dict[Hashable, Future[Any]] = {}
        self._nbytes = 0

    def __reduce__(self) -> tuple[type[ByteCache], tuple[int]]:
        return ByteCache, (self.max_bytes,)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The entry of `key`, made by `make` if it is not held.

        `make` runs outside the lock and must not ask for the same key. What it raises reaches every thread
        that waits for it; the next one to ask tries again. If `make` was `Stopped`, a thread that waits
        makes the entry itself.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
            pending = self._making.get(key)
            if pending is None:
                mine = self._making[key] = Future()
        if pending is not None:
            try:
                return pending.result()
            except Stopped:
                cancellation.check()
                return self.get(key, make)
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self._keep(key, value)
            del self._making[key]
        mine.set_result(value)
        return value

    def clear(self) -> None:
        """Forget every entry; those being made now are still kept when they are ready."""
        with self._lock:
            self._entries.clear()
            self._nbytes = 0

    def drop(self, first: Hashable) -> None:
        """Forget every entry whose key is a tuple that begins with `first`."""
        with self._lock:
            found = [key for key in self._entries if isinstance(key, tuple) and key[:1] == (first,)]
            for key in found:
                self._nbytes -= self._entries.pop(key).nbytes

    def _keep(self, key: Hashable, value: Sized) -> None:
        if value.nbytes > self.max_bytes:
            logger.debug("An entry of %d bytes exceeds the cache's %d", value.nbytes, self.max_bytes)
            return
        while self._nbytes + value.nbytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._nbytes -= oldest.nbytes
        self._entries[key] = value
        self._nbytes += value.nbytes
