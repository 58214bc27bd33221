"""Which steps of many games may be computed at once: what each needs, and what the next free worker is given.

The order in which one worker would take them stays: several take the earliest that are ready, so that with one worker nothing
changes. Steps are known by their places in that order; nothing here knows what they do.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Evaluate, Stage, Train, is_baseline

LOOKED_AT = 32  # ready steps among which one is looked for whose engines a worker has open


@dataclass(frozen=True)
class Node:
    """A step's place in the graph."""

    needs: frozenset[int]  # steps that have to be over
    settled: int = -1  # the step whose result has to be known to this game, which may end by it; -1: none
    opens: str = ""  # what a worker has to open for it: it goes to one that has that open


def own_needs(stages: Sequence[tuple[int, Stage]], stops: bool) -> list[Node]:
    """What a game's steps need of each other.

    Nothing waits for a measurement, and the game does not wait for what it is compared with.

    Args:
        stages: (place, stage) of the game's steps in their order; the samples of an evaluation are a step of their own.
        stops: whether a measurement may end the game.
    """
    found: list[Node] = []
    last: dict[bool, int] = {}  # of what is computed and measured apart: whether it is a baseline -> its latest step
    warm_start = measured = -1
    for place, stage in stages:
        before = last.get(is_baseline(stage), warm_start)
        found.append(Node(frozenset({before} - {-1}), measured if stops and not is_baseline(stage) else -1))
        if isinstance(stage, Evaluate):
            measured = place if stage.role is Role.ITERATE else measured
            continue
        last[is_baseline(stage)] = place
        if isinstance(stage, Train) and stage.role is Role.WARM_START:
            warm_start = place
    return found


@dataclass
class Schedule:
    """Steps that wait, are under way and are over.

    Args:
        nodes: in the order of one worker; needs are earlier places.
        made: places that need no worker: all that they ask for is made by the steps that they need.
    """

    nodes: Sequence[Node]
    made: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    passed: int = 0  # so many steps, from the first on, are settled: their games know their results

    def __post_init__(self) -> None:
        self._waiting = [set(node.needs) for node in self.nodes]
        self._waited_for: list[list[int]] = [[] for _ in self.nodes]
        self._settles: dict[int, list[int]] = {}
        for place, node in enumerate(self.nodes):
            for need in node.needs:
                self._waited_for[need].append(place)
            if node.settled >= 0:
                self._settles.setdefault(node.settled, []).append(place)
        self._ready: list[int] = []
        for place in range(len(self.nodes)):
            self._offer(place)

    def _offer(self, place: int) -> None:
        """It is ready, if nothing is missing any more."""
        if place in self.over or place in self.running or place in self.dropped:
            return
        if self._waiting[place] or self.nodes[place].settled >= self.passed:
            return
        if place in self.made:
            self.end(place)
        else:
            heapq.heappush(self._ready, place)

    def take(self, opened: str = "") -> int | None:
        """The step for a worker that is free: the earliest that is ready, or one of the next whose engines it has open."""
        first: list[int] = []
        while self._ready and len(first) < LOOKED_AT:
            place = heapq.heappop(self._ready)
            if place not in self.dropped and place not in self.running and place not in self.over:
                first.append(place)
        if not first:
            return None
        chosen = next((place for place in first if self.nodes[place].opens == opened), first[0])
        for place in first:
            if place != chosen:
                heapq.heappush(self._ready, place)
        self.running.add(chosen)
        return chosen

    def end(self, place: int, failed: bool = False) -> None:
        """It is over; what waits for it alone is ready. What a failed one would have made for others, those make."""
        if failed:
            self.made.clear()
        waiting = [place]
        while waiting:
            done = waiting.pop()
            self.running.discard(done)
            self.over.add(done)
            for later in self._waited_for[done]:
                self._waiting[later].discard(done)
                if not self._waiting[later] and later in self.made and self.nodes[later].settled < self.passed:
                    waiting.append(later)
                else:
                    self._offer(later)

    def give_back(self, place: int) -> None:
        """Its worker is gone: another may have it, if it is still wanted."""
        self.running.discard(place)
        if place in self.dropped:
            self.end(place, failed=True)
        else:
            self._offer(place)

    def settle(self, place: int) -> None:
        """The game of this step, and of all before it, knows its result."""
        self.passed = max(self.passed, place + 1)
        for later in self._settles.pop(place, []):
            self._offer(later)

    def drop(self, places: Iterable[int]) -> None:
        """These are not to be computed. What they would have made for others, those make."""
        gone = {place for place in places if place not in self.over and place not in self.dropped}
        if not gone:
            return
        self.dropped |= gone
        self.made.clear()
        for place in gone - self.running:
            for later in self._waited_for[place]:
                self._waiting[later].discard(place)
                self._offer(later)
