"""Where the files of a run are, wherever its folder is now.

A run's recipe.yaml names files from the root, and its own folder and store as they were given. Its run.json also has the way
to each from the run's folder, so that what was moved or copied together is found together: first there, then where it was.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECIPE, RECORD = "recipe.yaml", "run.json"
DIR, STORE = "output.dir", "output.store"
FUNCTIONS = [f"game.{name}.function" for name in ("oracle", "loss", "opponents", "reference")]
FUNCTIONS += ["evaluation.metric.function"]  # the paths of all these end in :name
FILES = ["model.name_or_path", "model.adapter", "data.path", "game.oracle.model"]
FILES += [f"evaluation.{name}" for name in ("path", "mtbench", "alpaca")]
STAMP = "FORMAT"  # the file by which a store is known


def ways(folder: Path, named: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """For run.json: of each {field: local path} what recipe.yaml has, the way to it from the run's folder, and its place.

    There is a way if they have more in common than the root: else they do not move together.
    """
    home, found = folder.resolve(), {}
    for field, written in named.items():
        path, end = _parts(field, written)
        place = Path(path).resolve()
        found[field] = {"written": written, "place": f"{place}{end}"}
        if place.anchor == home.anchor and os.path.commonpath([place, home]) != home.anchor:
            found[field]["way"] = f"{Path(os.path.relpath(place, home)).as_posix()}{end}"
    return found


def put_in_place(recipe: dict[str, Any], folder: Path) -> None:
    """Have a run's recipe, as it was read from its folder, name its files where they are now.

    What somebody has edited since, and what is nowhere, stays as it is written. A folder of a version that noted no ways
    has its store where its iterates lead.
    """
    record = _record(folder)
    if record is None:
        return
    known = record.get("ways")
    for field, way in known.items() if isinstance(known, dict) else _old(recipe, folder):
        section, name = _section(recipe, field)
        if section is not None and isinstance(way, dict) and section.get(name) == way.get("written"):
            found = str(folder) if field == DIR else _found(field, way, folder)
            section[name] = section[name] if found is None else found


def _record(folder: Path) -> dict[str, Any] | None:
    """run.json, if this is a run's folder; one that is damaged is written anew when the game is played again."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "policies" in record else None


def _old(recipe: dict[str, Any], folder: Path) -> list[tuple[str, dict[str, str]]]:
    """The ways of a version that noted none: a folder that still has its name is the recipe's own."""
    output, _ = _section(recipe, DIR)
    given = {} if output is None else {field: output.get(field.rpartition(".")[2]) for field in (DIR, STORE)}
    return [
        (field, {"written": written})
        for field, written in given.items()
        if isinstance(written, str) and (field == STORE or Path(written).name == folder.resolve().name)
    ]


def _section(recipe: dict[str, Any], field: str) -> tuple[dict[str, Any] | None, str]:
    """The mapping that has a field, if there is one, and the field's name in it."""
    *parents, name = field.split(".")
    section: Any = recipe
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else None, name


def python_files(recipe: Any) -> list[str]:
    """The files of the functions that a recipe names, as it names them."""
    written = [section.get(name) for section, name in (_section(recipe, field) for field in FUNCTIONS) if section is not None]
    return [_parts(FUNCTIONS[0], one)[0] for one in written if isinstance(one, str) and ":" in one]


def named_twice(recipe: dict[str, Any], recipe_dir: Path) -> list[str]:
    """A line for each name in a recipe that is a file's beside it, and another file's in the working directory."""
    lines = []
    for field in (*FILES, *FUNCTIONS):
        section, name = _section(recipe, field)
        written = None if section is None else section.get(name)
        path = _parts(field, written)[0] if isinstance(written, str) else ""
        beside = recipe_dir / path
        if path and os.path.exists(beside) and os.path.exists(path) and not beside.samefile(path):
            taken = f"{path} is the one beside the recipe, {beside.resolve()}"
            lines.append(f"{field}: {taken}, not the one in the working directory; for that, write its whole path")
    return lines


def _parts(field: str, path: str) -> tuple[str, str]:
    head, colon, name = path.rpartition(":") if field in FUNCTIONS else (path, "", "")
    return head, colon + name


def _found(field: str, way: Mapping[str, str], folder: Path) -> str | None:
    """The first of the places where a file may be that has one."""
    candidates = [str(folder / way["way"])] if "way" in way else []
    if field == STORE:
        links = (link for link in sorted((folder / "iterates").glob("*")) if link.is_symlink())
        candidates += [str(link.resolve().parents[1]) for link in links]
    candidates += [way["place"]] if "place" in way else []
    for candidate in candidates:
        path, end = _parts(field, candidate)
        place = Path(path).resolve()
        if (place / STAMP).is_file() if field == STORE else place.exists():
            return _from_here(place) if field == STORE else f"{place}{end}"
    return None


def _from_here(place: Path) -> str:
    """A store as a person writes it: from the working directory, if it is in there."""
    here = Path.cwd().resolve()
    inside = place.is_relative_to(here) and here != Path(here.anchor)
    return str(place.relative_to(here) if inside else place)
