"""cad_fast: component attribution in diffusion models, fast.

Score which weights of a diffusion model express a concept, remove or amplify them, and measure what it costs the
other concepts (CAD, arXiv 2412.02542).

The public names stand in ``__init__.pyi``. Each is imported on first use, since torch and diffusers take seconds.
"""

import lazy_loader

from .version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
