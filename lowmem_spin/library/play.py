"""Games and sweeps, played and planned as the commands of these names do it."""

import html
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lowmem_spin.cli import play
from lowmem_spin.cli.plan import show_plan
from lowmem_spin.cli.results import show_sweep
from lowmem_spin.common.display import Display, clock
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.field_names import full_name, plain_values
from lowmem_spin.config.grid import Axes, planned_points, sweep_axes
from lowmem_spin.config.load import GivenRecipe, RecipeFile, find_recipe, load_recipe
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.config.yaml_text import one_line
from lowmem_spin.library.games import TRUST, Run, Sweep
from lowmem_spin.runner.planning import plan as planning
from lowmem_spin.runner.planning.calibration import known_gpu
from lowmem_spin.runner.planning.parallel import check_workers

RecipeLike = str | Path | Mapping[str, Any] | Recipe
AGAIN = "run the same again"


def run(
    recipe: RecipeLike = "quickstart",
    /,
    *,
    settings: Mapping[str, Any] | None = None,
    max_hours: float | None = None,
    replace: bool = False,
    trust: bool = False,
    **fields: Any,
) -> Run:
    """Play a game, or go on with it: with the folder and the store that `lowmem-spin run` has. What is stored is not computed
    again, so asking once more for a finished game takes seconds. Interrupting is safe.

    Args:
        recipe: the name of a shipped one, a YAML file, a dict with the same sections, or a Recipe. What a dict names is
            looked for in the working directory, and its results go to runs/game if it has no output.dir.
        settings: recipe values by their dotted names, as --set has them: {"training.learning_rate": 1e-4}.
        max_hours: when to stop, with what is finished stored; None is never.
        replace: whether another game's results in the same folder may go.
        trust: allows the recipe's and the model's own Python code to run, and your judge's API key to be sent to the recipe's
            address; asked again when one of them changes.
        **fields: more recipe values, by the last part of their names where that says which: alpha=0.8, history=1.

    Returns:
        The run; one that had to stop is not `finished`.

    Raises:
        InputError: something cannot be used; one line that names it, before anything is computed.
        KeyboardInterrupt: somebody pressed Ctrl-C, or stopped the cell.
    """
    path = _recipe_file(recipe)
    asked = load_recipe(path, _overrides(_named(settings, fields)))
    with play.watched(_console(), max_hours, AGAIN) as display:
        play.run(asked, path.parent, display, replace, Trust(trust, option=TRUST))
    display.log(display.time_line())
    return Run(Path(str(asked.output.dir)), trust)


def sweep(
    recipe: RecipeLike = "quickstart",
    /,
    *,
    seeds: int = 1,
    grid: Mapping[str, Iterable[Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    max_hours: float | None = None,
    replace: bool = False,
    trust: bool = False,
    workers: int | str | None = None,
    ray: str | None = None,
    **fields: Any,
) -> Sweep:
    """Play a recipe with some of its values varied, as `lowmem-spin sweep` does. What the games have in common is computed
    once; one that fails is said, and the others go on.

    Args:
        recipe: as in `run`.
        seeds: games per combination, each with a seed of its own.
        grid: {field: values}, which are combined with all others; for fields whose values are lists themselves, too.
        settings: values of every game, by their dotted names.
        max_hours: when to stop, with what is finished stored; None is never.
        replace: whether other games' results in the points' folders may go.
        trust: as in `run`.
        workers: processes that compute at once, by Ray; "auto" is one for each GPU.
        ray: address of a Ray cluster that runs already, all of which sees the store.
        **fields: a list of values is varied, alpha=[0.5, 0.95]; a single one is every game's, pairs=500.

    Returns:
        The sweep; its table says which games are finished.

    Raises:
        InputError: something cannot be used; one line that names it, before anything is computed.
        KeyboardInterrupt: somebody pressed Ctrl-C, or stopped the cell.
    """
    path = _recipe_file(recipe)
    overrides, varied = _varied(path, grid, settings, fields)
    asked = play.WorkersAsked(None if workers is None else str(workers), ray)
    games = play.planned_sweep(path, overrides, varied, seeds, single=asked.several)
    with play.watched(_console(), max_hours, AGAIN) as display:
        play.sweep(games, path.parent, display, replace, Trust(trust, option=TRUST), asked)
    show_sweep(games, display)
    display.log(display.time_line())
    return Sweep(games.folder, trust)


@dataclass(frozen=True, repr=False)
class Plan:
    """What a recipe, or a sweep of it, would compute. `print` shows all that `lowmem-spin plan` does."""

    made: planning.PlannedWork

    @property
    def hours(self) -> float:
        """For what is not stored yet; not a number if the model is not known here. Computed, if `bench` has not measured;
        a judge's own time is not counted where it was not measured."""
        return self.made.total().seconds / 3600

    @property
    def memory_gb(self) -> float:
        """GB of 10^9 bytes on a GPU, of the largest stage with rows at full length; not a number if it is not known."""
        known = [line.memory for line in self.made.lines if not math.isnan(line.memory)]
        return max(known) / 1e9 if known else math.nan

    @property
    def hours_with_workers(self) -> float | None:
        """With so many workers as were asked for; None if none were."""
        return None if self.made.parallel is None else self.made.parallel.seconds / 3600

    @property
    def longest_chain_hours(self) -> float | None:
        """Of steps that wait for each other, which more workers cannot shorten; None if none were asked for."""
        return None if self.made.parallel is None else self.made.parallel.longest_chain / 3600

    @property
    def notes(self) -> list[str]:
        """What a person should know before playing it."""
        return self.made.notes

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120, force_jupyter=False)
        with console.capture() as shown:
            show_plan(self.made, Display(console))
        return shown.get()

    def __repr__(self) -> str:
        games, memory = len(self.made.points), self.memory_gb
        known = "memory not known" if math.isnan(memory) else f"{memory:.1f} GB of GPU memory"
        return f"Plan({games} game{'s' * (games > 1)}: {clock(3600 * self.hours)}, {known})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def plan(
    recipe: RecipeLike = "quickstart",
    /,
    *,
    gpu: str | None = None,
    workers: int | str | None = None,
    seeds: int = 1,
    grid: Mapping[str, Iterable[Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Plan:
    """What a recipe would compute, what of it is stored, and the memory and hours it takes; runs nothing, loads no model.

    Args:
        recipe: as in `run`.
        gpu: plan for this card instead of for this machine: "4090", "3090", "T4", "A100", "H100" or "H200".
        workers: of a sweep, to say how long so many take; "auto" is one for each GPU here, and does not go with `gpu`.
        seeds: as in `sweep`.
        grid: as in `sweep`.
        settings: as in `sweep`.
        **fields: as in `sweep`.

    Raises:
        InputError: something cannot be used, as `run` would refuse it; one line that names it.
    """
    if gpu is not None:
        gpu = known_gpu(gpu)
    path = _recipe_file(recipe)
    overrides, varied = _varied(path, grid, settings, fields)
    asked = None if workers is None else str(workers)
    check_workers(asked, gpu)
    return Plan(planning.plan(planned_points(path, overrides, varied, seeds), path.parent, gpu, workers=asked))


def _console() -> Console:
    """Bars in a terminal, and lines everywhere else, as in a notebook."""
    return Console(force_jupyter=False)


def _recipe_file(recipe: RecipeLike) -> RecipeFile:
    if isinstance(recipe, Recipe):
        return GivenRecipe(recipe.model_dump(mode="json"))
    if isinstance(recipe, Mapping):
        return GivenRecipe({str(name): plain_values(value, str(name)) for name, value in recipe.items()})
    return find_recipe(str(recipe))


def _named(*given: Mapping[str, Any] | None) -> dict[str, Any]:
    """{dotted name: plain value}, in the order in which they are set.

    Raises:
        InputError: a field is set twice.
    """
    found: dict[str, Any] = {}
    for name, value in ((name, value) for some in given if some is not None for name, value in some.items()):
        full = full_name(name)
        if full in found:
            raise InputError(f"{name}: {full} is set twice; leave one out")
        found[full] = plain_values(value, full)
    return found


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={one_line(value)}" for name, value in values.items()]


def _varied(
    path: RecipeFile,
    grid: Mapping[str, Iterable[Any]] | None,
    settings: Mapping[str, Any] | None,
    fields: Mapping[str, Any],
) -> tuple[list[str], Axes]:
    """What is every game's, and what is varied: of the keyword arguments the lists."""
    every = _named(settings, fields)
    lists = {full_name(name) for name in fields if isinstance(every[full_name(name)], list)}
    axes = _named({name: every[name] for name in every if name in lists}, grid)
    for name, values in axes.items():
        if not isinstance(values, list):
            raise InputError(f"grid: {name} is to be a list of values, for instance [{values!r}]")
    texts = {name: one_line(values)[1:-1] for name, values in axes.items()}
    alpha, history = (texts.pop(name, None) for name in ("game.alpha", "game.history"))  # first, as the command has them
    others = _overrides({name: value for name, value in every.items() if name not in lists})
    return others, sweep_axes(path, alpha, history, [f"{name}={values}" for name, values in texts.items()])
