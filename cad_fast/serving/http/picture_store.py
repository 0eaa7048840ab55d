"""Pictures as PNG, and those kept for a while to be fetched by URL."""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections import OrderedDict

from PIL import Image


def png(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


class PictureStore:
    """PNGs in memory under ids that cannot be guessed, at most ``max_bytes`` of them, each for ``seconds``."""

    def __init__(self, max_bytes: int = 64 * 2**20, seconds: float = 600.0) -> None:
        self.max_bytes, self.seconds = max_bytes, seconds
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Keep a file; the oldest go when there are too many bytes. Returns its id."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._files[name] = (time.monotonic() + self.seconds, data)
            self._bytes += len(data)
            self._drop_old()
        return name

    def get(self, name: str) -> bytes | None:
        """The file, or None when there is none (any more)."""
        with self._lock:
            self._drop_old()
            found = self._files.get(name)
        return None if found is None else found[1]

    def __len__(self) -> int:
        return len(self._files)

    def _drop_old(self) -> None:
        now = time.monotonic()
        while self._files:
            name, (until, data) = next(iter(self._files.items()))
            if until > now and self._bytes <= self.max_bytes:
                return
            del self._files[name]
            self._bytes -= len(data)
