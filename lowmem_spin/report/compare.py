"""Games that were played one by one, side by side: the table and the curves of a sweep without there having been one."""

from collections.abc import Sequence
from pathlib import Path

from lowmem_spin.common.errors import InputError
from lowmem_spin.report.load import read_results
from lowmem_spin.report.results import PointStatus, RunResults, SweepFile, SweepResults, recipe_field

NAME = "run"  # the axis that these games differ in


def side_by_side(folders: Sequence[Path]) -> SweepResults:
    """The results of runs, and of the finished points of sweeps, seeds together, as those of a sweep over their names.

    Raises:
        InputError: a folder is neither, or does not read back; or the policies were measured on different rows.
    """
    points: list[PointStatus] = []
    runs: dict[str, RunResults] = {}
    lines: list[str] = []
    for folder in folders:
        found = read_results(folder, so_far=True)
        if isinstance(found, RunResults):
            games = [("", recipe_field(found.recipe, "seed"), found)]
        else:
            several, left = len(found.configurations) > 1, len(found.file.points) - len(found.runs)
            lines += [f"{folder}: {left} of its {len(found.file.points)} games are not finished, and left out"] * bool(left)
            games = [(f" {c.label}" * several, seed, run) for c in found.configurations for seed, run in c.runs.items()]
        name = _unlike(folder.resolve().name, {str(point.setting[NAME]) for point in points})
        for label, seed, run in games:
            point = PointStatus(name=str(run.folder), values={NAME: name + label, "seed": seed}, dir="", status="finished")
            points.append(point)
            runs[point.name] = run
    results = SweepResults(
        Path(), SweepFile(recipe="comparison", axes={NAME: []}, seeds=[], points=points), runs, lost="; ".join(lines) or None
    )
    if len(results.configurations) < 2:
        raise InputError("there is nothing to compare: name two finished runs, or a sweep with two finished configurations")
    (first, one), *others = runs.items()
    for name, other in others:
        if _rows(other) != _rows(one):
            raise InputError(f"{name!r} was measured on other held-out rows than {first!r}: their numbers do not compare")
        metrics = [recipe_field(run.recipe, "evaluation.metric") for run in (one, other)]
        if one.scores[0] == other.scores[0] in ("regex", "function") and metrics[0] != metrics[1]:
            raise InputError(f"{name!r} has another evaluation.metric than {first!r}: their numbers do not compare")
    return results


def _unlike(name: str, taken: set[str]) -> str:
    """The name, with a number if it is one of a game that is there already."""
    number, given = 1, name
    while any(other.startswith(name) for other in taken):
        number += 1
        name = f"{given} ({number})"
    return name


def _rows(run: RunResults) -> list[str]:
    """The held-out prompts whose answers are kept: the same draw of the same rows has the same."""
    return [sample["prompt_id"] for sample in run.base.samples]
