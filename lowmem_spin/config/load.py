"""Recipes as files: found, read, overridden, and what is wrong with them in one line."""

import difflib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from lowmem_spin.common.errors import InputError, quoted, shortened
from lowmem_spin.common.files import reading
from lowmem_spin.config.bounds import ABSURD
from lowmem_spin.config.endpoint_fields import SecretError
from lowmem_spin.config.field_names import field_names, named_like
from lowmem_spin.config.loss_choices import Loss, OwnLoss
from lowmem_spin.config.naming import of_settings, with_suffix
from lowmem_spin.config.paths import expanded
from lowmem_spin.config.places import RECIPE, put_in_place
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.config.section import Section
from lowmem_spin.config.yaml_text import LARGEST, YAMLTextError, read_yaml

PACKAGE = Path(__file__).parents[1]
BUNDLED = [PACKAGE / "recipes", PACKAGE.parent / "recipes"]  # of a wheel, of a clone


@dataclass(frozen=True)
class GivenRecipe:
    """A recipe that is no file: its sections. What it names is looked for in the working directory."""

    content: Mapping[str, Any]
    name: str = "game"
    parent: Path = Path()

    @property
    def stem(self) -> str:
        return self.name

    def __str__(self) -> str:
        return "the recipe"


RecipeFile = Path | GivenRecipe


def find_recipe(name: str) -> Path:
    """The recipe file `name`: a path, or the name of one that comes with the package."""
    try:
        path = Path(expanded(name))
    except ValueError as error:
        raise InputError(f"recipe {quoted(name)}: {error}") from None
    if path.is_dir():
        raise InputError(f"recipe {quoted(name)}: this is a folder; give the YAML file in it")
    shipped = [folder / f"{name.removesuffix('.yaml')}.yaml" for folder in BUNDLED]
    for candidate in [path, *(shipped if path.name == name else [])]:
        if candidate.is_file():
            return candidate
    known = [file.stem for folder in BUNDLED for file in folder.glob("*.yaml")]
    near = difflib.get_close_matches(path.name.removesuffix(".yaml"), known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "`lowmem-spin recipes` lists those that come along"
    raise InputError(f"recipe {quoted(name)}: no such file or shipped recipe; {remedy}")


def load_recipe(path: RecipeFile, overrides: Sequence[str] = (), variant: str | None = None) -> Recipe:
    """Read a recipe, apply `a.b=value` overrides, and check it.

    Its folder's name says what was set, unless output.dir was: two games then do not meet in one folder.

    A file may have `variants`, games of one family: {name: {a.b: value}}. Then one of them has to be named.

    Raises:
        InputError: one line that names the field, the value and the remedy.
    """
    content = _read(path)
    if isinstance(path, Path) and path.name == RECIPE:
        put_in_place(content, path.parent)
    known = _variants(path, content.pop("variants", {}))
    if variant is None and known:
        raise InputError(f"{path}: has the variants {', '.join(known)}; play them all with `lowmem-spin sweep {path}`")
    if variant is not None and variant not in known:
        there = f"known here: {', '.join(known)}" if known else "the recipe has none"
        raise InputError(f"{path}: variant {quoted(variant)} is unknown; {there}")
    for name, value in known[variant].items() if variant is not None else ():
        _set(content, str(name), value, f"{path}: variants.{variant}")
    output = content.setdefault("output", {})
    own = output.pop("dir", None) if isinstance(output, dict) else None
    settings = dict(_override(content, override) for override in overrides)
    _read_template(content, path.parent)
    output = content["output"]
    if isinstance(output, dict) and output.get("dir") is None:
        own = f"runs/{path.stem}" if own is None else own
        output["dir"] = with_suffix(own, of_settings(settings)) if isinstance(own, str) and "\0" not in own else own
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from None


def _read_template(content: dict[str, Any], folder: Path) -> None:
    """Put a chat template's text where its .jinja file is named, so that the recipe says the same anywhere."""
    model = content.get("model")
    if not isinstance(model, dict):
        return
    name = model.get("chat_template")
    if not isinstance(name, str) or not name.endswith(".jinja") or "{" in name:
        return
    try:
        path = expanded(name)
    except ValueError as error:
        raise InputError(f"model.chat_template: {error}") from None
    file = next((place for place in (folder / path, Path(path)) if place.is_file()), None)
    if file is None:
        raise InputError(f"model.chat_template: no file {quoted(name)}, neither beside the recipe nor from here")
    try:
        content["model"] = {**model, "chat_template": file.read_text(encoding="utf-8")}
    except UnicodeDecodeError:
        raise InputError(f"model.chat_template: {quoted(name)} is not text in UTF-8; save it as such") from None


def variants(path: RecipeFile) -> list[str]:
    """Names of the games that a recipe file is of; none if it is of one."""
    return list(_variants(path, _read(path).get("variants", {})))


def _variants(path: RecipeFile, found: Any) -> dict[str, dict[str, Any]]:
    fine = isinstance(found, dict) and all(isinstance(changes, dict) for changes in found.values())
    if not fine:
        raise InputError(f"{path}: variants: write them as `name: {{field: value, field: value}}`, one per line")
    return {str(name): changes for name, changes in found.items()}


def _read(path: RecipeFile) -> dict[str, Any]:
    if isinstance(path, GivenRecipe):
        return deepcopy(dict(path.content))
    try:
        content = deepcopy(_parsed(_beginning(path)))
    except (YAMLTextError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        problem = "is empty" if content is None else "holds no fields"
        raise InputError(f"{path}: {problem}; write a recipe as `section: {{field: value}}` lines")
    return content


_parsed = lru_cache(8)(read_yaml)  # the games of a sweep are of one file


def _beginning(path: Path) -> str:
    """As much of a file as a recipe may have, and a character more."""
    with reading(path), path.open(encoding="utf-8") as file:
        return file.read(LARGEST + 1)


def _override(content: dict[str, Any], override: str) -> tuple[str, Any]:
    """Put it where it belongs; the field and its value."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise InputError(f"--set {quoted(override)}: write it as field=value, for instance game.alpha=0.9")
    try:
        value = read_yaml(text)
    except YAMLTextError as error:
        raise InputError(f"--set {quoted(override)}: the value is not valid YAML ({error}); quote it") from None
    _set(content, name, value, f"--set {quoted(override)}")
    return name, value


def _set(content: dict[str, Any], name: str, value: Any, said: str) -> None:
    """Put a value where `a.b` is; `said` begins the error message. What is chosen by a name alone becomes a section."""
    *parents, last = name.split(".")
    for depth, parent in enumerate(parents, start=1):
        there = content.setdefault(parent, {})
        if isinstance(there, str) and there in _choices(_places(parents[:depth])[1]):
            there = content[parent] = {"name": there}
        if not isinstance(there, dict):
            raise InputError(
                f"{said}: {shortened(parent)} is {quoted(there)}, which has no fields; set {shortened(parent)} as a whole"
            )
        content = there
    content[last] = value


def explain(error: ValidationError) -> str:
    """The first problem of a recipe in one line, and which other fields have one."""
    problems = error.errors(include_url=False)
    alike = [problem for problem in problems if problem["loc"][:2] == problems[0]["loc"][:2]]
    first = max(alike, key=lambda problem: len(problem["loc"]))  # of what pydantic tried, what came furthest
    places, section = _places(first["loc"])
    field = ".".join(map(shortened, places))
    if first["type"] == "extra_forbidden":
        line = f"{field}: {_unknown(places, section)}"
    elif first["type"] == "missing":
        line = f"{field}: missing; add it"
    elif first["type"] == "union_tag_invalid":
        known = ", ".join(_choices(section))
        line = f"{field}.name: {quoted(first['input']['name'])} is unknown; known: {known}"
    elif not places:
        line = first["msg"].removeprefix("Value error, ")
    elif isinstance(first.get("ctx", {}).get("error"), SecretError):
        line = f"{field}: {first['msg'].removeprefix('Value error, ')}"
    elif first["type"] in ("model_type", "model_attributes_type"):
        line = f"{field}: {quoted(first['input'])} cannot be used: {_as_section(field, section, first['input'])}"
    else:
        tried = [problem for problem in alike if problem is not first and _places(problem["loc"])[0] == places]
        words = [problem.get("ctx", {})["expected"] for problem in tried if problem["type"] == "literal_error"]
        why = " or ".join([_why(first).partition(", unable to ")[0], *words]) if words else _why(first)
        line = f"{field}: {quoted(first['input'])} cannot be used: {why}"
    return line + _others(first, problems)


def _others(first: Any, problems: Sequence[Any]) -> str:
    """The other fields with a problem; one of which pydantic has tried several kinds of value is named once."""
    separate = [one for one in problems if one["loc"][:2] != first["loc"][:2] or one["type"] == "extra_forbidden"]
    fields = list(dict.fromkeys(".".join(map(shortened, _places(one["loc"])[0])) for one in separate if one is not first))
    what = "unknown" if all(one["type"] == "extra_forbidden" for one in [first, *separate]) else "wrong"
    return f" (also {what}: {_some(fields)})" if fields else ""


LISTED = 8  # fields that a line names at most


def _some(fields: Sequence[str]) -> str:
    return ", ".join(fields[:LISTED]) + (f" and {len(fields) - LISTED} more" if len(fields) > LISTED else "")


def _as_section(field: str, annotation: Any, given: Any) -> str:
    """How a section is written, for one that was given as a value."""
    if choices := _choices(annotation):
        return f"write a name alone or {field}: {{name: ...}}; known: {', '.join(choices)}"
    section = annotation if isinstance(annotation, type) else _sections(annotation)[0]
    options = {name: one for name, one in section.model_fields.items() if name != "name"}
    main = next((name for name, one in options.items() if one.is_required()), next(iter(options)))
    value = shortened(given) if isinstance(given, str) else "..."
    return f"this is a section; write {field}: {{{main}: {value}}}, with the fields {_some(list(options))}"


def _why(problem: Any) -> str:
    """What pydantic says of a value, and more where that is of no help."""
    limit = problem.get("ctx", {}).get("le")
    if isinstance(limit, int | float) and limit >= ABSURD:
        return f"the most is {limit:,}, which is far more than anybody means"
    if problem["type"] == "string_type" and isinstance(problem["input"], int | float):  # revision: 0123, split: no
        return f"{problem['msg']}; put it in quotes"
    if problem["type"] == "dict_type":
        return "write it as {name: value}"
    return problem["msg"].removeprefix("Value error, ")


def _places(loc: Sequence[int | str]) -> tuple[list[str], Any]:
    """The names in a recipe that lead to a problem, and the annotation of the last that is known.

    pydantic also counts what it tried there, such as one of several types, or the section that a `name` chose.
    """
    places: list[str] = []
    annotation: Any = Recipe
    for place in map(str, loc):
        choices = _choices(annotation)
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


def _choices(annotation: Any) -> dict[str, type[Section]]:
    """The sections of a union that a `name` chooses from, by that name; none of anything else."""
    found: dict[str, type[Section]] = {}
    for kind in get_args(annotation):
        if isinstance(kind, type) and issubclass(kind, Section):
            if "name" in kind.model_fields:
                found |= dict.fromkeys(get_args(kind.model_fields["name"].annotation), kind)
        else:
            found |= _choices(kind)
    return found


def _unknown(places: list[str], section: type[Section]) -> str:
    """What to write instead of a field that a section does not have."""
    *parents, last = map(shortened, places)
    options = [name for name in section.model_fields if name != "name"]
    siblings = {name for name, other in _choices(Loss).items() if last in other.model_fields}
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
