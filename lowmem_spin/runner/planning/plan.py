"""What a recipe, or a sweep of it, will compute: rows by stage, what is stored already, time. Nothing is run or loaded.

It reads config.json, manifests and the id columns of the store's tables, never torch. Before the data is prepared its
rows have no ids yet: counts are then upper bounds, as if no two draws had a prompt in common.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Evaluate
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.trust import Trust, UntrustedError
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.config.grid import SweepPoint
from lowmem_spin.engines.oracles.base import NoWeights
from lowmem_spin.runner.planning.counting import GAME_KINDS, PlanLine, Work
from lowmem_spin.runner.planning.draft import Draft
from lowmem_spin.runner.planning.parallel import Parallel, with_workers
from lowmem_spin.runner.planning.total import Total, json_number
from lowmem_spin.runner.resolved import ResolvedRecipe


@dataclass(kw_only=True)
class PlannedWork:
    """A finished plan: work, times, notes and what is missing."""

    points: list[str]
    found: ResolvedRecipe  # of the first point
    work: Work
    lines: list[PlanLine]
    exact: bool  # the data is prepared, so counts are of the very rows
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # what a run on this machine still lacks, beside time and memory
    gpu: str | None = None  # planned for, instead of for this machine
    parallel: Parallel | None = None  # if it was asked what several workers take

    def total(self) -> Total:
        """What it comes to; a judge's time is left out where it was not measured."""
        timed = [line.seconds for line in self.lines if not line.untimed]
        peaks = [line.memory for line in self.lines if not math.isnan(line.memory)]
        left = sum(line.to_do for line in self.lines)
        untimed = any(line.untimed for line in self.lines)
        machine, forced = self.found.choices.machine, self.found.recipe.runtime.device == "cpu"
        return Total(left, sum(timed), untimed, max(peaks, default=math.nan), machine, forced, self.gpu)

    def totals(self) -> dict[str, dict[str, Any]]:
        """By kind: rows of independent runs, of runs that share an empty store, stored, still to do, and its seconds."""
        found = {}
        without_judge = [kind for kind in GAME_KINDS if kind != "judge" or self.work.independent.get(kind)]
        for kind in dict.fromkeys([*without_judge, *(line.unit.kind for line in self.lines)]):
            lines = [line for line in self.lines if line.unit.kind == kind]
            timed = [line.seconds for line in lines if kind == "judge" or not line.untimed]
            found[kind] = {
                "independent": self.work.independent.get(kind, 0),
                "shared": sum(line.rows for line in lines),
                "stored": sum(line.stored for line in lines),
                "to_do": sum(line.to_do for line in lines),
                "seconds": json_number(sum(timed)),
            }
        return found

    def record(self) -> dict[str, Any]:
        """The plan as JSON."""
        choices = self.found.choices
        stages = [
            {
                **{"kind": line.unit.kind, "label": line.label, "policy": line.unit.policy, "table": line.unit.table},
                **{"side": line.unit.side, "rows": line.rows, "stored": line.stored, "to_do": line.to_do},
                **{"seconds": json_number(line.seconds), "measured": line.measured},
                "gpu_memory_bytes": json_number(line.memory),
            }
            for line in self.lines
        ]
        engines = {"generation": choices.generator, "training": choices.learner}
        machine = {"device": choices.machine.device, "dtype": choices.machine.dtype, "engines": engines}
        return {
            "points": self.points,
            **machine,
            "total": self.total().record(),
            **({} if self.parallel is None else {"workers": self.parallel.record()}),
            "exact": self.exact,
            "notes": self.notes,
            "totals": self.totals(),
            "stages": stages,
        }


def plan(
    points: Sequence[SweepPoint],
    recipe_dir: Path,
    gpu: str | None = None,
    trust: Trust | None = None,
    workers: str | None = None,
) -> PlannedWork:
    """Plan one game or all games of a sweep; a point of a sweep that cannot be played becomes a note.

    Args:
        points: the games.
        recipe_dir: the recipe's folder, from which its paths are looked for.
        gpu: one of calibration.PEAK, to plan for instead of for this machine.
        trust: in a recipe's own opponents and reference, which decide what the stages are; nothing else is run.
        workers: say, too, how long so many take; "auto" is one for each GPU that is here.

    Raises:
        InputError: no point can be played, for too few rows for instance, or there are not so many GPUs.
        UntrustedError: there are such functions, and they may not run.
    """
    draft = Draft(recipe_dir, gpu, trust or Trust())
    for point in points:
        try:
            draft.add(point)
        except InputError as error:
            if len(points) == 1 or isinstance(error, UntrustedError):
                raise
            draft.note([f"{point.name} cannot be played: {error}"])
    if not draft.founds:
        raise InputError(f"no point can be played: {draft.notes[0]}")
    if not draft.exact:
        draft.note(
            ["the data is not loaded and tokenised yet, so row counts are maxima, and nothing counts as stored"],
        )
    lines, parallel = draft.lines(), None
    draft.note(_left_out(draft, lines))
    if workers is not None:
        parallel = with_workers(workers, list(zip(draft.founds, draft.played, strict=True)), lines, gpu)
        if parallel.count > 1 and draft.founds[0].choices.machine.device == "cpu":
            draft.note(["workers on one CPU share its cores: their time is planned as if each had as many as there are here"])
    return PlannedWork(
        points=[point.name for point in points],
        found=draft.founds[0],
        lines=lines,
        work=draft.work,
        exact=draft.exact,
        notes=draft.notes,
        missing=draft.missing,
        gpu=gpu,
        parallel=parallel,
    )


def _left_out(draft: Draft, lines: Sequence[PlanLine]) -> Iterator[str]:
    """What takes time, or memory, that is not counted."""
    for line in lines:
        if line.untimed:
            oracle = draft.askers[line.unit.table, line.unit.side].recipe.game.oracle
            remedy = "" if draft.gpu or isinstance(oracle, JudgeOracle) else "; --measure times it"
            yield f"the time that game.oracle takes to judge is not counted{remedy}"
    for found in draft.founds:
        if not isinstance(found.oracle, NoWeights | None) and not found.judging("bfloat16"):
            yield "the memory that game.oracle takes is not known"
    names: dict[str, None] = {}
    policies: set[str] = set()
    for found, played in zip(draft.founds, draft.played, strict=True):
        if benchmarks := found.recipe.evaluation.benchmarks:
            names |= dict.fromkeys(benchmarks)
            measured = [stage for stage, _ in played if isinstance(stage, Evaluate)]
            policies |= {stage.policy for stage in measured if stage.role in (Role.BASE, Role.ITERATE)}
    if names:
        yield f"evaluation.benchmarks: {', '.join(names)}, on up to {len(policies)} policies; their time is not counted"
