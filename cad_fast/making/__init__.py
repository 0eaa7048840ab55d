"""Edits in one call, with every step that leads to them."""

from .calls import PRESET as PRESET
from .calls import amplify as amplify
from .calls import amplify_each as amplify_each
from .calls import erase as erase
from .calls import erase_each as erase_each
from .concepts import prompts_of as prompts_of
