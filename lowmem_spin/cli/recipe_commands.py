"""The commands on recipes: recipes, copy. Heavy imports stay inside them."""

from pathlib import Path
from typing import Annotated

import typer

from lowmem_spin.cli.options import path_argument

app = typer.Typer()


@app.command()
def recipes() -> None:
    """List the recipes that come along, with the hardware and the time that each takes."""
    from lowmem_spin.config.shipped import shipped_recipes

    found = shipped_recipes()
    wide = max(len(one.name) for one in found) + 2
    for one in found:
        print(f"{one.name:<{wide}}{one.title}\n{'':<{wide}}{one.hardware}; {one.time}")


@app.command()
def copy(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe that comes along, or a YAML file.")],
    to: Annotated[Path, path_argument(metavar="FILE", help="Where the copy is to be.")],
) -> None:
    """Copy a recipe to change it. The files that came with it are found from anywhere."""
    from lowmem_spin.config.load import find_recipe
    from lowmem_spin.config.shipped import copy_recipe

    copy_recipe(find_recipe(recipe), to)
    print(f"{to} is yours to change; play it with `lowmem-spin run {to}`")
