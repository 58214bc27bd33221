"""Benchmarks of the policies of games: what is asked for, what the store has of it, and what is computed for the rest.

Each result is kept under (policy, task, settings), so none is computed twice, whoever asks. A run's folder gets
`benchmarks.jsonl`, a line for every policy and task, which reports are made from.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_spin import runs
from lowmem_spin.data import Rows
from lowmem_spin.display import Display
from lowmem_spin.engines import Machine
from lowmem_spin.evaluation import diversity
from lowmem_spin.evaluation.health import Held
from lowmem_spin.evaluation.kept import keep
from lowmem_spin.evaluation.tasks import Catalogue, Loaded, Task, check_installed
from lowmem_spin.game import sampling
from lowmem_spin.keys import digest
from lowmem_spin.opening import Game, Shared, split
from lowmem_spin.recipe import InputError, Recipe
from lowmem_spin.rows import Prompt
from lowmem_spin.runs import Run
from lowmem_spin.sources import Source
from lowmem_spin.stages import Evaluate, Sampling
from lowmem_spin.store import Store
from lowmem_spin.tables import Tables
from lowmem_spin.tenants import Choices, Pool, Tenants, choose

SUITES = ("leaderboard", "health", "diversity")
Answering = tuple[Tables, Held, Sampling]


@dataclass(frozen=True)
class Asked:
    """What to measure."""

    suites: Sequence[str] = ()
    tasks: Sequence[str] = ()  # of lm-evaluation-harness
    limit: int | None = None  # documents of each task, or prompts
    fewshot: int | None = None  # of `tasks`; None is each task's own number
    include: Path | None = None  # folder with task YAMLs
    option: str = "--task"  # where the names of tasks come from, for messages

    @property
    def harness(self) -> bool:
        """Whether lm-evaluation-harness is needed."""
        return bool(self.tasks) or "leaderboard" in self.suites

    def find(self, catalogue: Catalogue) -> list[Task]:
        """The harness's tasks that this comes to, each once."""
        found = catalogue.leaderboard() if "leaderboard" in self.suites else []
        return list(dict.fromkeys([*found, *(task for name in self.tasks for task in catalogue.tasks(name, self.fewshot))]))

    def catalogue(self) -> Catalogue:
        return Catalogue(self.include, self.tasks, self.option)


@dataclass(frozen=True)
class Played:
    """A game of which policies are measured."""

    folder: Path
    recipe: Recipe
    model: Source
    where: Machine
    store: Store
    base: str
    base_adapter: Path | None
    policies: dict[str, str]  # name -> key: all that a report may show
    wanted: list[str]  # names of those to measure, trained all
    pool: Pool
    answering: Callable[[], Answering]  # called only if the game's generator is needed

    def adapter(self, name: str) -> Path | None:
        """The policy's adapter folder; None is the frozen base as it is."""
        key = self.policies[name]
        if key == self.base:
            return self.base_adapter
        folder = self.store.adapter(key)
        if folder is None:
            raise RuntimeError(f"{name} is measured before it is trained")
        return folder

    def result(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """What is stored of what was asked."""
        key = asked["policy"]
        if key != self.base and self.store.adapter(key) is None:
            return None
        return self.store.result(key, digest(asked), self._maker(key))

    def ensure(self, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Make sure that the store has the result of what was asked."""
        if self.result(asked) is not None:
            return
        key, policy = digest(asked), asked["policy"]
        with self.store.writing(key):
            if self.result(asked) is None:
                self.store.commit_result(policy, key, {"asked": asked, "maker": self._maker(policy), **measure()})

    def keep(self, suite: str, task: str, limit: int | None, asks: Callable[[str], dict[str, Any]]) -> None:
        """Write what is stored of a task for all policies to the game's folder; `asks` names it by the policy's key."""
        keep(self.folder, self.policies, {n: self.result(asks(key)) for n, key in self.policies.items()}, suite, task, limit)

    def _maker(self, key: str) -> str:
        return "base" if key == self.base else self.store.maker(key)

    def tenants(self, display: Display) -> Tenants:
        """transformers on the base, whatever the game was played with."""
        shelf = self.store.root / "weights"
        return Tenants(self.recipe, self.model, Choices(self.where, "hf", "hf"), shelf, display, self.pool)


def of_run(run: Run, iterate: str, shared: Shared, display: Display) -> Played:
    """A run's folder. `iterate` is a policy's number or name, or "all": the base and the iterates trained so far.

    Raises:
        InputError: its store or base is not here, or there is no such policy.
    """
    store = runs.open_store(run, lambda line: display.say(line, "yellow"))
    model, given = runs.model(run, store), run.recipe.model.adapter
    names = ["base", *runs.trained(run, store)] if iterate == "all" else [iterate]
    wanted = [runs.policy(run, store, name).name for name in names]
    base_adapter = Path(given) if given else None

    def answering() -> Answering:
        held = _held(run, store)
        choices = choose(run.recipe, store.root, display)
        inputs = replace(run.inputs, generator=choices.identities(run.recipe)[0])  # of this machine
        tenants = Tenants(run.recipe, model, choices, store.root / "weights", display, shared.engines)
        knobs, learner = run.recipe.runtime, inputs.learner
        sizes = knobs.generation_batch_size, knobs.scoring_batch_size
        tables = Tables(store, inputs.base, base_adapter, learner, tenants, display, *sizes, {})
        return tables, held, sampling(run.recipe, inputs)

    where = runs.here(run)
    places = run.folder, run.recipe, model, where, store, run.inputs.base, base_adapter
    return Played(*places, run.policies, wanted, shared.engines, answering)


def _held(run: Run, store: Store) -> Held:
    """The run's held-out rows, as they were prepared for it."""
    tables = [store.read(store.data(name)) for name in run.record.get("data", [])]
    if not tables or any(table is None for table in tables):
        again = f"`lowmem-spin run {run.folder / 'recipe.yaml'}`"
        raise InputError(f"run {str(run.folder)!r}: its held-out rows are not in {store.root}; {again} prepares them again")
    rows = [Rows(table) for table in tables if table is not None]
    return split(run.recipe, rows[0], rows[1] if len(rows) > 1 else None)[1]


def of_game(game: Game) -> Played:
    """A game that this process has played."""
    policies = {stage.name: stage.policy for stage in game.stages if isinstance(stage, Evaluate)}
    trained = {name for name, key in policies.items() if name.startswith("iterate ") and game.store.adapter(key)}
    measured = [name for name in policies if name == "base" or name in trained]  # a brake may have ended the game
    found, tables = game.found, game.tables
    return Played(
        game.folder,
        game.recipe,
        found.model,
        found.choices.where,
        game.store,
        game.inputs.base,
        tables.base_adapter,
        policies,
        measured,
        game.tenants.pool,
        lambda: (tables, game.held, sampling(game.recipe, game.inputs)),
    )


def of_recipe(recipe: Recipe) -> Asked:
    """What a recipe wants to be measured when its game is over."""
    names = recipe.evaluation.benchmarks
    suites, tasks = ([name for name in names if (name in SUITES) == known] for known in (True, False))
    return Asked(suites, tasks, option="evaluation.benchmarks")


def check(recipe: Recipe) -> None:
    """Refuse before a game is played what could not be measured after it."""
    asked = of_recipe(recipe)
    if "diversity" in asked.suites:
        diversity.check(recipe.generation.temperature, asked.option)
    if asked.harness:
        check_installed(asked.option)
    _check_names(tuple(asked.tasks), asked.option)


@functools.cache
def _check_names(names: tuple[str, ...], option: str) -> None:
    """Once for all points of a sweep: looking through the harness's tasks takes seconds."""
    if names:
        asked = Asked(tasks=names, option=option)
        asked.find(asked.catalogue())


def at_the_end(games: Sequence[Game], display: Display) -> None:
    """Measure what the recipes ask for; the games share it where they share policies."""
    by_names: dict[tuple[str, ...], list[Game]] = {}
    for game in games:
        by_names.setdefault(tuple(game.recipe.evaluation.benchmarks), []).append(game)
    for names, group in by_names.items():
        if names:
            benchmark([of_game(game) for game in group], of_recipe(group[0].recipe), display)


def benchmark(games: Sequence[Played], asked: Asked, display: Display) -> None:
    """Measure the wanted policies of all games. What the game's generator answers comes first: it then gives way for good."""
    if "diversity" in asked.suites:
        for game in games:
            _diversity(game, asked.limit or diversity.PROMPTS, display)
    if not asked.harness:
        return
    check_installed("--suite leaderboard" if "leaderboard" in asked.suites else asked.option)
    with display.start_up("finding tasks"):
        catalogue = asked.catalogue()
        tasks = asked.find(catalogue)
    harness = _Harness(catalogue, display)
    by_engine: dict[str, list[Played]] = {}
    for game in games:
        by_engine.setdefault(game.tenants(display).signature("hf"), []).append(game)
    for group in by_engine.values():
        for task in tasks:
            for game in group:
                harness.measure(game, task, asked.limit)


def _diversity(game: Played, count: int, display: Display) -> None:
    diversity.check(game.recipe.generation.temperature, "--suite diversity")
    tables, held, drawn = game.answering()
    prompts = [Prompt(held.rows.ids[place], held.rows.prompt(place)) for place in held.health[:count]]
    for name in game.wanted:
        policy = game.policies[name]
        question = diversity.asked(policy, drawn, prompts)
        game.ensure(question, lambda: diversity.measure(tables, policy, name, prompts, drawn, display))  # noqa: B023 called at once
    game.keep("diversity", "diversity", None, lambda policy: diversity.asked(policy, drawn, prompts))


class _Harness:
    """lm-evaluation-harness on a loaded base; data are read, and the base is loaded, when something has to be computed."""

    def __init__(self, catalogue: Catalogue, display: Display) -> None:
        self.catalogue, self.display = catalogue, display
        self._loaded: Loaded | None = None
        self._bench: Any = None
        self._signature = ""

    def measure(self, game: Played, task: Task, limit: int | None) -> None:
        learner = {"engine": "hf", "dtype": game.where.dtype}
        for name in game.wanted:
            question = task.asked(game.policies[name], limit, learner)
            game.ensure(question, lambda: self._measure(game, name, task, limit))  # noqa: B023 called at once
            self.display.stop_if_late()
        game.keep(task.suite, task.name, limit, lambda policy: task.asked(policy, limit, learner))

    def _measure(self, game: Played, name: str, task: Task, limit: int | None) -> dict[str, Any]:
        if self._loaded is None or self._loaded.task != task:
            with self.display.start_up(f"reading {task.name}"):
                self._loaded = self.catalogue.load(task)
        with self.display.start_up("importing lm-evaluation-harness"):
            from lowmem_spin.evaluation import harness

        tenants = game.tenants(self.display)
        signature = tenants.signature("hf")
        if signature != self._signature:
            if game.pool.opened.keys() - {"hf"}:
                game.pool.close()
            self._bench, self._signature = harness.Bench(tenants.learner(), game.model, self.display), signature  # type: ignore[arg-type]
        return harness.measure(self._bench, game.adapter(name), self._loaded, limit, name)
