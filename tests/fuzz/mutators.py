"""Ways to damage bytes and JSON, each by a seeded stream."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS = [0, -1, 1, 2, 255, 2**31, 2**31 - 1, 2**53, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308]
ODD = [*NUMBERS, float("nan"), float("inf"), None, True, "", "a", "1", [], {}, [1, 2], {"a": 1}]
TEXTS = ["\0", "\x1b[31m", "../../x", "/etc/passwd", "x" * 5000, "ü∕\u202e", "=1+1", "\ud800"]
VALUES = [*ODD, *TEXTS]


def flip(stream: Random, data: bytes) -> bytes:
    """Turn one bit."""
    if not data:
        return data
    changed = bytearray(data)
    changed[stream.randrange(len(data))] ^= 1 << stream.randrange(8)
    return bytes(changed)


def flips(stream: Random, data: bytes) -> bytes:
    """Turn some bits."""
    for _ in range(stream.randrange(2, 30)):
        data = flip(stream, data)
    return data


def truncate(stream: Random, data: bytes) -> bytes:
    """Cut the end off."""
    return data[: stream.randrange(len(data) + 1)]


def zeros(stream: Random, data: bytes) -> bytes:
    """Set a piece to zero."""
    start = stream.randrange(len(data) + 1)
    length = min(stream.choice([1, 8, 64, 512, 4096]), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def spread(stream: Random, data: bytes) -> bytes:
    """Set eight bytes to ones: a size or an address beyond everything."""
    start = stream.randrange(max(1, len(data) - 8))
    return data[:start] + b"\xff" * 8 + data[start + 8 :]


def moved(stream: Random, data: bytes) -> bytes:
    """Put a piece in another place."""
    first, second = stream.randrange(len(data) + 1), stream.randrange(len(data) + 1)
    piece = data[first : first + stream.choice([1, 8, 512])]
    return data[:second] + piece + data[second + len(piece) :]


def longer(stream: Random, data: bytes) -> bytes:
    """Add bytes in the middle or at the end."""
    place = stream.choice([len(data), stream.randrange(len(data) + 1)])
    return data[:place] + stream.randbytes(stream.randrange(1, 100)) + data[place:]


BYTES: tuple[Callable[[Random, bytes], bytes], ...] = (
    flip,
    flips,
    truncate,
    zeros,
    spread,
    moved,
    longer,
)


def damaged_bytes(stream: Random, data: bytes) -> tuple[bytes, str]:
    """Return damaged bytes, and how they were damaged."""
    how = stream.choice(BYTES)
    return how(stream, data), how.__name__


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to all values within a JSON value, but itself."""
    found: list[tuple[Any, ...]] = []
    if not isinstance(value, dict | list):
        return found
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        found += [(*path, key), *places(item, (*path, key))]
    return found


def damaged_json(stream: Random, value: Any) -> tuple[Any, str]:
    """Return a JSON value with one place replaced, removed, renamed or nested, and what it was."""
    value = copy.deepcopy(value)
    paths = places(value)
    if not paths or stream.random() < 0.03:
        return stream.choice(VALUES), "all of it"
    path = stream.choice(paths)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    how = stream.choice(["replace", "replace", "replace", "remove", "rename", "nest"])
    if how == "replace":
        parent[path[-1]] = stream.choice(VALUES)
    elif how == "remove":
        del parent[path[-1]]
    elif how == "nest":
        for _ in range(stream.choice([1, 3, 200])):
            parent[path[-1]] = [parent[path[-1]]]
    elif isinstance(parent, dict):
        parent[stream.choice(TEXTS[:-1])] = parent.pop(path[-1])
    else:
        parent.append(parent[path[-1]])
    return value, f"{how} {'.'.join(map(str, path))[:80]}"


def damaged_text(stream: Random, text: bytes) -> tuple[bytes, str]:
    """Return damaged JSON, or other text, and how it was damaged."""
    if stream.random() < 0.25 or text[:1] not in b"{[":
        return damaged_bytes(stream, text)
    if stream.random() < 0.05:
        return b"[" * 100_000, "deep"
    if stream.random() < 0.05:
        return b'{"a": ' + b"9" * 10_000 + b"}", "a huge integer"
    value, how = damaged_json(stream, json.loads(text))
    return json.dumps(value).encode(), how
