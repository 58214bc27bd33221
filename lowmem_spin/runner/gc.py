"""What in a store no run uses, from the keys that each run's recipe asks for; nothing is read but names and sizes."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.stages import Train
from lowmem_spin.algorithm.touches import touches
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import is_key
from lowmem_spin.engines.dequantized import weights_key
from lowmem_spin.runner import run_folder
from lowmem_spin.runner.run_folder import RunFolder
from lowmem_spin.store.store import Store

KINDS = ("adapters", "completions", "mixtures", "judgements", "logps", "data", "weights", "work", "results")


@dataclass
class Used:
    """Keys in use, by kind; a kind in `everything` is used whole."""

    keys: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    everything: set[str] = field(default_factory=set)

    def has(self, kind: str, key: str) -> bool:
        return kind in self.everything or key in self.keys[kind]


@dataclass(frozen=True)
class Unused:
    """Something stored that no run uses."""

    kind: str
    path: Path
    size: int  # bytes


def run_folders(top: Path, store: Path) -> list[Path]:
    """Every folder below `top`, however deep and behind links too, that has a run.json; the store is not looked into."""
    if not top.is_dir():
        raise InputError(f"--runs: no folder {str(top)!r}; give the one that has your run folders")
    seen, found = {store.resolve()}, []
    for folder, inner, files in os.walk(top, followlinks=True, onerror=_refuse):
        if Path(folder).resolve() in seen:
            inner.clear()
            continue
        seen.add(Path(folder).resolve())
        if "run.json" in files:
            found.append(Path(folder))
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise InputError(f"--runs: {error.filename!r} cannot be read ({error.strerror}): a run in it may use anything")


def used_by(folders: Iterable[Path]) -> Used:
    """What these runs use, finished or not.

    Raises:
        InputError: one cannot be read, or was played by a version that named its work differently.
    """
    used = Used()
    for folder in folders:
        run = run_folder.read_run(folder)
        stages = list(play(run.recipe, run.inputs))
        trained = {stage.name: stage.policy for stage in stages if isinstance(stage, Train)}
        if {"base": run.inputs.base, **trained} != run.policies:
            raise InputError(f"run {str(folder)!r}: its recipe gives other policies than its run.json has; play it again")
        for stage in stages:
            for touch in touches(stage, run.recipe, run.inputs):
                used.keys[touch.kind].add(touch.key)
        used.keys["work"].update(used.keys["adapters"])  # what is not yet trained has its checkpoints there
        used.keys["results"].update(run.policies.values())
        for kind, keys in run_folder.tables_in_use(folder).items():
            used.keys[kind].update(keys)
        _add_files(used, run)
    return used


def _add_files(used: Used, run: RunFolder) -> None:
    """Prepared rows and unpacked weights; a run.json that does not name them keeps them all."""
    if "data" in run.record:
        used.keys["data"].update(run.record["data"])
    else:
        used.everything.add("data")
    if "model" in run.record:
        model = run.recipe.model
        used.keys["weights"].add(weights_key(run.record["model"], model.quantization, model.dtype))
    else:
        used.everything.add("weights")


def unused(store: Path, by: Used) -> list[Unused]:
    """What is stored and not used, largest first, and what was set aside. Names that no store gives are somebody's own."""
    found = []
    for kind in KINDS:
        found += [(kind, path) for path in _visible(store / kind) if is_key(path.stem) and not by.has(kind, path.stem)]
    found += [("aside", path) for path in _visible(store / "aside")]
    return sorted((Unused(kind, path, size_of(path)) for kind, path in found), key=lambda item: (-item.size, item.path))


def _visible(folder: Path) -> list[Path]:
    """What is there, writes in progress left out."""
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    files = [path] if not path.is_dir() else [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    return sum(file.lstat().st_size for file in files)


def collect(store: Store, items: Iterable[Unused]) -> Iterator[tuple[Unused, bool]]:
    """Free each item; False with those that a running process is computing."""
    for item in items:
        yield item, store.free(item.path)
