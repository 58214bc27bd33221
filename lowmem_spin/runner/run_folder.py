"""A run folder: which game it holds, where its store is, and which adapter each of its policies has.

    RUN/recipe.yaml           the recipe with all its values, which plays the same game again
    RUN/run.json              policies and their keys, what the game was played with, versions, hours, an early stop
    RUN/iterates/<t>          a link to each iterate's adapter in the store
    RUN/metrics.jsonl         how each policy was measured, a line for each
    RUN/metrics_so_far.jsonl  the same until the game is finished
    RUN/iterates.png, .svg    how training went and how good each policy is
    RUN/report.html           the same and more as one page; report.md and report_* are its tables and pictures
    RUN/benchmarks.jsonl      what `evaluate` found; with answers in samples/, mtbench/ and alpaca/
    RUN/arena.json            what `arena` found
    RUN/benchmarks_use.json   keys of the store that these two use, which gc leaves alone
    RUN/serve/                what `serve` gives vLLM beside the model and the adapters
    RUN/tensorboard/ ...      what the trackers of output.report_to write

A sweep's folder has sweep.json, the same reports, and one such folder for each of its points below points/.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.own_functions import check_inputs
from lowmem_spin.algorithm.roles import Part, Role, parts_in
from lowmem_spin.algorithm.stages import Inputs
from lowmem_spin.common.checked import read_checked, write_checked
from lowmem_spin.common.errors import InputError, quoted, shortened
from lowmem_spin.common.files import DamagedError, Notice
from lowmem_spin.common.keys import digest, is_key
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.load import load_recipe
from lowmem_spin.config.places import STAMP
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source, Sources, base_key
from lowmem_spin.engines.foreign_code import code_of_model
from lowmem_spin.engines.machine import Machine, find_machine
from lowmem_spin.store.store import Store
from lowmem_spin.store.users import KINDS

USED = "benchmarks_use.json"
PICTURES = ("iterates.png", "report.html", "iterates.svg")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What `lowmem-spin run` wrote beside its results."""

    folder: Path
    recipe: Recipe
    inputs: Inputs
    policies: dict[str, str]  # name -> key: base, iterate 0, ..., those not trained yet included
    parts: dict[str, Part]  # of all policies, by name
    record: dict[str, Any]  # run.json


@dataclass(frozen=True)
class StoredPolicy:
    """A policy that can be used now."""

    name: str
    key: str
    adapter: Path | None  # None is the frozen base as it is


def game_inside(folder: Path, *records: str) -> str:
    """What to give instead of a folder of games, such as runs; empty if it is none."""
    games = sorted(path.parent for record in records for path in folder.glob(f"*/{record}"))
    return f"give one of the games in it, such as {games[0]}" if games else ""


def read_run_folder(folder: Path) -> RunFolder:
    """The game of a run folder.

    Raises:
        InputError: it is none, or does not read.
    """
    path = folder / "run.json"
    if not path.is_file():
        games = sorted(found.parent for found in folder.glob("points/*/run.json"))
        if games:
            raise InputError(f"run {str(folder)!r}: this is a sweep; give one of its games, such as {games[0]}")
        what = "has no run.json" if folder.is_dir() else "no such folder"
        remedy = game_inside(folder, "run.json") or "give a folder that `lowmem-spin run` wrote, such as runs/quickstart"
        raise InputError(f"run {str(folder)!r}: {what}; {remedy}")
    try:
        record = read_checked(path)
        inputs, policies, parts = Inputs(**record["inputs"]), dict(record["policies"]), parts_in(record)
        digest(vars(inputs))  # whether keys can be made of it
        if not isinstance(record.get("model", ""), str) or not isinstance(record.get("stopped", {}), dict):
            raise TypeError("model, or stopped")
        if inputs.unquantized is not None and inputs.unquantized.keys() != {"base", "generator", "learner"}:
            raise TypeError("inputs.unquantized")
    except DamagedError as error:
        raise InputError(f"{path}: {error}; run the recipe again to write it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: does not read ({type(error).__name__}: {error}); run the recipe again to write it") from None
    keys = {"inputs.base": [inputs.base], "inputs.data": [inputs.data], "data": record.get("data", [])}
    check_keys(path, {**keys, **{f"policies.{name}": [key] for name, key in policies.items()}})
    if not (folder / "recipe.yaml").is_file():
        raise InputError(f"run {str(folder)!r}: has no recipe.yaml; run the recipe again to write it")
    recipe = load_recipe(folder / "recipe.yaml")
    try:
        check_inputs(recipe.game, inputs)
    except ValueError as error:
        raise InputError(f"{path}: {error}; run the recipe again to write it") from None
    return RunFolder(folder=folder, recipe=recipe, inputs=inputs, policies=policies, parts=parts, record=record)


def check_keys(path: Path, given: Mapping[str, Any]) -> None:
    """Refuse what is no key where a record has keys: each becomes the name of a file in the store.

    Args:
        path: the record's.
        given: {field: list of what should be keys}.

    Raises:
        InputError: one line; somebody has written a path, for instance.
    """
    for field, keys in given.items():
        wrong = [keys] if not isinstance(keys, list) else [key for key in keys if not is_key(key)]
        if wrong:
            raise InputError(
                f"{path}: {field} has {shortened(repr(wrong[0]))}, which is no key: no game writes that, so somebody else has; "
                "leave the folder alone, or play its recipe anew"
            )


def open_store(run: RunFolder, notice: Notice) -> Store:
    """The store the run was played with, wherever the two are now; see config/places.py."""
    named = Path(run.recipe.output.store)
    if (named / STAMP).is_file():
        return Store(named, notice)
    raise InputError(
        f"output.store: {str(named)!r}, where {str(run.folder)!r} has its policies, is not here; "
        f"put it back, or correct output.store in {run.folder / 'recipe.yaml'}"
    )


def is_played(folder: Path) -> bool:
    """Whether a process plays this run, or a game of this sweep, now, as far as their stores know."""
    for record in [folder / "run.json", *folder.glob("points/*/run.json")]:
        try:
            run = read_run_folder(record.parent)
            if open_store(run, lambda _: None).users.plays(run.folder):
                return True
        except InputError:  # no run, or its store is elsewhere
            continue
    return False


def find_policy(run: RunFolder, store: Store, policy: str | None, option: str = "--iterate") -> StoredPolicy:
    """The policy called `policy`: an iterate's number, base, or another name in run.json; None is the last trained iterate,
    or the one to keep of a game that was stopped early.

    Raises:
        InputError: the game has no such policy, or it is not trained yet.
    """
    iterates = {part.iteration: name for name, part in run.parts.items() if part.is_iterate}
    if policy is None and "stopped" in run.record:
        policy = str(run.record["stopped"]["keep"])
    if policy is None:
        policy = next(iter(reversed(trained_iterates(run, store))), "0")
    name = iterates.get(int(policy), policy) if policy.isdecimal() and len(policy) < 10 else policy
    if name not in run.policies:
        known = ", ".join(str(part.iteration) if part.is_iterate else other for other, part in run.parts.items())
        raise InputError(f"{option} {quoted(policy)}: {str(run.folder)!r} has no such policy; it has {known}")
    if run.parts[name].role is Role.BASE:
        given = run.recipe.model.adapter
        return StoredPolicy(name, run.inputs.base, Path(given) if given else None)
    adapter = store.adapter(run.policies[name])
    if adapter is None:
        again = f"`lowmem-spin run {run.folder / 'recipe.yaml'}` continues"
        raise InputError(f"{option} {policy!r}: {name} of {str(run.folder)!r} is not trained yet; {again}")
    return StoredPolicy(name, run.policies[name], adapter)


def as_far_as_played(policies: dict[str, str], record: dict[str, Any]) -> dict[str, str]:
    """Without the iterates after the one at which the game was stopped early; another game may have trained them."""
    stopped = record.get("stopped")
    iterates = [name for name, part in parts_in(record).items() if part.is_iterate]
    if not isinstance(stopped, dict) or stopped.get("after") not in iterates:
        return policies
    never = iterates[iterates.index(stopped["after"]) + 1 :]
    return {name: key for name, key in policies.items() if name not in never}


def trained_iterates(run: RunFolder, store: Store) -> dict[str, Path]:
    """{number: adapter folder} of the iterates there are so far, in order."""
    played = as_far_as_played(run.policies, run.record)
    iterates = {name: key for name, key in played.items() if run.parts[name].is_iterate}
    adapters = {str(run.parts[name].iteration): store.adapter(key) for name, key in iterates.items()}
    return {number: adapter for number, adapter in adapters.items() if adapter is not None}


def find_base(run: RunFolder, store: Store) -> Source:
    """The base the game was played on.

    Raises:
        InputError: what is there now is another base, on which the adapters would mean something else.
    """
    base = run.recipe.model
    sources = Sources(run.folder, store.root / "sources.json", notice=store.notice)
    found = sources.model(base.name_or_path, base.revision)
    adapter = sources.adapter(base.adapter) if base.adapter else None
    if base_key(run.recipe, found, adapter) != run.inputs.base:
        raise InputError(
            f"model.name_or_path: {base.name_or_path!r} is no longer the base that {str(run.folder)!r} was played on; "
            "put the old files back, or play again"
        )
    return found


def find_trusted_base(run: RunFolder, store: Store, trust: Trust, notify: Notice) -> Source:
    """The base, to be loaded: raises as find_base, and where code that comes with it may not run."""
    base = find_base(run, store)
    trust.check(code_of_model(run.recipe, base), notify)
    return base


def machine_of(run: RunFolder) -> Machine:
    """Where to compute; the types are the game's. No optimiser is needed, so one that needs a GPU is no obstacle."""
    training = run.recipe.training.model_copy(update={"optim": "adamw_torch"})
    return find_machine(run.recipe.model_copy(update={"training": training}))


def note_used(store: Store, folder: Path, kind: str, keys: Iterable[str]) -> None:
    """Note tables of the store that this run's benchmarks are made from, so that gc leaves them."""
    keys = list(keys)
    store.users.note(folder, {kind: keys}, more=True)
    known = tables_in_use(folder)
    every = {**known, kind: sorted({*known.get(kind, []), *keys})}
    if every != known:
        write_checked(folder / USED, every)


def tables_in_use(folder: Path) -> dict[str, list[str]]:
    """{kind: keys} of the tables of the store that a run's benchmarks are made from."""
    path = folder / USED
    try:
        found = read_checked(path)
        if found.keys() - set(KINDS):
            raise ValueError("kinds")
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"{path}: does not read back; delete it, `lowmem-spin evaluate` writes it again") from None
    check_keys(path, found)
    return found
