"""All families, whose builders register themselves when their file is imported."""

from . import audio, cosmos, dits, hunyuan, joint, kandinsky, pag, unets, video  # noqa: F401
from .family import FAMILIES, Family

__all__ = ["FAMILIES", "Family"]
