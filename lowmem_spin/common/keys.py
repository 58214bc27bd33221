"""Keys: the hash of what was asked for.

A stage is known by its key before it runs, so a finished stage is recognised and never repeated.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from json.encoder import encode_basestring_ascii
from typing import Any

PLAIN = {str, int, bool, type(None)}
LENGTH = 20  # hex digits, 80 bits: no collision among any number of stages a person will run

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def canonical(value: Any) -> Any:
    """`value` with only JSON types and one spelling each; refuses what has no deterministic form.

    Raises:
        TypeError: for sets, objects, bytes, NaN and anything else whose text could change between runs.
    """
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"a key needs text names, got {sorted(map(repr, value))}")
        return {name: canonical(value[name]) for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} has no deterministic form, so it cannot be in a key")


def digest(value: Any) -> str:
    """A short stable hash of nested dicts, lists, text and finite numbers."""
    text = _ENCODER.encode(value if _is_plain(value) else canonical(value))
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def _is_plain(value: Any) -> bool:
    """Whether `canonical` would only order its names, as JSON does itself: seen in half the time."""
    kind = type(value)
    if kind is dict:
        return all(type(name) is str for name in value) and all(map(_is_plain, value.values()))
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))
    return kind in PLAIN or (kind is float and math.isfinite(value))


def is_key(name: Any) -> bool:
    """Whether a file's name, or what somebody's file gives as one, is a key."""
    return isinstance(name, str) and len(name) == LENGTH and set(name) <= set("0123456789abcdef")


def number(*parts: Any) -> int:
    """A 63-bit integer that depends on `parts` alone: a seed, or a place in a shuffled order."""
    text = _ENCODER.encode(parts if _is_plain(parts) else canonical(parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numbers(names: Iterable[str], *parts: Any) -> Iterator[int]:
    """number(*parts, name) of each name, in a quarter of the time."""
    opened = _ENCODER.encode(canonical(parts))[:-1] + ("," if parts else "")
    begun = hashlib.blake2b(opened.encode(), digest_size=8)
    for name in names:
        one = begun.copy()
        one.update(f"{encode_basestring_ascii(name)}]".encode())
        yield int.from_bytes(one.digest(), "big") >> 1
