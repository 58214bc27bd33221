"""Keys: the same for equal values, and refused where a value has no fixed form."""

import hashlib

import pytest

from lowmem_spin.common.keys import digest


def test_keys_are_stable_and_refuse_what_has_no_fixed_form() -> None:
    spelled = hashlib.sha256(b'{"a":null,"b":[1,2.5]}').hexdigest()
    assert digest({"b": [1, 2.5], "a": None}) == digest({"a": None, "b": (1, 2.5)}) == spelled[:20]
    for value in ({1, 2}, float("nan"), object(), b"bytes", {1: "number as a name"}):
        with pytest.raises(TypeError):
            digest({"value": value})
