"""The shipped recipes: what each is, what it takes, and a copy to change."""

import re
from pathlib import Path
from typing import NamedTuple

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import write_atomically
from lowmem_spin.config.load import BUNDLED
from lowmem_spin.config.places import python_files
from lowmem_spin.config.yaml_text import YAMLTextError, read_yaml


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


def copy_recipe(recipe: Path, to: Path) -> list[Path]:
    """Copy a recipe as it is, comments and all. The data and models that come with it are found from anywhere; the Python files
    that it names and that are below its folder come along, to be changed too.

    Returns:
        The recipe's copy, and those of these files.

    Raises:
        InputError: there is something at `to`, or in the place of such a file.
    """
    if to.is_dir():
        to = to / recipe.name
    if to.exists():
        raise InputError(f"{str(to)!r}: is there already; choose another name")
    text = recipe.read_text(encoding="utf-8")
    sources = {to.parent / name: (recipe.parent / name).read_bytes() for name in _python(recipe, text)}
    for place, source in sources.items():
        if place.exists() and (place.is_dir() or place.read_bytes() != source):
            raise InputError(f"{str(place)!r}: is there already with another content; copy the recipe into another folder")
    for place, source in sources.items():
        write_atomically(place, lambda temporary, source=source: temporary.write_bytes(source))
    write_atomically(to, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return [to, *sources]


def _python(recipe: Path, text: str) -> list[Path]:
    """The Python files below a recipe's folder that it names as file.py:function, from there."""
    try:
        content = read_yaml(text)
    except YAMLTextError as error:
        raise InputError(f"{recipe}: not valid YAML: {error}") from None
    home = recipe.parent.resolve()
    below = [(home / path).resolve() for path in python_files(content)]
    return sorted({path.relative_to(home) for path in below if path.is_relative_to(home) and path.is_file()})
