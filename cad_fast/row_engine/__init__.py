"""Run a denoiser with one ablation per row of the batch; its weights are neither changed nor copied."""

from .engine import Gradients, RowEngine, rows

__all__ = ["Gradients", "RowEngine", "rows"]
