"""Keys: the same for equal values, and refused where a value has no fixed form."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_spin.common.keys import canonical, digest, number, numbers

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(max_size=5), inner))


def test_keys_are_stable_and_refuse_what_has_no_fixed_form() -> None:
    spelled = hashlib.sha256(b'{"a":null,"b":[1,2.5]}').hexdigest()
    assert digest({"b": [1, 2.5], "a": None}) == digest({"a": None, "b": (1, 2.5)}) == spelled[:20]
    for value in ({1, 2}, float("nan"), object(), b"bytes", {1: "number as a name"}):
        with pytest.raises(TypeError):
            digest({"value": value})


@given(VALUES)
def test_what_is_plain_already_has_the_key_of_its_canonical_form(value: Any) -> None:
    spelled = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert digest(value) == hashlib.sha256(spelled.encode()).hexdigest()[:20]


def test_what_is_not_plain_is_refused_however_deep_it_is() -> None:
    for value in (float("inf"), {None: 1}, {True: 1}, frozenset(), 1j):
        for nested in ([value], {"a": (1, [value])}, {"a": {"b": value}, "c": 1}):
            with pytest.raises(TypeError, match=r"deterministic|text names"):
                digest(nested)


@given(st.lists(st.text()), st.lists(VALUES, max_size=3))
def test_many_numbers_at_once_are_those_of_one_after_the_other(names: list[str], parts: list[Any]) -> None:
    assert list(numbers(names, *parts)) == [number(*parts, name) for name in names]
