"""How a server is set up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """``None`` stands for the pipeline's own: its name, size, and the defaults of its call.

    Seconds: ``batch_timeout`` (the first picture of an idle server waits so long for company), ``deadline`` (a request
    that takes longer is ended), ``drain`` (on shutdown, what was accepted may take so long), ``keep_pictures`` (those
    fetched by URL). ``admin_token``: None leaves the admin routes out. ``picture_urls``: whether answers may be URLs,
    which only the process that drew the pictures can answer.
    Raises ValueError naming the setting that is out of range.
    """

    model: str = "model"
    max_batch_size: int = 8
    batch_timeout: float = 0.005
    max_queue: int = 64
    deadline: float = 120.0
    drain: float = 30.0
    sizes: tuple[str, ...] | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    max_steps: int = 100
    max_n: int = 8
    max_prompt: int = 1000
    max_edits: int = 8
    max_strength: float = 4.0
    body_bytes: int = 64 * 1024
    keep_pictures: float = 600.0
    keep_bytes: int = 64 * 2**20
    picture_urls: bool = True
    admin_token: str | None = None
    allowed_hosts: tuple[str, ...] | None = None
    warm_up: bool = True

    def __post_init__(self) -> None:
        counts = ("max_batch_size", "max_queue", "steps", "max_steps", "max_n", "max_prompt", "body_bytes")
        least = dict.fromkeys(counts, 1) | {"max_edits": 0, "keep_bytes": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} is {value}, expected at least {low}")
        for name in ("batch_timeout", "drain", "keep_pictures", "max_strength", "guidance_scale"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}, expected at least 0, finite")
        if not 0 < self.deadline < math.inf:
            raise ValueError(f"deadline is {self.deadline}, expected seconds, more than 0, finite")

    @property
    def served_name(self) -> str:
        """The model's name as clients see it: of a local folder the last part alone."""
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model
