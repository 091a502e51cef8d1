"""What a file holds, with one thing in it wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

JUNK: list[Any] = [None, True, -1, 10**400, math.nan, math.inf, "", "x", "\ud800", [], [7], {}, {"x": 1}]
"""Values that JSON can have, in the place of others."""


def twisted(content: Any, way: list[int], junk: Any, how: str) -> Any:
    """What a file holds, with the value at the end of a way through it replaced, renamed or left out."""
    if not isinstance(content, dict | list) or not content or not way:
        return junk
    names = list(content) if isinstance(content, dict) else list(range(len(content)))
    name = names[way[0] % len(names)]
    inner = content[name]
    if isinstance(content, list):
        return [*content[:name], twisted(inner, way[1:], junk, how), *content[name + 1 :]]
    if len(way) > 1 and isinstance(inner, dict | list) and inner:
        return {**content, name: twisted(inner, way[1:], junk, how)}
    kept = {other: x for other, x in content.items() if other != name}
    return {"out": kept, "renamed": {**kept, 7: inner}, "replaced": {**content, name: junk}}[how]


def ways(content: Any) -> Iterator[list[int]]:
    """The way to every value in what a file holds."""
    for number, inner in enumerate(content.values() if isinstance(content, dict) else content):
        yield [number]
        if isinstance(inner, dict | list):
            yield from ([number, *rest] for rest in ways(inner))


def every_twist(content: Any) -> Iterator[Any]:
    """What a file holds, with each value in it left out and replaced by all that JSON can have."""
    for way in ways(content):
        yield twisted(content, way, None, "out")
        yield from (twisted(content, way, junk, "replaced") for junk in JUNK)
