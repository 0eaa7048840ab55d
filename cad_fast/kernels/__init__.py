"""The Triton kernels. A wheel has them in this folder; in a checkout they are in kernels/ at the top."""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2] / "kernels"
if (_checkout / "configs.py").exists() and not (Path(__file__).parent / "configs.py").exists():
    __path__.append(str(_checkout))
