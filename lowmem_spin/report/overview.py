"""The games below a folder: how far each is, how good, how large, how long ago."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from lowmem_spin.algorithm.roles import parts_in
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import size_in_words
from lowmem_spin.report.grid import Grid
from lowmem_spin.report.intervals import Value
from lowmem_spin.report.load import read_results
from lowmem_spin.report.measures import MEASURES
from lowmem_spin.report.results import RunResults
from lowmem_spin.runner.gc import size_of
from lowmem_spin.runner.run_folder import is_played


@dataclass(frozen=True)
class Played:
    """A run's or a sweep's folder."""

    folder: Path
    state: str
    best: str  # which policy or configuration, and its score
    size: int  # bytes of its own, those in the store not counted
    age: float  # seconds since it was last played


def played_below(top: Path) -> list[Played]:
    """Every run and sweep below `top`, the newest first; a sweep stands for its points.

    Raises:
        InputError: there is no such folder.
    """
    if not top.is_dir():
        raise InputError(f"{str(top)!r} is no folder; give the one that has your runs")
    sweeps = {path.parent for path in top.rglob("sweep.json")}
    records = [path for path in top.rglob("run.json") if not sweeps & set(path.parents)]
    found = [played(path) for path in [*records, *(folder / "sweep.json" for folder in sweeps)]]
    return sorted(found, key=lambda one: one.age)


def played(record: Path) -> Played:
    """The game of a run.json or a sweep.json."""
    folder, state, best = record.parent, "finished", ""
    try:
        results = read_results(folder)
    except InputError:
        state = _unfinished(record)
    else:
        if isinstance(results, RunResults):
            policy, score = max(results.played, key=lambda policy: policy.score.mean), results.scores[0]
            best = _scored(policy.name, score, policy.score)
            state = f"ended after {results.record['stopped']['after']}" if "stopped" in results.record else state
        else:
            done, asked = len(results.runs), len(results.file.points)
            state = state if done == asked else f"{_how(folder)}: {done} of {asked} games"
            if results.finished:
                score, value = results.score, results.best.value(results.score)
                best = _scored(results.best.label, score, value)
    return Played(folder, state, best, size_of(folder), time.time() - record.stat().st_mtime)


def _scored(name: str, score: str, value: Value) -> str:
    measure = MEASURES[score]
    return f"{name}: {measure.label} {measure.text(value)}{'%' * measure.percent}"


def _unfinished(record: Path) -> str:
    """How many iterates there are of those that the game is to have, if its record says so."""
    try:
        asked = sum(part.is_iterate for part in parts_in(json.loads(record.read_text(encoding="utf-8"))).values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "does not read back"
    done = [path for path in (record.parent / "iterates").glob("*") if path.name.isdecimal() and path.exists()]
    return f"{_how(record.parent)}: {len(done)} of {asked} iterates"


def _how(folder: Path) -> str:
    return "playing now" if is_played(folder) else "not finished"


def overview_grid(games: list[Played], top: Path) -> Grid:
    """A row per game."""
    rows = [[str(one.folder.relative_to(top)), one.state, one.best, size_in_words(one.size), _ago(one.age)] for one in games]
    return Grid(["run", "state", "best policy", "size", "played"], rows, texts=2)


def _ago(seconds: float) -> str:
    """An age to one figure or two."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"
