"""Ways to spoil a file: JSON with other values, bytes changed or cut, headers that say something else."""

from __future__ import annotations

import copy
import json
import struct

STRANGE = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, -0.5, "", "x" * 300, "../x", "\x00", "\ud800", [], {}]
STRANGE += [[1, 2], {"a": []}, "NaN", [[[[]]]], "0", 1.0, [2**40, 2**40], [3, 3, 3, 3]]


def strange_json(rng, data):
    """A config with one or two of its values (or keys) replaced, removed, doubled or swapped."""
    config = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        places = []

        def walk(value, places=places):
            for key in value if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                if isinstance(value[key], dict | list):
                    walk(value[key])

        walk(config)
        parent, key = rng.choice(places)
        action = rng.randrange(4)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, dict):
            parent[rng.choice(["..", "first.x", "conv", "", "a/b", "n"])] = parent.pop(key)
        elif action == 2:
            other, place = rng.choice(places)
            if place in (other if isinstance(other, dict) else range(len(other))):
                parent[key] = copy.deepcopy(other[place])
        else:
            parent[key] = copy.deepcopy(rng.choice(STRANGE))
        if not config:
            break
    return json.dumps(config).encode()


def strange_bytes(rng, data):
    """Bytes changed, cut out, doubled, or the file cut short."""
    data = bytearray(data)
    action = rng.randrange(5)
    at = rng.randrange(len(data))
    if action == 0:
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif action == 1:
        del data[at:]
    elif action == 2:
        del data[at : at + rng.randrange(1, 30)]
    elif action == 3:
        data[at:at] = data[rng.randrange(len(data)) :][: rng.randrange(1, 60)]
    else:
        data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def strange_tensors(rng, data):
    """The header of the safetensors file with values replaced, its length made right again."""
    length = int.from_bytes(data[:8], "little")
    header = strange_json(rng, data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def strange_metadata(rng, data):
    """The JSON that the header of the safetensors file holds as a text, with values replaced."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["cad_fast"] = strange_json(rng, header["__metadata__"]["cad_fast"]).decode()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
