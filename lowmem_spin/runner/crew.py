"""Several workers for the steps of a sweep: each makes sure that the store has what its step makes.

The sweep itself then plays every step in the order of one worker, finds all of it stored, and so keeps its records, tables and
early ends exactly as if it had been alone. Nothing a worker says matters but that it is done.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lowmem_spin.common.display import EVERY, Display, TimeIsUpError
from lowmem_spin.common.errors import InputError, printable
from lowmem_spin.runner.schedule import Schedule

DEATHS = 3  # of workers over one step: it is the step, then


@dataclass(frozen=True)
class Done:
    """How one step ended."""

    seconds: Mapping[str, float] = field(default_factory=dict)  # by kind of work
    rows: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    lines: Sequence[tuple[str, str]] = ()  # what was said on the way, each with its style
    took: float = 0.0  # seconds in all
    error: Exception | None = None
    late: bool = False  # the hours are over
    died: bool = False  # the worker has gone, with whatever was not stored yet
    machine: str = ""  # where it was computed
    device: str = ""


@dataclass(frozen=True)
class Computed:
    """What a worker was busy with."""

    worker: int
    step: int
    seconds: float
    machine: str  # as far as the worker has said so
    device: str
    whole: bool = True  # it came to its end, and was not cut off


class Workers(Protocol):
    """Where steps are computed."""

    count: int

    def start(self, worker: int, step: int) -> None:
        """Have a worker that is free compute a step."""
        ...

    def assist(self, worker: int, step: int) -> None:
        """Have a worker that is free compute parts of a step that another one computes."""
        ...

    def wait(self, seconds: float) -> list[tuple[int, Done]]:
        """Workers that have ended their steps, as soon as there are any; none, if so many seconds pass."""
        ...

    def progress(self, worker: int) -> str | None:
        """How far a worker is, in a line."""
        ...

    def replace(self, worker: int) -> None:
        """Put another in the place of one that died, or that an error has left in whatever state."""
        ...

    def ready(self, worker: int) -> bool:
        """Whether it is there. One that takes the place of another may have to wait for a machine, and `wait` with it."""
        ...

    def close(self) -> None:
        """End them all."""
        ...


class Crew:
    """Keeps the workers busy, and waits for steps. A worker for which no step is ready helps with one that is under way.

    Args:
        shared: rows of the steps that several workers may compute together.
    """

    def __init__(self, workers: Workers, schedule: Schedule, display: Display, shared: Mapping[int, int] | None = None) -> None:
        self.workers, self.schedule, self.display, self.shared = workers, schedule, display, shared or {}
        self.has: dict[int, int] = {}  # worker -> its step
        self.helpers: set[int] = set()  # workers that help with their step
        self.helped: set[tuple[int, int]] = set()  # (worker, step), for it need not come again
        self.opened = [""] * workers.count
        self.ended: dict[int, Done] = {}  # steps that a game has not asked for yet
        self.deaths: Counter[int] = Counter()
        self.began = [0.0] * workers.count  # on time.perf_counter's clock, the step that each has
        self.places = [("", "")] * workers.count  # machine and device of each
        self.computed: list[Computed] = []
        self.late = False

    def wait_for(self, step: int) -> None:
        """Return when the store has what a step makes; the others go on meanwhile.

        Raises:
            TimeIsUpError: a worker has said that the hours are over.
            Exception: what the step failed of.
        """
        self._hand_out()
        while not (step in self.ended or step in self.schedule.over or step in self.schedule.dropped):
            if not self.has and all(map(self.workers.ready, range(self.workers.count))):
                raise RuntimeError(f"step {step} waits for nothing that is under way")
            self._wait()
            self._hand_out()
            if self.late:
                self.finish()
        done = self.ended.get(step, Done())
        for kind, seconds in done.seconds.items():
            self.display.seconds[kind] += seconds
        if done.error is not None:
            raise done.error

    def finish(self) -> None:
        """The hours are over: every worker ends where all that it has computed is stored.

        Raises:
            TimeIsUpError: they have.
        """
        self.late = True
        while self.has:
            self._wait()
        raise TimeIsUpError

    def _wait(self) -> None:
        ended = self.workers.wait(EVERY)
        for worker, done in ended:
            self._end(worker, done)
        if not ended:
            self._tell()

    def settle(self, step: int, needless: Sequence[int] = ()) -> None:
        """The games know the results of all steps up to this one, and do not need those any more."""
        if needless:
            self.schedule.drop(needless)
        if self.ended.pop(step, Done()).error is not None:
            self.schedule.end(step, failed=True)
        self.schedule.settle(step)

    def close(self) -> None:
        """End the workers; what they are computing is cut off."""
        while self.has:
            self._cut_off(*self.has.popitem())
        self.workers.close()

    def _cut_off(self, worker: int, step: int) -> None:
        self.computed.append(
            Computed(worker, step, time.perf_counter() - self.began[worker], *self.places[worker], whole=False)
        )

    def _hand_out(self) -> None:
        for worker in range(self.workers.count):
            if worker in self.has or self.late or not self.workers.ready(worker):
                continue
            step = self.schedule.take(self.opened[worker])
            if helps := step is None:
                step = self._to_help(worker)
            if step is None:
                continue
            self.has[worker], self.opened[worker] = step, self.schedule.nodes[step].opens
            self.began[worker] = time.perf_counter()
            if helps:
                self.helpers.add(worker)
                self.helped.add((worker, step))
                self.workers.assist(worker, step)
            else:
                self.workers.start(worker, step)

    def _to_help(self, worker: int) -> int | None:
        """The largest step under way that this worker can help with."""
        under_way = [step for other, step in self.has.items() if other not in self.helpers and step in self.shared]
        new = [step for step in under_way if (worker, step) not in self.helped]
        return max(new, key=lambda step: (self.shared[step], -step), default=None)

    def _end(self, worker: int, done: Done) -> None:
        step = self.has.pop(worker)
        if done.died:
            self._cut_off(worker, step)
            self.places[worker] = ("", "")
        else:
            self.places[worker] = (done.machine, done.device)
            self.computed.append(Computed(worker, step, done.took, *self.places[worker], whole=not done.late))
        for line, style in done.lines:
            self.display.log(f"worker {worker + 1}: {line}", style)
        if done.late:
            self.late = True
        if done.died or done.error is not None:
            self.opened[worker] = ""
            self.workers.replace(worker)
        if worker in self.helpers:
            self._end_help(worker, done)
            return
        if done.late:
            return
        if done.died:
            self.deaths[step] += 1
            if self.deaths[step] < DEATHS:
                self.display.log(f"worker {worker + 1} died; another takes its place and continues where it was", "yellow")
                self.schedule.give_back(step)
                return
            remedy = "see its log for why; out of memory, for instance, ends a process like that"
            done = Done(error=InputError(f"{DEATHS} workers died computing the same step; {remedy}"))
        for kind, rows in done.rows.items():
            self.display.count(kind, rows, done.tokens.get(kind, 0))
        self.ended[step] = done
        if done.error is None or step in self.schedule.dropped:
            self.schedule.end(step, failed=done.error is not None)
        # else what needs it waits until its game knows, which may not want that any more

    def _end_help(self, worker: int, done: Done) -> None:
        """What it has computed is in the store; what it has not, the one that it helped does."""
        self.helpers.discard(worker)
        for kind, rows in done.rows.items():
            self.display.count(kind, rows, done.tokens.get(kind, 0))
        for kind, seconds in done.seconds.items():
            self.display.seconds[kind] += seconds
        if done.died or done.error is not None:
            why = "died" if done.died else f"could not help ({printable(' '.join(str(done.error).split()))})"
            self.display.log(f"worker {worker + 1} {why}; the other continues alone", "yellow")

    def _tell(self) -> None:
        """Who does what."""
        for worker in sorted(self.has):
            line = self.workers.progress(worker)
            if line is not None:
                self.display.log(f"worker {worker + 1}: {line}")
        for worker in range(self.workers.count):
            if not self.workers.ready(worker):
                self.display.log(f"worker {worker + 1} waits for a machine to be on", "yellow")

    def busy_line(self, seconds: float) -> str:
        """How much of so many seconds each was computing."""
        busy = [0.0] * self.workers.count
        for one in self.computed:
            busy[one.worker] += one.seconds
        return ", ".join(f"worker {number + 1} busy {part / seconds:.0%}" for number, part in enumerate(busy))
