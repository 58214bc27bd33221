"""The points of a sweep: one recipe, some of its fields varied."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError, quoted
from lowmem_spin.common.keys import digest
from lowmem_spin.config.load import RecipeFile, load_recipe, variants
from lowmem_spin.config.naming import own_function, plain, with_suffix
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.config.yaml_text import YAMLTextError, one_line, read_yaml

MOST = 10_000  # games of a sweep
VARIANT = "variant"  # the axis of a recipe file's variants
LONGEST = 100  # characters of a point's name, which is a folder's
Axes = dict[str, list[Any]]
"""{field: values}"""


@dataclass(frozen=True)
class SweepPoint:
    """One game of a sweep."""

    name: str
    values: dict[str, Any]  # the varied fields and the seed
    recipe: Recipe


def sweep_axes(path: RecipeFile, alpha: str | None, history: str | None, grid: Sequence[str]) -> Axes:
    """What is varied: the recipe file's variants, if it has any, and what the command line says, such as
    `--alpha 0.9,1 --history 1,inf --grid training.learning_rate=1e-5,5e-5`.

    Raises:
        InputError: a value is missing, or a field is varied twice.
    """
    asked = [f"{name}={values}" for name, values in (("game.alpha", alpha), ("game.history", history)) if values is not None]
    family = variants(path)
    found: Axes = {VARIANT: family} if family else {}
    for text in [*asked, *grid]:
        name, equals, values = text.partition("=")
        if not equals or not name or not values.strip():
            raise InputError(f"--grid {quoted(text)}: write it as field=value,value, for instance game.loss.beta=0.05,0.1")
        if name in found:
            raise InputError(f"--grid {quoted(text)}: {name} is varied twice; list all its values in one option")
        if name == VARIANT:
            raise InputError(f"--grid {quoted(text)}: {path} has no variants; leave it out")
        if name == "seed":
            raise InputError(f"--grid {quoted(text)}: use --seeds for several seeds")
        if name.partition(".")[0] == "output":
            raise InputError(
                f"--grid {quoted(text)}: fields of output cannot be varied; leave it out: every game has its own folder"
            )
        found[name] = _values(text, values)
    return found


def _values(text: str, values: str) -> list[Any]:
    """Comma-separated YAML values; each counts once."""
    try:
        read = read_yaml(f"[{values}]")
    except YAMLTextError as error:
        raise InputError(f"--grid {quoted(text)}: the values are not valid YAML ({error}); quote them") from None
    if not isinstance(read, list) or any(value is None for value in read):
        raise InputError(f"--grid {quoted(text)}: a value is empty; write it as field=value,value")
    read = ["inf" if value == math.inf else value for value in read]  # as the recipe has it: JSON has no infinite number
    return [value for place, value in enumerate(read) if value not in read[:place]]


def sweep_points(path: RecipeFile, overrides: Sequence[str], varied: Axes, seeds: int) -> list[SweepPoint]:
    """Every combination, each a whole recipe that has been checked; results go to points/<name> in the sweep's folder.

    Raises:
        InputError: a combination is no recipe; the line says which.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: cannot be used; give at least 1")
    if (games := math.prod(map(len, varied.values())) * seeds) > MOST:
        raise InputError(f"--seeds {seeds}, --grid: {games:,} games, and a sweep has at most {MOST:,}; vary less at a time")
    base = first_recipe(path, overrides)
    folder = sweep_folder(base)
    found: dict[str, SweepPoint] = {}
    known: set[str] = set()
    axes = {**varied, "seed": range(base.seed, base.seed + seeds)}
    written = [[(value, f"{field}={one_line(value)}") for value in axis] for field, axis in axes.items()]
    for combination in itertools.product(*written):
        values = {field: value for field, (value, _) in zip(axes, combination, strict=True)}
        changed = [text for field, (_, text) in zip(axes, combination, strict=True) if field != VARIANT]
        recipe = load_recipe(path, [*overrides, *changed, f"output.dir={one_line(base.output.dir)}"], values.get(VARIANT))
        if (content := recipe.model_dump_json()) in known:  # the same, written in another way
            continue
        known.add(content)
        name = _name(values, varied)
        if name in found or len(name) > LONGEST:
            name = f"{name[: LONGEST - 9]}_{digest(values)[:8]}"
        output = recipe.output.model_copy(update={"dir": str(folder / "points" / name)})
        found[name] = SweepPoint(name, values, recipe.model_copy(update={"output": output}))
    return list(found.values())


def planned_points(path: RecipeFile, overrides: Sequence[str], varied: Axes, seeds: int) -> list[SweepPoint]:
    """As sweep_points; where there is but one game it is that of `run`, in a folder of its own."""
    points = sweep_points(path, overrides, varied, seeds)
    return points if varied or seeds > 1 else [replace(points[0], recipe=load_recipe(path, overrides))]


def first_recipe(path: RecipeFile, overrides: Sequence[str]) -> Recipe:
    """The recipe of a sweep before anything is varied, or its first variant."""
    return load_recipe(path, overrides, next(iter(variants(path)), None))


def _name(values: dict[str, Any], varied: Axes) -> str:
    """Of a point: field-value, and for a variant its name alone."""
    texts = {field: own_function(field, v) or plain(v) for field, v in values.items()}
    parts = [text if field == VARIANT else f"{_short(field, varied)}-{text}" for field, text in texts.items()]
    return "_".join(parts)


def sweep_folder(recipe: Recipe) -> Path:
    """Where a sweep of this recipe goes: beside its run."""
    return Path(with_suffix(str(recipe.output.dir), "-sweep"))


def _short(field: str, varied: Axes) -> str:
    """The last part of a field's name, unless another field ends the same."""
    last = field.rsplit(".", maxsplit=1)[-1]
    return last if sum(other.split(".")[-1] == last for other in varied) <= 1 else field
