"""The kinds of requests, and how many of each there are."""

from __future__ import annotations

from . import admin, clients
from .load import Kinds, Load

KINDS: Kinds = {
    "picture": (550, Load.picture),
    "deadline": (20, Load.deadline),
    "crowd": (10, Load.crowd),
    "malformed": (150, clients.malformed),
    "noise": (20, clients.noise),
    "leaves": (90, clients.leaves),
    "half": (15, clients.half),
    "drips": (10, clients.drips),
    "pipelined": (10, clients.pipelined),
    "unread": (10, clients.unread),
    "state": (65, clients.state),
    "swap": (20, admin.swap),
    "unload": (15, admin.unload),
    "spoil": (10, admin.spoil),
    "reload at once": (5, admin.reload_at_once),
}
