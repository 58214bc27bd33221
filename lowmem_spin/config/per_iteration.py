"""Values of a recipe that are given once, or as a list with one for each iteration."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field

from lowmem_spin.config.bounds import EPOCHS, SINGLE

Number = TypeVar("Number", float, int)

Positive = Annotated[float, Field(gt=0, le=SINGLE)]
Count = Annotated[int, Field(ge=1, le=EPOCHS)]


def value_at(value: Number | list[Number], t: int) -> Number:
    """What iteration t has of it."""
    return value[t] if isinstance(value, list) else value


def values_at(values: Mapping[str, Any], t: int) -> dict[str, Any]:
    """The same fields with what iteration t has of each."""
    return {name: value[t] if isinstance(value, list) else value for name, value in values.items()}


def check_lengths(values: Mapping[str, Any], iterations: int) -> None:
    """Refuse lists of another length than the game.

    Args:
        values: by the names of the fields in a recipe.
        iterations: of the game.

    Raises:
        ValueError: one line: field, value, remedy.
    """
    for name, value in values.items():
        if isinstance(value, list) and len(value) != iterations:
            raise ValueError(f"{name}: {len(value)} numbers for {iterations} iterations; give one per iteration")
