"""What options have in common."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.paths import expanded


def user_path(given: str | Path) -> Path:
    """A path in which `~` is the home folder, as an option's parser: a shell does not expand it in --to=~/here.

    Raises:
        InputError: it is the home of somebody who has none here.
    """
    try:
        return Path(expanded(str(given)))
    except ValueError as error:
        raise InputError(f"{str(given)!r}: {error}") from None


def _png(given: str | Path) -> Path:
    """A picture's place. Raises InputError if it is to be no PNG."""
    path = user_path(given)
    if path.suffix != ".png":
        raise InputError(f"--picture: {str(path)!r} must end in .png")
    return path


path_option = partial(typer.Option, metavar="PATH", parser=user_path)
path_argument = partial(typer.Argument, parser=user_path)
RunArgument = Annotated[Path, path_argument(metavar="RUN", help="A folder that `lowmem-spin run` wrote.", show_default=False)]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Allow the recipe's and the model's own Python code to run, and your judge's API key to be sent to the recipe's "
        "address; asked again when one of them changes.",
    ),
]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a recipe value, e.g. game.alpha=0.9.")
]
Alphas = Annotated[str | None, typer.Option("--alpha", metavar="A,B,...", help="Values of game.alpha.")]
Histories = Annotated[str | None, typer.Option("--history", metavar="H,I,...", help="Values of game.history, inf among them.")]
GridAxes = Annotated[list[str] | None, typer.Option(metavar="FIELD=V,W", help="Values of any other field; repeatable.")]
Seeds = Annotated[int, typer.Option(help="Games per combination, each with a seed of its own.")]
Picture = Annotated[
    Path, typer.Option(metavar="PATH", parser=_png, help="The PNG to write, an SVG beside it; both replace earlier ones.")
]
