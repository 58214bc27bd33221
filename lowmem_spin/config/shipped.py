"""The recipes that come along: what each is, what it takes, and a copy to change."""

import re
from pathlib import Path
from typing import NamedTuple

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import write_atomically
from lowmem_spin.config.load import BUNDLED


class ShippedRecipe(NamedTuple):
    """A recipe's first lines."""

    name: str
    title: str
    hardware: str
    time: str


def shipped_recipes() -> list[ShippedRecipe]:
    """All of them, those for a CPU first. Each begins with a line on what it is, one on its hardware and one on its time."""
    folder = next(folder for folder in BUNDLED if folder.is_dir())
    head = re.compile(r"# (.*)\n# Hardware: (.*)\n# Time: (.*)\n")
    found = []
    for path in sorted(folder.glob("*.yaml")):
        if (lines := head.match(path.read_text(encoding="utf-8"))) is None:
            raise ValueError(f"{path} does not begin as a shipped recipe does")
        found.append(ShippedRecipe(path.stem, *lines.groups()))
    return sorted(found, key=lambda one: "CPU" not in one.hardware)


def copy_recipe(recipe: Path, to: Path) -> None:
    """Copy a recipe as it is, comments and all; the files that come with it are found from anywhere.

    Raises:
        InputError: there is something at `to`.
    """
    if to.is_dir():
        to = to / recipe.name
    if to.exists():
        raise InputError(f"{str(to)!r}: is there already; choose another name")
    text = recipe.read_text(encoding="utf-8")
    write_atomically(to, lambda temporary: temporary.write_text(text, encoding="utf-8"))
