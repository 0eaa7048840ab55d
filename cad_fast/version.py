"""The package's version, and those of what its results depend on."""

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Return the versions of cad_fast, torch, diffusers and Python that run now."""
    import platform
    from importlib import metadata

    import torch

    return {
        "cad_fast": __version__,
        "torch": torch.__version__,
        "diffusers": metadata.version("diffusers"),
        "python": platform.python_version(),
    }
