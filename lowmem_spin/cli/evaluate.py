"""Measure a run's policies, or those of all points of a sweep, and show what is known of them now."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError, quoted
from lowmem_spin.common.trust import Trust
from lowmem_spin.engines.foreign_code import key_of_judge
from lowmem_spin.evaluation import diversity, suites
from lowmem_spin.evaluation.benchmark_records import FILE
from lowmem_spin.evaluation.judged.shared import with_recipe_defaults
from lowmem_spin.evaluation.prompting import UNCHANGED, HarnessChanges
from lowmem_spin.evaluation.suites import FREE, SUITES, EvaluationRequest
from lowmem_spin.evaluation.target import EvaluationTarget
from lowmem_spin.report import benchmarks
from lowmem_spin.report.load import read_benchmarks, read_results, read_run_results, read_sweep
from lowmem_spin.report.page import write_page
from lowmem_spin.report.results import SweepResults
from lowmem_spin.report.summary import terminal_table
from lowmem_spin.runner import run_folder
from lowmem_spin.runner.open import SharedResources

PAGE = "report.html"


def evaluate(
    folder: Path,
    request: EvaluationRequest,
    iterate: str,
    display: Display,
    trust: bool = False,
    changes: HarnessChanges = UNCHANGED,
) -> None:
    """Measure what is requested; the recipe's benchmarks, or health and diversity, if nothing is.

    Args:
        folder: of a run or a sweep.
        request: what to measure; how tasks are asked and answers judged is the recipe's, where this does not say.
        iterate: a policy's number or name, or "all".
        display: where it is watched.
        trust: whether a stranger's code may run from now on.
        changes: how tasks are asked other than the recipe says.

    Raises:
        InputError: one line on what cannot be measured.
    """
    for name in request.suites:
        if name not in SUITES:
            nearest_first = ", ".join(difflib.get_close_matches(name, SUITES, n=len(SUITES), cutoff=0))
            raise InputError(
                f"--suite {quoted(name)}: unknown; known, nearest first: {nearest_first}. A task of the harness goes to --task"
            )
    sweep = (folder / "sweep.json").is_file()
    folders = [run.folder for run in read_sweep(folder).runs.values()] if sweep else [folder]
    games = [run_folder.read_run_folder(one) for one in folders]
    if not games:
        raise InputError(f"sweep {str(folder)!r}: no game is finished yet; `lowmem-spin sweep` continues")
    own = suites.benchmarks_of(games[0].recipe, folders[0])
    if unsaid := not request.suites and not request.tasks:
        names = (own.suites, own.tasks) if own.suites or own.tasks else (FREE, ())
        request = replace(request, suites=names[0], tasks=names[1], option=own.option)
    judged = with_recipe_defaults(request.judged, own.judged)
    request = replace(request, judged=judged, options=changes.of(own.options, bool(request.tasks), request.harness))
    shared = SharedResources(trust=Trust(trust))
    if "judge" in request.judged.recipes and {"mtbench", "alpaca"} & set(request.suites):
        shared.trust.check(key_of_judge(request.judged.judge, "evaluation.judge"), lambda line: display.log(line, "yellow"))
    try:
        targets = [EvaluationTarget.from_run(game, iterate, shared, display) for game in games]
        if unsaid:
            for line in announced(request, targets, bool(own.suites or own.tasks)):
                display.log(line)
        suites.measure_policies(targets, request, display)
    finally:
        shared.engines.close()
    with display.timed("report"):
        _show(folder, sweep, games, "health" in request.suites, display)
    display.log(display.time_line())


def announced(request: EvaluationRequest, targets: Sequence[EvaluationTarget], of_recipe: bool) -> list[str]:
    """What is measured where nobody has said it, how much that is, and how to choose; a line each."""
    policies = len({target.policies[name] for target in targets for name in target.wanted})
    what = f"{', '.join([*request.suites, *request.tasks])} of {policies} polic{'y' if policies == 1 else 'ies'}"
    if of_recipe:
        return [f"measuring {what}, as the recipe's evaluation.benchmarks says; --suite or --task chooses something else"]
    prompts, tokens = request.limit or diversity.PROMPTS, targets[0].recipe.generation.max_new_tokens
    answers = (
        f"{policies * prompts * diversity.ANSWERS:,} answers of up to {tokens:,} tokens in all, less those that are stored"
    )
    return [
        f"measuring {what}, as neither --suite nor --task is given; there are {', '.join(SUITES)}, and the harness's tasks",
        f"diversity: {diversity.ANSWERS} answers to each of {prompts} held-out prompts, {answers}; --limit takes fewer prompts",
    ]


def _show(folder: Path, sweep: bool, games: list[run_folder.RunFolder], health: bool, display: Display) -> None:
    finished = sweep or (folder / "metrics.jsonl").is_file()
    results = read_results(folder) if finished else None
    if health and not finished:
        raise InputError(
            f"--suite health: {str(folder)!r} is not played to its end; `lowmem-spin run {folder / 'recipe.yaml'}`"
        )
    if health and results is not None:
        display.console.print(terminal_table(results))
    if isinstance(results, SweepResults):
        found = benchmarks.of_sweep(results)
    else:
        found = benchmarks.blocks(read_benchmarks(folder, games[0].policies))
    for block in found:
        display.console.print(block.grid.table(block.title))
        for line in [*block.verdict, block.note]:
            display.log(line)
    if results is not None:
        for game in games:
            if not (game.folder / PAGE).exists():  # it goes when a number in it changes
                write_page(read_run_results(game.folder))
        display.log(f"report   {write_page(results) if sweep else folder / PAGE}")
    if any((game.folder / FILE).exists() for game in games):
        display.log(f"numbers  {folder / ('points/*' if sweep else '') / FILE}")
