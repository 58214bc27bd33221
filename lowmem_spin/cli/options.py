"""What options have in common."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lowmem_spin.common.errors import InputError, quoted
from lowmem_spin.config.paths import expanded


def user_path(given: str | Path) -> Path:
    """A path in which `~` is the home folder, as an option's parser: a shell does not expand it in --to=~/here.

    Raises:
        InputError: it is the home of somebody who has none here.
    """
    try:
        return Path(expanded(str(given)))
    except ValueError as error:
        raise InputError(f"{quoted(str(given))}: {error}") from None


path_option = partial(typer.Option, metavar="PATH", parser=user_path)
path_argument = partial(typer.Argument, parser=user_path)
TrustCode = Annotated[
    bool, typer.Option("--trust", help="Let code run that comes with the recipe or model; remembered until the code changes.")
]
