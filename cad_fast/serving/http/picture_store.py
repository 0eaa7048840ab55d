"""Pictures that are kept for a while, to be fetched by URL."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict


class PictureStore:
    """PNG files in memory, under ids that cannot be guessed.

    Args:
        max_bytes: most bytes of all files. The oldest files go first.
        seconds: how long a file is kept.
    """

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self.max_bytes, self.seconds = max_bytes, seconds
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Keep a file, and drop the oldest ones if there are too many bytes. Return the file's id."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._files[name] = (time.monotonic() + self.seconds, data)
            self._bytes += len(data)
            self._drop_old()
        return name

    def get(self, name: str) -> bytes | None:
        """Return a file, or None if it is not (or no longer) there."""
        with self._lock:
            self._drop_old()
            entry = self._files.get(name)
        return None if entry is None else entry[1]

    def __len__(self) -> int:
        return len(self._files)

    @property
    def total_bytes(self) -> int:
        """The bytes of all files that are kept."""
        return self._bytes

    def _drop_old(self) -> None:
        now = time.monotonic()
        while self._files:
            name, (until, data) = next(iter(self._files.items()))
            if until > now and self._bytes <= self.max_bytes:
                return
            del self._files[name]
            self._bytes -= len(data)
