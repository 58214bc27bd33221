"""The commands on recipes: recipes, copy, recipe, plan, theory. Heavy imports stay inside them."""

from pathlib import Path
from typing import Annotated

import typer

from lowmem_spin.cli.options import Alphas, GridAxes, Histories, Overrides, Picture, RecipeName, Seeds, TrustCode, path_argument

app = typer.Typer()


@app.command()
def recipes() -> None:
    """List the shipped recipes. It also says what hardware and time each takes."""
    from lowmem_spin.config.shipped import shipped_recipes

    found = shipped_recipes()
    wide = max(len(one.name) for one in found) + 2
    for one in found:
        print(f"{one.name:<{wide}}{one.title}\n{'':<{wide}}{one.hardware}; {one.time}")


@app.command()
def copy(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe, or a YAML file.")],
    to: Annotated[Path, path_argument(metavar="FILE", help="Where the copy is to be.")],
) -> None:
    """Copy a recipe to change it. Its Python files are copied too; its data and models are found from anywhere."""
    from lowmem_spin.config.load import find_recipe
    from lowmem_spin.config.shipped import copy_recipe

    copied, *python = copy_recipe(find_recipe(recipe), to)
    for file in python:
        print(f"{file} came along: the recipe names functions in it")
    print(f"{copied} is yours to change; play it with `lowmem-spin run {copied}{' --trust' * bool(python)}`")


@app.command()
def recipe(
    name: RecipeName = "quickstart",
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of all fields, for editors.")] = False,
) -> None:
    """Check a recipe and print it with every default filled in."""
    import json

    from lowmem_spin.config.load import find_recipe, load_recipe
    from lowmem_spin.config.recipe import Recipe
    from lowmem_spin.config.yaml_text import write_yaml

    if schema:
        print(json.dumps(Recipe.model_json_schema(), indent=2))
    else:
        print(write_yaml(load_recipe(find_recipe(name), overrides or []).model_dump(mode="json"), sort_keys=False), end="")


@app.command()
def plan(
    recipe: RecipeName = "quickstart",
    alpha: Alphas = None,
    history: Histories = None,
    grid: GridAxes = None,
    seeds: Seeds = 1,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option(help="Plan for this card instead: 4090, 3090, T4, A100, H100 or H200.")] = None,
    measured: Annotated[
        bool, typer.Option("--measure", help="Load the model and time it on its own rows first, for half a minute or so.")
    ] = False,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Say how long so many workers of a sweep take; auto: one for each GPU here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON and nothing else.")] = False,
    trust: TrustCode = False,
) -> None:
    """Estimate the work, time and memory of a recipe or a sweep. What is stored already is not counted; nothing is played."""
    from rich.console import Console

    from lowmem_spin.cli.plan import measure_here, show_plan
    from lowmem_spin.common.display import Display
    from lowmem_spin.common.errors import InputError
    from lowmem_spin.common.files import json_text
    from lowmem_spin.common.trust import Trust
    from lowmem_spin.config import grid as points
    from lowmem_spin.config.load import find_recipe
    from lowmem_spin.runner.planning import plan as planning
    from lowmem_spin.runner.planning.calibration import known_gpu
    from lowmem_spin.runner.planning.parallel import check_workers

    if gpu is not None:
        gpu = known_gpu(gpu)
        if measured:
            raise InputError(f"--measure: it times this machine, and --gpu {gpu} plans for another; leave one of them out")
    path = find_recipe(recipe)
    varied = points.sweep_axes(path, alpha, history, grid or [])
    check_workers(workers, gpu)
    asked = points.planned_points(path, overrides or [], varied, seeds)
    lines = measure_here(asked[0].recipe, path.parent, Display(Console(stderr=as_json)), Trust(trust)) if measured else []
    made = planning.plan(asked, path.parent, gpu, Trust(trust), workers)
    if as_json:
        print(json_text(made.record(), indent=2))
        return
    show_plan(made, Display(Console()))
    for line in lines:
        print(line)


@app.command()
def theory(
    recipe: RecipeName = "quickstart",
    alpha: Alphas = None,
    history: Histories = None,
    grid: GridAxes = None,
    overrides: Overrides = None,
    iterations: Annotated[int, typer.Option(help="Iterates to play, whatever the recipe says.", min=1, max=200)] = 20,
    picture: Picture = Path("theory.png"),
) -> None:
    """Play a recipe exactly on six made-up answers. Without a model: do its alpha, history and loss settle, and where?"""
    from rich.console import Console

    from lowmem_spin.cli.theory import show_theory
    from lowmem_spin.common.display import Display
    from lowmem_spin.config import grid as points
    from lowmem_spin.config.load import find_recipe

    path = find_recipe(recipe)
    varied = points.sweep_axes(path, alpha, history, grid or [])
    show_theory(points.sweep_points(path, overrides or [], varied, 1), iterations, picture, Display(Console()))
