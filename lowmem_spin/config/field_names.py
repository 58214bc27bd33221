"""A recipe's fields by the names that a person writes in Python: alpha for game.alpha, where there is but one alpha."""

import difflib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from lowmem_spin.common.errors import InputError, quoted
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.config.section import Section


def field_names(section: type[Section] = Recipe, before: str = "") -> Iterator[str]:
    """The dotted names of all fields, in the recipe's order; those of every choice where a `name` chooses."""
    for name, field in section.model_fields.items():
        yield before + name
        for inner in _sections(field.annotation):
            yield from field_names(inner, f"{before}{name}.")


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


SHORT = {
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "max_tokens": "max_new_tokens",
    "rank": "r",
}
"""{what people call a field: its name}"""


def named_like(given: str, known: Iterable[str]) -> list[str]:
    """Those of the dotted names that end in `given`, or in what that is short for."""
    return [name for name in known if name.rpartition(".")[2] == SHORT.get(given, given)]


def full_name(given: str) -> str:
    """The dotted name of a field, which may be given without its sections if no other field ends like it.

    Raises:
        InputError: there is none, or several.
    """
    if "." in given or given in Recipe.model_fields:
        return given
    known = list(dict.fromkeys(field_names()))
    found = [name for name in known if name.endswith(f".{given}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{given}: this is {' or '.join(found)}; write settings={{{found[0]!r}: ...}}")
    near = [SHORT[given]] if given in SHORT else difflib.get_close_matches(given, {n.rpartition(".")[2] for n in known}, n=1)
    raise InputError(f"{quoted(given)}: no field of a recipe; {f'did you mean {near[0]}?' if near else _LISTED}")


_LISTED = "`lowmem-spin recipe --schema` lists them all"


def plain_values(value: Any, said: str) -> Any:
    """A value as a recipe file has it, from what Python code has: tuples, paths, numpy's numbers and arrays.

    Raises:
        InputError: it is something else; `said` begins the line.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): plain_values(one, f"{said}.{name}") for name, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain_values(one, said) for one in value]
    if value == math.inf:
        return "inf"
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise InputError(f"{said}: {quoted(value)} cannot be used: give numbers, text, lists or dicts")
