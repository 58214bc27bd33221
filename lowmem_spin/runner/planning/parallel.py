"""How long a sweep takes with several workers: its crew hands its very steps to workers that take their planned time on a
clock of their own, so that whatever the crew does, the plan does.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lowmem_spin.algorithm.stages import Stage
from lowmem_spin.algorithm.touches import Places, Touch
from lowmem_spin.common.display import Display, about, clock
from lowmem_spin.common.errors import InputError
from lowmem_spin.engines.machine import visible_gpus
from lowmem_spin.engines.pool import EnginePool, GameEngines
from lowmem_spin.runner.crew import Crew, Done
from lowmem_spin.runner.planning.counting import PlanLine
from lowmem_spin.runner.planning.forecast import ahead_of, of_step
from lowmem_spin.runner.resolved import ResolvedRecipe
from lowmem_spin.runner.schedule import Node, Schedule
from lowmem_spin.runner.steps import in_step, numbered, scheduled, shared_rows
from lowmem_spin.runner.worker_count import asked_count, check_gpus

Game = tuple[ResolvedRecipe, Sequence[tuple[Stage, Sequence[Touch]]]]


@dataclass(frozen=True)
class Parallel:
    """A sweep's time with several workers."""

    count: int
    seconds: float  # until the last step is over; not a number: the model is not known yet
    longest_chain: float  # seconds of steps that wait for each other and cannot be shared, however many workers there are
    untimed: bool  # a judge's own time comes on top, and is not known
    left: bool  # whether there is anything left to compute

    def line(self) -> str:
        """Both in words."""
        workers = f"With {self.count} worker{'s' * (self.count > 1)}"
        if not self.left:
            return f"{workers}: nothing left to compute"
        if math.isnan(self.seconds):
            return f"{workers}: unknown time"
        judge = ", and the judge on top" * self.untimed
        chain = f"the longest chain of steps, which more workers cannot shorten, takes {clock(self.longest_chain)}"
        return f"{workers}: {about(self.seconds)}{judge}; {chain}"

    def record(self) -> dict[str, Any]:
        """The same as JSON."""
        known = not math.isnan(self.seconds)
        return {
            "count": self.count,
            "seconds": round(self.seconds, 1) if known else None,
            "longest_chain_seconds": round(self.longest_chain, 1) if known else None,
            "without": ["judge"] * self.untimed,
        }


def check_workers(asked: str | None, gpu: str | None) -> None:
    """Refuse workers that cannot be planned for; None are no workers.

    Raises:
        InputError: one line.
    """
    if asked is None:
        return
    if asked_count(asked) is None and gpu is not None:
        raise InputError(f"--workers auto: it counts the GPUs here, and --gpu {gpu} plans for others; give a number")


def with_workers(asked: str, games: Sequence[Game], lines: Sequence[PlanLine], gpu: str | None) -> Parallel:
    """Plan for several workers.

    Args:
        asked: how many; "auto" is one for each GPU that is here.
        games: what is played, stage by stage, with what each touches.
        lines: what is left of it, timed.
        gpu: planned for, instead of for this machine.

    Raises:
        InputError: there are not so many GPUs here.
    """
    count = asked_count(asked)
    gpus = visible_gpus() if gpu is None and any(found.choices.machine.device == "cuda" for found, _ in games) else 0
    if gpus:
        check_gpus(count, gpus, "; or plan for more with --gpu")
    count = count or max(1, gpus)
    timed = [line for line in lines if line.to_do and not line.untimed]
    schedule, seconds, shared = timed_steps(games, timed)
    untimed = any(line.untimed for line in lines)
    left = any(line.to_do for line in lines)
    if any(map(math.isnan, seconds)):
        return Parallel(count, math.nan, math.nan, untimed, left)
    chain = longest_chain(schedule.nodes, [0.0 if step in shared else took for step, took in enumerate(seconds)])
    return Parallel(count, simulated(schedule, seconds, count, shared), chain, untimed, left)


def timed_steps(games: Sequence[Game], lines: Sequence[PlanLine]) -> tuple[Schedule, list[float], dict[int, int]]:
    """The steps of all games as a sweep schedules them, the seconds of each, and which several workers may share, as
    `shared_rows` has them. What several ask for, the first makes."""
    engines = [_signature(found) for found, _ in games]
    steps = in_step([numbered([stage for stage, _ in played]) for _, played in games], engines)
    touched = {(game, id(stage)): touches for game, (_, played) in enumerate(games) for stage, touches in played}
    asked = [of_step(touched[step.game, id(step.stage)], step.samples_only) for step in steps]
    ahead = ahead_of((step.stage, touches) for step, touches in zip(steps, asked, strict=True))
    schedule = scheduled([found.recipe for found, _ in games], engines, steps, ahead)
    return schedule, _seconds(asked, lines), shared_rows(ahead)


def _signature(found: ResolvedRecipe) -> str:
    """As OpenGame's."""
    quiet = Display(Console(quiet=True))
    engines = GameEngines(
        recipe=found.recipe,
        model=found.model,
        choices=found.choices,
        weights_dir=Path(),
        display=quiet,
        pool=EnginePool(),
    )
    return " ".join(engines.signature(name) for name in (found.choices.generator, found.choices.learner))


def _seconds(steps: Iterable[Sequence[Touch]], lines: Sequence[PlanLine]) -> list[float]:
    """Seconds of each step: a row that is not stored takes its line's time, of the step that asks for it first."""
    left: dict[tuple[str, str], list[tuple[Places, float]]] = {}
    for line in lines:
        left.setdefault((line.unit.table, line.unit.side), []).append((line.missing, line.seconds / line.to_do))
    found = []
    for touches in steps:
        taken = 0.0
        for touch in touches:
            rest = []
            for rows, each in left.pop((touch.key, touch.side), []):
                others = rows[~np.isin(rows, touch.places)]
                taken += (len(rows) - len(others)) * each
                rest += [(others, each)] if len(others) else []
            if rest:
                left[touch.key, touch.side] = rest
        found.append(taken)
    return found


class _Waiting:
    """Workers that do nothing but let a clock of their own go on; see crew.Workers."""

    def __init__(self, count: int, seconds: Sequence[float]) -> None:
        self.count, self.seconds, self.now = count, seconds, 0.0
        self.ends: dict[int, tuple[float, int]] = {}  # by worker: when, and its step

    def start(self, worker: int, step: int) -> None:
        self.ends[worker] = (self.now + self.seconds[step], step)

    def assist(self, worker: int, step: int) -> None:
        """What is left of it takes as much less time as there are more."""
        already = [one for one, (_, its) in self.ends.items() if its == step]
        left = (self.ends[already[0]][0] - self.now) * len(already) / (len(already) + 1)
        self.ends |= dict.fromkeys([*already, worker], (self.now + left, step))

    def wait(self, seconds: float) -> list[tuple[int, Done]]:
        worker = min(self.ends, key=lambda one: (self.ends[one][0], one))
        self.now, _ = self.ends.pop(worker)
        return [(worker, Done())]

    def progress(self, worker: int) -> str | None:
        return None

    def replace(self, worker: int) -> None: ...

    def ready(self, worker: int) -> bool:
        return True

    def close(self) -> None: ...


def simulated(schedule: Schedule, seconds: Sequence[float], count: int, shared: Mapping[int, int] | None = None) -> float:
    """Seconds until so many workers have computed all steps, each taking its time; see crew.Crew for `shared`."""
    workers = _Waiting(count, seconds)
    crew = Crew(workers, schedule, Display(Console(quiet=True)), shared)
    for step in range(len(seconds)):  # as a sweep walks through them
        crew.wait_for(step)
        crew.settle(step)
    return workers.now


def longest_chain(nodes: Sequence[Node], seconds: Sequence[float]) -> float:
    """Seconds until all steps are over if each begins as soon as it may."""
    ends: list[float] = []
    settled = [0.0]  # until the results of so many steps are known
    for node, took in zip(nodes, seconds, strict=True):
        ends.append(max([settled[node.settled + 1], *(ends[need] for need in node.needs)]) + took)
        settled.append(max(settled[-1], ends[-1]))
    return settled[-1]
