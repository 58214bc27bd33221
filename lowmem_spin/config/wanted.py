"""What a value has to be, in our own words: pydantic's would tell a person of its types and parsers."""

from collections.abc import Mapping
from typing import Any

from lowmem_spin.config.bounds import ABSURD

WHOLE = {"int_type", "int_parsing", "int_parsing_size", "int_from_float"}
NUMBERS = {"float_type", "float_parsing", "finite_number", *WHOLE}
BOUNDS = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}
"""{pydantic's type of error: the bound that was passed}"""
LISTS = ("list_type", "tuple_type", "set_type")
TRUTH = ("bool_type", "bool_parsing")
TEXT = "string_type"


def wanted(problem: Mapping[str, Any], bounds: Mapping[str, Any] | None = None, absurd: float = ABSURD) -> str:
    """What to write instead of a value, without a full stop.

    Args:
        problem: as pydantic's `ValidationError.errors()` has it.
        bounds: of the field, by the names ge, gt, le and lt; one that was passed is in the problem.
        absurd: the least bound that is there for its own sake, and is not named unless it was passed.
    """
    kind, context = problem["type"], problem.get("ctx", {})
    limits = dict(bounds or {}) | ({BOUNDS[kind]: context[BOUNDS[kind]]} if kind in BOUNDS else {})
    if kind in BOUNDS and isinstance(limit := context.get("le"), int | float) and limit >= absurd:
        return f"the most is {limit:,}, which is far more than anybody means"
    if kind in NUMBERS or kind in BOUNDS:
        whole = kind in WHOLE or (kind in BOUNDS and isinstance(context[BOUNDS[kind]], int))
        return f"write {'a whole number' if whole else 'a number'}{_range(limits, absurd)}"
    if kind == "literal_error":
        return f"write {context['expected']}"
    if kind in TRUTH:
        return "write true or false"
    if kind in LISTS:
        return "write a list, as [value, value]"
    if kind == "dict_type":
        return "write it as {name: value}"
    if kind == TEXT:
        quote = isinstance(problem["input"], int | float)  # revision: 0123, split: no
        return "write text" + ", in quotes" * quote
    return problem["msg"].removeprefix("Value error, ")


def _range(limits: Mapping[str, Any], absurd: float) -> str:
    """from 0 to 1, above 0, of at least 1; a bound that nobody means to reach is not named."""
    low, above, most, below = (limits.get(name) for name in ("ge", "gt", "le", "lt"))
    most = None if most is not None and most >= absurd else most
    if low is not None and most is not None:
        return f" from {_text(low)} to {_text(most)}"
    parts = [] if low is None else [f"of at least {_text(low)}"]
    parts += [] if above is None else [f"above {_text(above)}"]
    parts += [] if most is None else [f"of at most {_text(most)}"]
    parts += [] if below is None else [f"below {_text(below)}"]
    return f" {' and '.join(parts)}" if parts else ""


def _text(limit: Any) -> str:
    return f"{limit:g}" if isinstance(limit, float) else f"{limit:,}"
