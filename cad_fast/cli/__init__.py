"""The command line ``cad-fast``: ``main`` runs one command, each in a module of its own."""

from .main import build_parser, main

__all__ = ["build_parser", "main"]
