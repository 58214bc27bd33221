"""Recipes as files: found, read, overridden, and what is wrong with them in one line."""

import difflib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lowmem_spin.common.errors import InputError, quoted, shortened
from lowmem_spin.common.files import reading
from lowmem_spin.config.explain import choices_of, explain, find_place
from lowmem_spin.config.naming import of_settings, with_suffix
from lowmem_spin.config.paths import expanded
from lowmem_spin.config.places import RECIPE, put_in_place
from lowmem_spin.config.recipe import Recipe
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
    beside = [file.name for file in path.parent.glob("*.yaml")]  # mine.yaml, where mine.yml is asked for
    near = difflib.get_close_matches(path.name.removesuffix(".yaml"), known, n=1)
    near = [str(path.with_name(one)) for one in difflib.get_close_matches(path.name, beside, n=1, cutoff=0.8)] or near
    remedy = f"did you mean {near[0]}?" if near else "`lowmem-spin recipes` lists the shipped ones"
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
        line = explain(error)
        of_setting = any(line.startswith((f"{name}:", f"{name}.")) for name in settings)  # which is not in the file
        raise InputError(line if of_setting else f"{path}: {line}") from None


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
        raise InputError(
            f"model.chat_template: no file {quoted(name)}, neither next to the recipe nor in the working directory"
        )
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
_parsed_value = lru_cache(1024)(read_yaml)  # and vary few values


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
        value = deepcopy(_parsed_value(text))
    except YAMLTextError as error:
        raise InputError(f"--set {quoted(override)}: the value is not valid YAML ({error}); quote it") from None
    _set(content, name, value, f"--set {quoted(override)}")
    return name, value


def _set(content: dict[str, Any], name: str, value: Any, said: str) -> None:
    """Put a value where `a.b` is; `said` begins the error message. What is chosen by a name alone becomes a section."""
    *parents, last = name.split(".")
    for depth, parent in enumerate(parents, start=1):
        there = content.setdefault(parent, {})
        if isinstance(there, str) and there in choices_of(find_place(parents[:depth])[1]):
            there = content[parent] = {"name": there}
        if not isinstance(there, dict):
            raise InputError(
                f"{said}: {shortened(parent)} is {quoted(there)}, which has no fields; set {shortened(parent)} as a whole"
            )
        content = there
    content[last] = value
