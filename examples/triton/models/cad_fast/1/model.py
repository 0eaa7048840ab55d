"""The model of cad_fast for Triton's Python backend; its arguments are in config.pbtxt."""

from cad_fast.serving.integrations.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
