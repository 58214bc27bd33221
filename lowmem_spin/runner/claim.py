"""A run folder belongs to one game. What another game left there, or somebody else, is not replaced without being asked."""

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lowmem_spin.algorithm.roles import Part, Role, part_in, parts_in
from lowmem_spin.algorithm.stages import Stage, Train
from lowmem_spin.common.checked import read_checked
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, check_folder_place, read_text
from lowmem_spin.common.keys import digest, is_key
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.runner.run_folder import PICTURES

METRICS, ITERATES = "metrics.jsonl", "iterates"
SO_FAR = "metrics_so_far.jsonl"  # the same of a game that is not finished
FILES = ("run.json", "recipe.yaml", METRICS, *PICTURES)  # that a game writes into its folder
# What commands write into a run's or a sweep's folder. Where no record says that it is one, such a name is somebody else's.
WRITTEN = ("recipe.yaml", METRICS, SO_FAR, ITERATES, *PICTURES, "report.md", "report_*.png", "report_*.svg")
WRITTEN += ("benchmarks.jsonl", "arena.json", "mtbench", "alpaca", "samples", "serve")
DAMAGE = (KeyError, TypeError, ValueError, AttributeError)
WORKERS, LOGS = "workers.json", "workers"  # in a sweep's folder: what its workers did, and the folder of their logs
OF_SWEEPS = ("report.html", "report.md", "report_*.png", "report_*.svg", WORKERS)


class Claimant(Protocol):
    """A game that is to have a folder: one that is open, or one that is planned."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def stages(self) -> Sequence[Stage]: ...
    @property
    def folder(self) -> Path: ...


def check_folder(game: Claimant, replace: bool = False) -> None:
    """Refuse a folder in which this game would overwrite anything that is not of it: it may only go on there.

    Args:
        game: whose folder it is to be.
        replace: whether the results of another game may go; what no game wrote may not.

    Raises:
        InputError: one line.
    """
    folder = game.folder
    earlier = check_owner(folder)
    known = set(_policies(earlier).values())
    lost, new = _lost(game, earlier), _iterates(game)
    if lost and not replace:
        names, remedy = ", ".join(lost.values()), "choose another output.dir, or add --replace"
        if set(new.values()) < set(_made(folder).values()):
            count = game.recipe.game.iterations
            raise InputError(
                f"output.dir: {str(folder)!r} has this game with more iterations: {names} would be lost to game.iterations "
                f"{count}; leave it as it was, {remedy}"
            )
        raise InputError(f"output.dir: {str(folder)!r} has another game, whose {names} would be lost; {remedy}")
    ours = {*known, *new.values()}
    for number, entry in _entries(folder).items():
        if number in new and _key(entry) not in ours and not _strays(entry, known):
            raise InputError(f"output.dir: {str(entry)!r} is no iterate of a game in this folder; move it away")


def check_owner(folder: Path) -> dict[str, Any]:
    """The record of the game in a folder, empty if there is none.

    Raises:
        InputError: it is no folder, or has something that no game wrote and that one would overwrite.
    """
    check_folder_place(folder, "output.dir")
    for name in FILES:
        if (folder / name).is_dir():
            raise InputError(f"output.dir: {str(folder / name)!r} is a folder, where a file is to be written; move it away")
    return _record(folder, "run.json", "policies", WRITTEN)


def clear_folder(game: Claimant) -> None:
    """Remove an earlier game's iterates and numbers, as its record names them; nothing where it goes on."""
    earlier = _record(game.folder, "run.json", "policies", WRITTEN)
    if not _lost(game, earlier):
        return
    for entry in _entries(game.folder).values():
        if _key(entry) in _policies(earlier).values():
            entry.unlink() if entry.is_symlink() else shutil.rmtree(entry)
    for name in (METRICS, SO_FAR, *PICTURES):
        (game.folder / name).unlink(missing_ok=True)


def check_sweep_folder(folder: Path) -> None:
    """Refuse a folder whose reports are of no sweep.

    Raises:
        InputError: one line.
    """
    if (folder / WORKERS).is_dir():
        raise InputError(f"output.dir: {str(folder / WORKERS)!r} is a folder, where a file is to be written; move it away")
    _record(folder, "sweep.json", "points", OF_SWEEPS)


def _record(folder: Path, name: str, part: str, written: tuple[str, ...]) -> dict[str, Any]:
    """The folder's record, empty where it is not there or damaged.

    Raises:
        InputError: there is none, or somebody else's, and something would be overwritten.
    """
    try:
        if isinstance(record := json.loads(read_text(folder / name)), dict):
            record = read_checked(folder / name)
    except FileNotFoundError:
        foreign = [path.name for pattern in written for path in sorted(folder.glob(pattern)) if not _is_empty(path)]
    except ValueError:  # somebody has damaged it: it is written anew
        return {}
    else:
        if isinstance(record, dict) and part in record:
            return record if isinstance(record[part], dict | list) else {}
        foreign = [name]
    if foreign:
        names = f"has {', '.join(foreign)} already, but no game was played there"
        raise InputError(f"output.dir: {str(folder)!r} {names}; choose another folder, so that nothing of yours is overwritten")
    return {}


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _lost(game: Claimant, earlier: Mapping[str, Any]) -> dict[str, str]:
    """{key: name} of the policies that the folder has and this game does not play. A baseline is a measurement."""
    kept = {stage.policy for stage in game.stages if isinstance(stage, Train)}
    stray = {number for number, entry in _entries(game.folder).items() if _strays(entry, set(_policies(earlier).values()))}
    made = {key: f"iterate {number}" for number, key in _made(game.folder).items() if number not in stray}
    for name, part in _parts(earlier).items():
        key = earlier["policies"][name]
        if part.role is Role.WARM_START and is_key(key) and (Path(game.recipe.output.store) / "adapters" / key).exists():
            made[key] = name
    adapters = Path(game.recipe.output.store) / "adapters"
    known = {*_policies(earlier).values(), *(path.name for path in adapters.glob("*"))}
    measured = {key: name for key, name in _measured(game.folder / METRICS).items() if key in known}
    made = {**measured, **made}  # a key that nothing else knows is a damaged one
    return {key: name for key, name in made.items() if key not in kept}


def _parts(earlier: Mapping[str, Any]) -> dict[str, Part]:
    try:
        return parts_in(earlier) if earlier else {}
    except DAMAGE:
        return {}


def _measured(path: Path) -> dict[str, str]:
    """{key: name} of the policies in metrics.jsonl that were trained; a line that does not read back is no result."""
    found = {}
    try:
        lines = read_text(path).splitlines()
    except (FileNotFoundError, DamagedError):
        return found
    for line in lines:
        try:
            record = json.loads(line)
            if part_in(record, record["name"]).role in (Role.ITERATE, Role.WARM_START):
                found[str(record["policy"])] = str(record["name"])
        except DAMAGE:
            continue
    return found


def _iterates(game: Claimant) -> dict[int, str]:
    """{number: key} of the iterates that the game trains."""
    trained = (stage for stage in game.stages if isinstance(stage, Train) and stage.role is Role.ITERATE)
    return {stage.iteration: stage.policy for stage in trained if stage.iteration is not None}


def _policies(earlier: Mapping[str, Any]) -> dict[str, str]:
    return dict(earlier.get("policies", {}))


def _entries(folder: Path) -> dict[int, Path]:
    """{number: iterates/number} of what is there, links that lead nowhere too."""
    return {int(entry.name): entry for entry in sorted((folder / ITERATES).glob("*")) if entry.name.isdecimal()}


def _made(folder: Path) -> dict[int, str]:
    """{number: key} of the iterates that the folder has."""
    return {number: key for number, entry in _entries(folder).items() if (key := _key(entry)) is not None}


def _key(entry: Path) -> str | None:
    """The policy whose adapter a link leads to, or a folder is a copy of; None for anything else."""
    if entry.is_symlink():
        name = Path(os.readlink(entry)).name
        return name if is_key(name) else None
    try:
        return digest(json.loads(read_text(entry / "manifest.json"))["asked"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _strays(entry: Path, known: Collection[str]) -> bool:
    """Whether a link leads to none of the policies that the folder's record knows: nothing is lost when it is put right."""
    return bool(known) and entry.is_symlink() and _key(entry) not in known


def put_link(entry: Path, key: str, adapter: Path) -> str | None:
    """Have iterates/N lead to an adapter, or be a copy of it where the file system has no links.

    Returns:
        Where a link led that was no link to this policy; None otherwise, also of one into a store that was here before.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    astray = None
    if entry.is_symlink() and os.path.realpath(entry) != os.path.realpath(adapter):
        astray = os.readlink(entry) if _key(entry) != key else None
        entry.unlink(missing_ok=True)
    if entry.is_symlink() or entry.exists():
        return astray
    try:
        entry.symlink_to(os.path.relpath(adapter.resolve(), entry.parent.resolve()))
    except FileExistsError:  # the same game in another process was first
        return astray
    except OSError:  # a file system without links
        whole = entry.with_name(f".{entry.name}.{os.getpid()}")
        shutil.copytree(adapter, whole)
        whole.rename(entry)
    return astray
