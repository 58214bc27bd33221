"""What in a store no run uses, from the keys that each run's recipe asks for; nothing is read but names and sizes.

Runs are those below a folder, and those that the store knows of (store/users.py).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.stages import Inputs, Stage, Train
from lowmem_spin.algorithm.touches import touches
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import is_key
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.dequantized import weights_key
from lowmem_spin.runner import run_folder
from lowmem_spin.runner.run_folder import RunFolder
from lowmem_spin.store.store import FREED, Store
from lowmem_spin.store.users import KINDS, User, UserState

TEMPORARY = re.compile(r"\.(.+\.)?[0-9a-f]{32}")  # what is written under such a name is renamed when it is whole


@dataclass
class Used:
    """Keys in use, by kind; a kind in `everything` is used whole."""

    keys: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    everything: set[str] = field(default_factory=set)

    def add(self, keys: Mapping[str, Iterable[str]]) -> None:
        for kind, more in keys.items():
            self.keys[kind].update(more)

    def has(self, kind: str, key: str) -> bool:
        return kind in self.everything or key in self.keys[kind]


@dataclass(frozen=True)
class Unused:
    """Something stored that no run uses."""

    kind: str
    path: Path
    size: int  # bytes
    written: float = 0.0  # when anything of it was, in seconds since 1970


def run_folders(top: Path, store: Path) -> list[Path]:
    """Every folder below `top`, however deep and behind links too, that has a run.json; the store is not looked into."""
    if not top.is_dir():
        raise InputError(f"--runs: no folder {str(top)!r}; give the one that has your run folders")
    seen, folders = {store.resolve()}, []
    for folder, inner, files in os.walk(top, followlinks=True, onerror=_refuse):
        if Path(folder).resolve() in seen:
            inner.clear()
            continue
        seen.add(Path(folder).resolve())
        if "run.json" in files:
            folders.append(Path(folder))
    return sorted(folders)


def _refuse(error: OSError) -> None:
    raise InputError(f"--runs: {error.filename!r} cannot be read ({error.strerror}): a run in it may use anything")


def used_by(folders: Iterable[Path]) -> Used:
    """What these runs use, finished or not.

    Raises:
        InputError: one cannot be read, or was played by a version that named its work differently.
    """
    used = Used()
    for folder in folders:
        run = run_folder.read_run_folder(folder)
        stages = list(play(run.recipe, run.inputs))
        trained = {stage.name: stage.policy for stage in stages if isinstance(stage, Train)}
        if {"base": run.inputs.base, **trained} != run.policies:
            raise InputError(f"run {str(folder)!r}: its recipe gives other policies than its run.json has; play it again")
        used.add(keys_of(run, stages))
        used.everything |= {kind for kind, part in (("data", "data"), ("weights", "model")) if part not in run.record}
    return used


def keys_of(run: RunFolder, stages: Sequence[Stage] | None = None) -> dict[str, set[str]]:
    """{kind: keys} of what a run uses, as far as it says so: a version that did not name its data used any."""
    stages = list(play(run.recipe, run.inputs)) if stages is None else stages
    base, identity = run.recipe.model, run.record.get("model")
    weights = None if identity is None else weights_key(identity, base.quantization, base.dtype)
    used = Used()
    used.add(keys_of_game(run.recipe, run.inputs, stages, run.record.get("data", []), weights))
    used.add(run_folder.tables_in_use(run.folder))
    used.add({"results": run.policies.values()})
    return used.keys


def keys_of_game(
    recipe: Recipe, inputs: Inputs, stages: Sequence[Stage], data: Iterable[str], weights: str | None
) -> dict[str, set[str]]:
    """{kind: keys} of what a game makes, reads, and leaves for its benchmarks."""
    keys: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for stage in stages:
        for touch in touches(stage, recipe, inputs):
            keys[touch.kind].add(touch.key)
    keys["work"] |= keys["adapters"]  # what is not yet trained has its checkpoints there
    keys["results"] |= {inputs.base, *(stage.policy for stage in stages if isinstance(stage, Train))}
    keys["data"].update(data)
    keys["weights"] |= set() if weights is None else {weights}
    return keys


def unused(store: Path, by: Used) -> list[Unused]:
    """What is stored and not used, largest first, and what was set aside. Names that no store gives are somebody's own."""
    entries = []
    for kind in KINDS:
        entries += [(kind, path) for path in _visible(store / kind) if is_key(path.stem) and not by.has(kind, path.stem)]
    entries += [("aside", path) for path in _visible(store / "aside") if not path.name.startswith(FREED)]
    return _by_size(entries)


def leftovers(store: Store, listed: Iterable[Unused] = ()) -> list[Unused]:
    """What processes that were killed have left: files half written or half deleted, checkpoints of an adapter that is there,
    leases, and locks of what is not stored. Until it is old, it may be a living process's. What is `listed` already is not
    again.
    """
    root, paths = store.root, [*store.users.leases()]
    for folder, inner, files in os.walk(root):
        torn = [name for name in (*inner, *files) if TEMPORARY.fullmatch(name)]
        paths += [Path(folder) / name for name in torn]
        inner[:] = [name for name in inner if name not in torn]
    paths += [path for path in _visible(root / "aside") if path.name.startswith(FREED)]
    paths += [path for path in _visible(root / "work") if is_key(path.name) and (root / "adapters" / path.name).exists()]
    there = {path.stem for kind in KINDS for path in (root / kind).glob("*")} | {path.stem for path in root.glob("results/*/*")}
    paths += [path for path in _visible(root / "locks") if is_key(key := path.stem.partition("-")[0]) and key not in there]
    return _by_size(("leftover", path) for path in paths if path not in {item.path for item in listed})


def _by_size(entries: Iterable[tuple[str, Path]]) -> list[Unused]:
    items = (Unused(kind, path, size_of(path), _written(path)) for kind, path in entries)
    return sorted(items, key=lambda item: (-item.size, item.path))


@dataclass(frozen=True)
class KnownRuns:
    """The runs that a store knows of, beside those that somebody names."""

    folders: list[Path]  # to be read like those
    kept: list[User]  # whose record counts: they are being played, or away
    gone: list[User]

    def lines(self) -> Iterator[str]:
        """What a person should know of them."""
        for user in self.kept:
            if user.state is UserState.PLAYED:
                yield f"{user.folder} is being played: all that it uses is kept"
            else:
                missing = "is not here, nor is the drive or folder that it was in"
                kept = f"what it used on {user.when[:10]} is kept; if it never comes back, delete {user.record}"
                yield f"{user.folder} {missing}: {kept}"
        for user in self.gone:
            gone = "this run folder no longer exists, so its results can be deleted"
            yield f"{user.folder}: {gone}; if you have moved it, give --runs a folder that it is in now"


def known_runs(store: Store, named: Iterable[Path], top: Path) -> KnownRuns:
    """The store's users that are not among the named folders, which are all that there are below `top`."""
    own, users = {folder.resolve() for folder in named}, store.users.known()
    played = [user for user in users if user.state is UserState.PLAYED]
    rest = [user for user in users if user.folder not in own and user.state is not UserState.PLAYED]
    here = [user.folder for user in rest if user.state is UserState.HERE]
    here += [user.folder for user in played if user.folder not in own and (user.folder / "run.json").is_file()]
    absent = [user for user in rest if user.state is UserState.AWAY]
    gone = [user for user in rest if user.state is UserState.GONE or (user in absent and _deleted(user, top.resolve()))]
    away = [user for user in absent if user not in gone]
    return KnownRuns(here, [*played, *away], gone)


def _deleted(user: User, top: Path) -> bool:
    """Whether a run that is away was below `top`, on a drive that is here: it went with its sweep, for instance."""
    nearest = next(folder for folder in user.folder.parents if folder.exists())
    return user.folder.is_relative_to(top) and nearest.stat().st_dev == user.device


def _visible(folder: Path) -> list[Path]:
    """What is there, writes in progress left out."""
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    return sum(file.lstat().st_size for file in _files(path))


def _written(path: Path) -> float:
    """When the newest of its files was, or a folder without any."""
    return max((file.lstat().st_mtime for file in _files(path)), default=path.lstat().st_mtime)


def _files(path: Path) -> list[Path]:
    if path.is_symlink() or not path.is_dir():
        return [path]
    return [Path(folder) / name for folder, _, names in os.walk(path) for name in names]


def collect(store: Store, items: Iterable[Unused]) -> Iterator[tuple[Unused, bool]]:
    """Free each item; False with those that a running process is computing."""
    for item in items:
        yield item, store.free(item.path)
