"""The kinds of requests, and how many of each there are."""

from __future__ import annotations

from . import admin, clients
from .load import Kinds, Load

KINDS: Kinds = {
    "picture": (300, Load.picture),
    "deadline": (30, Load.deadline),
    "crowd": (5, Load.crowd),
    "malformed": (270, clients.malformed),
    "noise": (60, clients.noise),
    "leaves": (120, clients.leaves),
    "half": (20, clients.half),
    "drips": (15, clients.drips),
    "pipelined": (20, clients.pipelined),
    "unread": (20, clients.unread),
    "state": (90, clients.state),
    "swap": (20, admin.swap),
    "unload": (15, admin.unload),
    "spoil": (10, admin.spoil),
    "reload at once": (5, admin.reload_at_once),
}
