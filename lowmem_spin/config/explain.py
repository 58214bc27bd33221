"""What is wrong with a recipe, in one line: the field, its value and what to write instead."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError

from lowmem_spin.common.errors import quoted, shortened
from lowmem_spin.config.endpoint_fields import SecretError
from lowmem_spin.config.field_names import field_names, named_like
from lowmem_spin.config.loss_choices import Loss, OwnLoss
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.config.section import Section
from lowmem_spin.config.wanted import wanted


def explain(error: ValidationError) -> str:
    """The first problem of a recipe in one line, and which other fields have one."""
    problems = error.errors(include_url=False)
    alike = [problem for problem in problems if problem["loc"][:2] == problems[0]["loc"][:2]]
    first = max(alike, key=lambda problem: len(problem["loc"]))  # of what pydantic tried, what came furthest
    places, section = find_place(first["loc"])
    field = ".".join(map(shortened, places))
    if first["type"] == "extra_forbidden":
        line = f"{field}: {_unknown(places, section)}"
    elif first["type"] == "missing":
        line = f"{field}: missing; add it"
    elif first["type"] == "union_tag_invalid":
        known = ", ".join(choices_of(section))
        line = f"{field}.name: {quoted(first['input']['name'])} is unknown; known: {known}"
    elif not places:
        line = first["msg"].removeprefix("Value error, ")
    elif isinstance(first.get("ctx", {}).get("error"), SecretError):
        line = f"{field}: {first['msg'].removeprefix('Value error, ')}"
    elif first["type"] in ("model_type", "model_attributes_type"):
        line = f"{field}: {quoted(first['input'])} cannot be used: {_as_section(field, section, first['input'])}"
    else:
        tried = [problem for problem in alike if problem is not first and find_place(problem["loc"])[0] == places]
        words = [problem.get("ctx", {})["expected"] for problem in tried if problem["type"] == "literal_error"]
        why = " or ".join([wanted(first, _bounds(first["loc"])), *words])
        line = f"{field}: {quoted(first['input'])} cannot be used: {why}"
    return line + _others(first, problems)


def _others(first: Any, problems: Sequence[Any]) -> str:
    """The other fields with a problem; one of which pydantic has tried several kinds of value is named once."""
    separate = [one for one in problems if one["loc"][:2] != first["loc"][:2] or one["type"] == "extra_forbidden"]
    fields = list(dict.fromkeys(".".join(map(shortened, find_place(one["loc"])[0])) for one in separate if one is not first))
    what = "unknown" if all(one["type"] == "extra_forbidden" for one in [first, *separate]) else "wrong"
    return f" (also {what}: {_some(fields)})" if fields else ""


LISTED = 8  # fields that a line names at most


def _some(fields: Sequence[str]) -> str:
    return ", ".join(fields[:LISTED]) + (f" and {len(fields) - LISTED} more" if len(fields) > LISTED else "")


def _as_section(field: str, annotation: Any, given: Any) -> str:
    """How a section is written, for one that was given as a value."""
    if choices := choices_of(annotation):
        return f"write a name alone or {field}: {{name: ...}}; known: {', '.join(choices)}"
    section = annotation if isinstance(annotation, type) else _sections(annotation)[0]
    options = {name: one for name, one in section.model_fields.items() if name != "name"}
    main = next((name for name, one in options.items() if one.is_required()), next(iter(options)))
    value = shortened(given) if isinstance(given, str) else "..."
    return f"this is a section; write {field}: {{{main}: {value}}}, with the fields {_some(list(options))}"


def _bounds(loc: Sequence[int | str]) -> dict[str, Any]:
    """The bounds of the field at a place, by their names."""
    for end in reversed(range(len(loc))):
        fields = getattr(find_place(loc[:end])[1], "model_fields", {})
        if loc[end] in fields:
            found = ((name, one) for one in fields[loc[end]].metadata for name in ("ge", "gt", "le", "lt"))
            return {name: getattr(one, name) for name, one in found if hasattr(one, name)}
    return {}


def find_place(loc: Sequence[int | str]) -> tuple[list[str], Any]:
    """The names in a recipe that lead to a problem, and the annotation of the last that is known.

    pydantic also counts what it tried there, such as one of several types, or the section that a `name` chose.
    """
    places: list[str] = []
    annotation: Any = Recipe
    for place in map(str, loc):
        choices = choices_of(annotation)
        if place in choices:
            annotation = choices[place]
        elif place in (classes := {kind.__name__: kind for kind in _sections(annotation)}):  # where no `name` decides
            annotation = classes[place]
        elif not place.startswith(("constrained-", "list[", "literal[", "tagged-union[")) and place not in (
            "int",
            "str",
            "bool",
        ):
            places.append(place)
            known = getattr(annotation, "model_fields", {})
            annotation = known[place].annotation if place in known else annotation
            if (sections := _sections(annotation)) and len(get_args(annotation)) == 2 and type(None) in get_args(annotation):
                annotation = sections[0]  # one that may be null
    return places, annotation


def _sections(annotation: Any) -> list[type[Section]]:
    """Those among the types of a union."""
    return [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, Section)]


def choices_of(annotation: Any) -> dict[str, type[Section]]:
    """The sections of a union that a `name` chooses from, by that name; none of anything else."""
    found: dict[str, type[Section]] = {}
    for kind in get_args(annotation):
        if isinstance(kind, type) and issubclass(kind, Section):
            if "name" in kind.model_fields:
                found |= dict.fromkeys(get_args(kind.model_fields["name"].annotation), kind)
        else:
            found |= choices_of(kind)
    return found


def _unknown(places: list[str], section: type[Section]) -> str:
    """What to write instead of a field that a section does not have."""
    *parents, last = map(shortened, places)
    options = [name for name in section.model_fields if name != "name"]
    siblings = {name for name, other in choices_of(Loss).items() if last in other.model_fields}
    if section is OwnLoss:
        return f"a loss of your own takes it in options: {{{last}: ...}}"
    if section in get_args(Loss) and siblings == {"function"}:
        return f"it belongs to a loss of your own; write {'.'.join(parents)} as {{name: function, function: file.py:loss}}"
    if section in get_args(Loss) and siblings:
        loss = section().model_dump()
        written = ", ".join(f"{name}: {value}" for name, value in loss.items())
        has = f"{loss['name']} has {' and '.join(options)} instead ({last} belongs to {', '.join(sorted(siblings))})"
        return f"{has}; set the loss as a whole: --set '{'.'.join(parents)}={{{written}}}'"
    known_names = list(dict.fromkeys(field_names()))
    if ".".join(places) not in known_names and (elsewhere := named_like(last, known_names)):
        nearby = [name for name in elsewhere if name.split(".")[:-1] == places[:-1]]
        return f"unknown field; did you mean {' or '.join((nearby or elsewhere)[:3])}?"
    near = difflib.get_close_matches(last, section.model_fields, n=1)
    known = f"did you mean {near[0]}?" if near else f"known here: {', '.join(section.model_fields)}"
    return f"unknown field; {known}"
