"""Benchmarks of the policies of games: what is asked for, what the store has of it, and what is computed for the rest.

Each result is kept under (policy, task, settings), so none is computed twice, whoever asks. A run's folder gets
`benchmarks.jsonl`, a line for every policy and task, which reports are made from. A new suite is a function that measures a
game's wanted policies, in a file of its own, and one line in `SUITES`.
"""

import difflib
import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError, quoted
from lowmem_spin.common.files import write_atomically
from lowmem_spin.common.keys import digest
from lowmem_spin.config.endpoint_fields import check_key
from lowmem_spin.config.harness_config import Harness
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.registry import PORTABLE
from lowmem_spin.evaluation import diversity
from lowmem_spin.evaluation.harness_tasks import Catalogue, Loaded, Task, check_installed
from lowmem_spin.evaluation.judged import alpaca as instructions
from lowmem_spin.evaluation.judged.alpaca_suite import measure_alpaca
from lowmem_spin.evaluation.judged.mtbench_files import read_mtbench
from lowmem_spin.evaluation.judged.mtbench_suite import measure_mtbench
from lowmem_spin.evaluation.judged.shared import Judged
from lowmem_spin.evaluation.prompting import Prompting, in_words
from lowmem_spin.evaluation.target import EvaluationTarget
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.store.rows import Prompt

JUDGED = frozenset({"judge", "mtbench", "alpaca"})  # what a recipe says of judging
FREE = ("health", "diversity")  # suites that need nothing but the game's own rows


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure."""

    suites: Sequence[str] = ()
    tasks: Sequence[str] = ()  # of lm-evaluation-harness
    limit: int | None = None  # documents of each task, or prompts
    fewshot: int | None = None  # of `tasks`; None is each task's own number
    include: Path | None = None  # folder with task YAMLs
    option: str = "--task"  # where the names of tasks come from, for messages
    judged: Judged = field(default_factory=Judged)
    options: Harness = field(default_factory=Harness)  # how `tasks` are asked

    @property
    def harness(self) -> bool:
        """Whether lm-evaluation-harness is needed."""
        return bool(self.tasks) or "leaderboard" in self.suites

    def find(self, catalogue: Catalogue) -> list[Task]:
        """The harness's tasks that this comes to, each once."""
        leaderboard = catalogue.leaderboard() if "leaderboard" in self.suites else []
        named = [task for name in self.tasks for task in catalogue.tasks(name, self.fewshot)]
        asked = Prompting.of(self.options)
        return list(dict.fromkeys([*leaderboard, *(replace(task, prompting=asked) for task in named)]))

    def catalogue(self) -> Catalogue:
        return Catalogue(self.include, self.tasks, self.option, tuple(SUITES))


def benchmarks_of(recipe: Recipe, recipe_dir: Path) -> EvaluationRequest:
    """What a recipe wants to be measured when its game is over. Its paths are beside it, or from here."""
    given = recipe.evaluation
    suites, tasks = ([name for name in given.benchmarks if (name in SUITES) == known] for known in (True, False))

    def path(name: str | None) -> Path | None:
        return None if name is None else recipe_dir / name if (recipe_dir / name).exists() else Path(name)

    judged = Judged(given.judge, path(given.mtbench), path(given.alpaca), recipes=JUDGED)
    return EvaluationRequest(suites, tasks, option="evaluation.benchmarks", judged=judged, options=given.harness)


def check_benchmarks(game: OpenGame) -> dict[str, Path]:
    """Refuse before a game is played what could not be measured after it.

    Returns:
        The files of its benchmarks, by field of `evaluation`.
    """
    recipe, request = game.recipe, benchmarks_of(game.recipe, game.resolved.recipe_dir)
    if request.harness:
        for name in request.tasks:
            _check_not_a_suite(name, request.option)
        check_installed(request.option)
    _check_names(tuple(request.tasks), request.option)
    for suite in request.suites:
        SUITES[suite].check(request, recipe, game.store.root)
    files = {"mtbench": request.judged.mtbench, "alpaca": request.judged.alpaca}
    return {field: path for field, path in files.items() if path is not None}


def _check_not_a_suite(name: str, option: str) -> None:
    """Refuse a suite's name with a slip in it as such, where it would be taken for a task of what is not installed."""
    near = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.75)
    if near and find_spec("lm_eval") is None:
        raise InputError(f"{option} {quoted(name)}: no such suite; did you mean {near[0]}?")


@functools.cache
def _check_names(names: tuple[str, ...], option: str) -> None:
    """Once for all points of a sweep: looking through the harness's tasks takes seconds."""
    if names:
        request = EvaluationRequest(tasks=names, option=option)
        request.find(request.catalogue())


def measure_games(games: Sequence[OpenGame], display: Display) -> None:
    """Measure what the recipes ask for; the games share it where they share policies."""
    alike: dict[str, tuple[EvaluationRequest, list[OpenGame]]] = {}
    for game in games:
        request = benchmarks_of(game.recipe, game.resolved.recipe_dir)
        alike.setdefault(repr(request), (request, []))[1].append(game)
    for request, group in alike.values():
        measure_policies([EvaluationTarget.from_game(game) for game in group], request, display)


def measure_policies(games: Sequence[EvaluationTarget], request: EvaluationRequest, display: Display) -> None:
    """Measure the wanted policies of all games. What the game's generator answers comes first: it then gives way for good."""
    for name, suite in SUITES.items():
        if name in request.suites:
            for game in games:
                suite.measure(game, request, display)
    if not request.harness:
        return
    check_installed("--suite leaderboard" if "leaderboard" in request.suites else request.option)
    with display.start_up("finding tasks"):
        catalogue = request.catalogue()
        tasks = request.find(catalogue)
    if request.tasks:
        display.log(f"{', '.join(request.tasks)}: asked {in_words(Prompting.of(request.options).record())}")
    harness = _Harness(catalogue, request.options.log_samples, display)
    by_engine: dict[str, list[EvaluationTarget]] = {}
    for game in games:
        by_engine.setdefault(game.portable_engines(display).signature(PORTABLE), []).append(game)
    for group in by_engine.values():
        for task in tasks:
            for game in group:
                harness.measure(game, task, request.limit)
    if request.options.log_samples:
        for game in games:
            display.log(f"samples  {game.folder / 'samples'}")


def _diversity(game: EvaluationTarget, request: EvaluationRequest, display: Display) -> None:
    diversity.check_temperature(game.recipe.generation.temperature, "--suite diversity")
    count = request.limit or diversity.PROMPTS
    answering = game.answering()
    tables, held, drawn = answering.tables, answering.held, answering.sampling
    prompts = [Prompt(held.rows.ids[position], held.rows.prompt(position)) for position in held.health[:count]]
    for name in game.wanted:
        policy = game.policies[name]
        question = diversity.diversity_spec(policy, drawn, prompts)
        game.ensure(question, lambda: diversity.measure_diversity(tables, policy, name, prompts, drawn, display))  # noqa: B023 called at once
    game.keep("diversity", "diversity", None, lambda policy: diversity.diversity_spec(policy, drawn, prompts))


class _Harness:
    """lm-evaluation-harness on a loaded base; data are read, and the base is loaded, when something has to be computed."""

    def __init__(self, catalogue: Catalogue, log_samples: bool, display: Display) -> None:
        self.catalogue, self.log_samples, self.display = catalogue, log_samples, display
        self._loaded: Loaded | None = None
        self._bench: Any = None
        self._signature = ""
        self._written: dict[str, dict[str, Path]] = {}  # samples by the result's key and the task: games share policies

    def measure(self, game: EvaluationTarget, task: Task, limit: int | None) -> None:
        learner = {"engine": PORTABLE, "dtype": game.machine.dtype}
        for name in game.wanted:
            question = task.spec(game.policies[name], limit, learner)
            if self.log_samples:
                self._log(game, name, task, limit, question)
            game.ensure(question, lambda: self._measure(game, name, task, limit)[0])  # noqa: B023 called at once
            self.display.stop_if_late()
        game.keep(task.suite, task.name, limit, lambda policy: task.spec(policy, limit, learner))

    def _log(self, game: EvaluationTarget, name: str, task: Task, limit: int | None, question: dict[str, Any]) -> None:
        """Make sure that the samples of a result are in the game's folder. The store has none: they come of measuring."""
        from lowmem_spin.evaluation.samples import sample_files, write_samples

        key, leaves = digest(question), list(self._load(task).harness["tasks"])
        files = sample_files(game.folder, name, leaves, key)
        if all(path.exists() for path in files.values()):
            return
        if key in self._written:
            for leaf, path in files.items():
                write_atomically(path, lambda there: shutil.copyfile(self._written[key][leaf], there))  # noqa: B023 called at once
            return
        if not game.lacks(question):
            self.display.log(f"{name} on {task.name} is measured again, for its samples; the stored numbers stay")
        record, samples = self._measure(game, name, task, limit)
        for leaf, path in files.items():
            write_samples(path, samples[leaf])
        self._written[key] = files
        game.ensure(question, lambda: record)

    def _load(self, task: Task) -> Loaded:
        if self._loaded is None or self._loaded.task != task:
            with self.display.start_up(f"reading {task.name}"):
                self._loaded = self.catalogue.load(task)
        return self._loaded

    def _measure(self, game: EvaluationTarget, name: str, task: Task, limit: int | None) -> tuple[dict[str, Any], Any]:
        loaded = self._load(task)
        with self.display.start_up("importing lm-evaluation-harness"):
            from lowmem_spin.evaluation import harness

        engines = game.portable_engines(self.display)
        signature = engines.signature(PORTABLE)
        if signature != self._signature:
            if game.pool.opened.keys() - {PORTABLE}:
                game.pool.close()
            self._bench, self._signature = harness.HarnessModel(engines.learner(), game.model, self.display), signature  # type: ignore[arg-type]
        return harness.measure_task(self._bench, game.adapter(name), loaded, limit, name)


def _check_diversity(request: EvaluationRequest, recipe: Recipe, store: Path) -> None:
    diversity.check_temperature(recipe.generation.temperature, request.option)


def _check_mtbench(request: EvaluationRequest, recipe: Recipe, store: Path) -> None:
    read_mtbench(request.judged.mtbench or store / "mtbench", None, request.judged.option("mtbench"))
    _check_judge(request.judged)


def _check_alpaca(request: EvaluationRequest, recipe: Recipe, store: Path) -> None:
    judged, option = request.judged, request.judged.option("alpaca")
    instructions.read_alpaca(judged.alpaca, None, option)
    if judged.alpaca is None and judged.judge is not None:
        instructions.check_length_control(option)
    _check_judge(judged)


def _check_judge(judged: Judged) -> None:
    if judged.judge is not None and judged.judge.api_key_env is not None:
        check_key(judged.option("judge"), judged.judge.api_key_env)


def _nothing(*_: object) -> None:
    """Nothing to check, or to measure here."""


@dataclass(frozen=True)
class Suite:
    """A suite of benchmarks.

    Args:
        measure: makes sure that the store has the results of a game's wanted policies, and writes them to its folder, with
            `EvaluationTarget.ensure` and `.keep`. A result is {"numbers": {metric: {"value", "stderr", "values" if there is
            one per prompt}}, "count", "fewshot", "own", "recorded": {"versions": {package: version}}}.
        check: refuses, before a game is played, what could not be measured after it: (request, recipe, folder of the store).
    """

    measure: Callable[[EvaluationTarget, EvaluationRequest, Display], None]
    check: Callable[[EvaluationRequest, Recipe, Path], None] = _nothing


# In the order in which they are measured. The leaderboard's tasks are the harness's, which takes all games task by task, and
# health is known of every policy that was evaluated.
SUITES: dict[str, Suite] = {
    "diversity": Suite(_diversity, _check_diversity),
    "mtbench": Suite(lambda game, wanted, display: measure_mtbench(game, wanted.judged, wanted.limit, display), _check_mtbench),
    "alpaca": Suite(lambda game, wanted, display: measure_alpaca(game, wanted.judged, wanted.limit, display), _check_alpaca),
    "health": Suite(_nothing),
    "leaderboard": Suite(_nothing),
}
