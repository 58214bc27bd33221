"""Several workers: what may run at once, in what order, and what becomes of steps whose worker or game is gone."""

import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Evaluate
from lowmem_spin.common.display import Display, TimeIsUpError
from lowmem_spin.common.errors import InputError
from lowmem_spin.runner.crew import DEATHS, Crew, Done
from lowmem_spin.runner.planning.forecast import Ahead
from lowmem_spin.runner.schedule import Node, Schedule, own_needs
from lowmem_spin.runner.steps import TOGETHER, shared_rows


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    """Steps that need earlier ones at random."""
    count = draw(st.integers(1, 25))
    nodes = []
    for place in range(count):
        needs = draw(st.frozensets(st.integers(0, place - 1), max_size=3)) if place else frozenset()
        settled = draw(st.sampled_from([-1, -1, -1, place - 1])) if place else -1
        nodes.append(Node(needs, settled, draw(st.sampled_from("ab"))))
    return nodes


class Recording:
    """Workers that end in a random order, some of them by dying; what runs at once is checked when a step starts."""

    def __init__(self, count: int, seed: int, nodes: Sequence[Node], deaths: float = 0.0) -> None:
        self.count, self.nodes, self.deaths = count, nodes, deaths
        self.random = random.Random(seed)
        self.has: dict[int, int] = {}
        self.over: set[int] = set()
        self.settled = -1
        self.started: list[int] = []
        self.replaced = 0
        self.fails: dict[int, Done] = {}
        self.assisted: list[tuple[int, int]] = []
        self.helping: dict[int, int] = {}

    def start(self, worker: int, step: int) -> None:
        node = self.nodes[step]
        assert worker not in {**self.has, **self.helping} and step not in self.has.values()
        assert node.needs <= self.over, "a step has begun before what it needs was over"
        assert node.settled <= self.settled, "a step has begun that a measurement might have made needless"
        self.has[worker] = step
        self.started.append(step)

    def assist(self, worker: int, step: int) -> None:
        assert worker not in {**self.has, **self.helping} and step in self.has.values()
        waiting = set(range(len(self.nodes))) - self.over - set(self.has.values())
        ready = [one for one in waiting if self.nodes[one].needs <= self.over and self.nodes[one].settled <= self.settled]
        assert not ready, "a worker helps though there is a step for it alone"
        self.helping[worker] = step
        self.assisted.append((worker, step))

    def wait(self, seconds: float) -> list[tuple[int, Done]]:
        worker = self.random.choice(sorted({**self.has, **self.helping}))
        if worker in self.helping:
            del self.helping[worker]
            ends = [
                Done(died=True),
                Done(error=ValueError("no memory")),
                Done(took=1.0, rows={"score": 3}, seconds={"score": 1.0}),
            ]
            return [(worker, self.random.choice(ends))]
        step = self.has.pop(worker)
        if self.random.random() < self.deaths:
            return [(worker, Done(died=True))]
        self.over.add(step)
        return [(worker, self.fails.get(step, Done(took=1.0)))]

    def progress(self, worker: int) -> str | None:
        return None

    def replace(self, worker: int) -> None:
        self.replaced += 1

    def ready(self, worker: int) -> bool:
        return True

    def close(self) -> None: ...


def walk(
    nodes: Sequence[Node], workers: Recording, made: set[int] | None = None, shared: Mapping[int, int] | None = None
) -> Crew:
    """As a sweep does."""
    workers.over |= made or set()
    crew = Crew(workers, Schedule(nodes, set(made or set())), Display(Console(quiet=True)), shared)
    for step in range(len(nodes)):
        crew.wait_for(step)
        workers.settled = step
        crew.settle(step)
    return crew


@given(graphs(), st.integers(1, 4), st.integers(0, 1000), st.sets(st.integers(0, 24)))
@settings(max_examples=150, deadline=None)
def test_who_has_no_step_of_its_own_helps_and_whatever_becomes_of_it_nothing_else_changes(
    nodes: list[Node], count: int, seed: int, together: set[int]
) -> None:
    workers = Recording(count, seed, nodes)
    crew = walk(nodes, workers, shared=dict.fromkeys(together, 100))
    assert sorted(workers.started) == list(range(len(nodes)))
    assert {step for _, step in workers.assisted} <= together
    assert len(set(workers.assisted)) == len(workers.assisted), "a worker has come twice to help with the same"
    done = crew.display.rows["score"] // 3
    assert workers.replaced + done <= len(workers.assisted) and crew.display.seconds["score"] == done


def test_what_is_answered_and_scored_is_shared_if_there_is_enough_of_it() -> None:
    rows = [
        {"generate": TOGETHER},
        {"generate": TOGETHER - 1},
        {"generate": 9, "score": TOGETHER},
        {"score": TOGETHER, "judge": 1},
        {"score": TOGETHER, "judge": 0},
        {"train": 9 * TOGETHER},
        {},
    ]
    found = shared_rows([Ahead(kinds, True, frozenset()) for kinds in rows])
    assert found == {0: TOGETHER, 2: TOGETHER + 9, 4: TOGETHER}


def test_the_largest_step_is_helped_with() -> None:
    nodes = [Node(frozenset())] * 3
    workers = Recording(3, 0, nodes)
    crew = Crew(workers, Schedule(nodes), Display(Console(quiet=True)), {0: 10, 1: 30, 2: 20})
    workers.random.choice = lambda has: has[0]  # pyright: ignore[reportAttributeAccessIssue]
    crew.wait_for(0)  # the worker that ends it is free, and two steps are under way
    assert workers.assisted == [(0, 1)]


@given(graphs(), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_every_step_is_computed_once_and_after_what_it_needs(nodes: list[Node], count: int, seed: int) -> None:
    workers = Recording(count, seed, nodes)
    walk(nodes, workers)
    assert sorted(workers.started) == list(range(len(nodes)))


@given(graphs(), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_one_worker_takes_them_in_their_order(nodes: list[Node], seed: int) -> None:
    alike = [Node(node.needs) for node in nodes]
    workers = Recording(1, seed, alike)
    walk(alike, workers)
    assert workers.started == list(range(len(nodes)))


@given(graphs(), st.integers(2, 4), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_a_step_whose_worker_dies_is_computed_by_another(nodes: list[Node], count: int, seed: int) -> None:
    workers = Recording(count, seed, nodes, deaths=0.2)
    try:
        walk(nodes, workers)
    except InputError as error:
        died = max(workers.started.count(step) for step in range(len(nodes)))
        assert died == DEATHS and f"{DEATHS} workers died computing the same step" in str(error)
    else:
        assert set(workers.started) == set(range(len(nodes)))
        assert len(workers.started) == len(nodes) + workers.replaced


class Slow(Recording):
    """Whoever takes the place of one that died is there only after three more ends, or three waits for it."""

    def __init__(self, count: int, seed: int, nodes: Sequence[Node], deaths: float) -> None:
        super().__init__(count, seed, nodes, deaths)
        self.away: dict[int, int] = {}

    def start(self, worker: int, step: int) -> None:
        assert worker not in self.away, "a step waits for a worker that is not there"
        super().start(worker, step)

    def wait(self, seconds: float) -> list[tuple[int, Done]]:
        self.away = {worker: left - 1 for worker, left in self.away.items() if left > 1}
        return super().wait(seconds) if self.has else []

    def replace(self, worker: int) -> None:
        super().replace(worker)
        self.away[worker] = 3

    def ready(self, worker: int) -> bool:
        return worker not in self.away


@given(graphs(), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_no_step_is_given_to_a_worker_that_is_not_there_yet(nodes: list[Node], count: int, seed: int) -> None:
    workers = Slow(count, seed, nodes, deaths=0.1)
    try:
        walk(nodes, workers)
    except InputError as error:
        assert f"{DEATHS} workers died computing the same step" in str(error)
    else:
        assert set(workers.started) == set(range(len(nodes)))


def test_what_others_make_needs_no_worker() -> None:
    nodes = [Node(frozenset()), Node(frozenset({0})), Node(frozenset({1}))]
    workers = Recording(2, 0, nodes)
    workers.nodes = [nodes[0], nodes[1], Node(frozenset())]
    walk(nodes, workers, made={1})
    assert workers.started == [0, 2]


def test_what_a_failed_game_would_have_made_others_make() -> None:
    """0 and 1 are a game's, 2 and 3 another's, of which 2 asks for what 0 makes."""
    nodes = [Node(frozenset()), Node(frozenset({0})), Node(frozenset({0})), Node(frozenset({2}))]
    workers = Recording(1, 0, nodes)
    workers.fails = {0: Done(error=ValueError("no"))}
    crew = Crew(workers, Schedule(nodes, {2}), Display(Console(quiet=True)))
    with pytest.raises(ValueError, match="no"):
        crew.wait_for(0)
    crew.settle(0, [1])
    for step in (1, 2, 3):
        crew.wait_for(step)
        crew.settle(step)
    assert 1 not in workers.started and workers.started[-1] == 3


def test_what_a_games_last_step_failed_to_make_others_make() -> None:
    nodes = [Node(frozenset()), Node(frozenset({0}))]
    workers = Recording(1, 0, nodes)
    workers.fails = {0: Done(error=ValueError("no"))}
    crew = Crew(workers, Schedule(nodes, {1}), Display(Console(quiet=True)))
    with pytest.raises(ValueError, match="no"):
        crew.wait_for(0)
    crew.settle(0, [])
    crew.wait_for(1)
    assert workers.started == [0, 1]


def test_a_step_over_which_every_worker_dies_is_given_up() -> None:
    workers = Recording(2, 0, [Node(frozenset())], deaths=1.0)
    with pytest.raises(InputError, match=f"{DEATHS} workers died computing the same step"):
        walk([Node(frozenset())], workers)
    assert workers.started == [0] * DEATHS and workers.replaced == DEATHS


@pytest.mark.parametrize("ending", [Done(error=ValueError("later")), Done(died=True)])
def test_a_step_of_a_failed_game_that_ends_badly_keeps_nobody_waiting(ending: Done) -> None:
    """0 fails while 1, of the same game, is under way on another worker; 2 asks for what 1 would have made."""
    nodes = [Node(frozenset()), Node(frozenset()), Node(frozenset({1}))]
    workers = Recording(2, 0, nodes)
    workers.fails = {0: Done(error=ValueError("first"))}
    crew = Crew(workers, Schedule(nodes, {2}), Display(Console(quiet=True)))
    workers.random.choice = lambda has: has[0]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="first"):
        crew.wait_for(0)
    assert set(crew.has.values()) == {1}
    crew.settle(0, [1])
    workers.fails[1] = ending
    for step in (1, 2):
        crew.wait_for(step)
        crew.settle(step)
    assert workers.started == [0, 1, 2]


def test_when_the_hours_are_over_every_worker_ends_where_its_work_is_stored() -> None:
    nodes = [Node(frozenset())] * 4
    workers = Recording(2, 0, nodes)
    workers.fails = {0: Done(late=True), 1: Done(late=True)}
    with pytest.raises(TimeIsUpError):
        walk(nodes, workers)
    assert not workers.has and sorted(workers.started) == [0, 1]


def evaluation(name: str, role: Role, iteration: int | None = None) -> Evaluate:
    return Evaluate(name, role, iteration, name, "base")


def test_measurements_are_waited_for_only_where_they_may_end_the_game() -> None:
    stages = [
        (3, evaluation("base", Role.BASE)),
        (5, evaluation("iterate 0", Role.ITERATE, 0)),
        (9, evaluation("SFT", Role.BASELINE)),
    ]
    assert own_needs(stages, stops=False) == [Node(frozenset())] * 3
    assert [node.settled for node in own_needs(stages, stops=True)] == [-1, -1, -1]
    more = [*stages[:2], (7, evaluation("iterate 1", Role.ITERATE, 1)), stages[2]]
    assert [node.settled for node in own_needs(more, stops=True)] == [-1, -1, 5, -1]
