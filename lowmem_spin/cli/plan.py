"""A plan as tables: the rows and hours of every stage, its memory, and the cards it fits on."""

import tempfile
from pathlib import Path

import psutil

from lowmem_spin.common.display import Display, clock
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.advice import advice
from lowmem_spin.engines.memory import CARDS, CONTEXT, FRAGMENTATION, Shape, Terms, peak, planned_shape, stage_memory
from lowmem_spin.engines.passes import planned_passes
from lowmem_spin.engines.registry import PORTABLE, gpu_engine
from lowmem_spin.engines.residency import judging_terms, plan_residency
from lowmem_spin.report.grid import Grid, TerminalTable
from lowmem_spin.runner.open import SharedResources, open_game
from lowmem_spin.runner.planning.calibration import record_measurements
from lowmem_spin.runner.planning.counting import GAME_KINDS, MEASURING, PlanLine
from lowmem_spin.runner.planning.measuring import measure_rates
from lowmem_spin.runner.planning.plan import PlannedWork
from lowmem_spin.runner.resolved import ResolvedRecipe

RAM = 12.7e9  # bytes free on the smallest host that has such cards, a free Colab
SHARING = {  # what a residency means for a generator and training, which are two engines on one card
    "resident": "{} and training stay loaded together",
    "sleep": "{}'s weights wait in RAM while training",
    "exit": "{} is stopped and restarted each iteration (slower)",
}


def show_plan(plan: PlannedWork, display: Display) -> None:
    """All of it, with what it could not know in yellow."""
    display.log(plan.total().line())
    if plan.parallel is not None:
        display.log(plan.parallel.line())
    display.console.print("", rows(plan), "")
    display.console.print(stages_left(plan), "")
    if (shape := planned_shape(plan.found.model)) is not None:
        first, choices = plan.found.recipe, plan.found.choices
        machine = choices.machine
        dtype = machine.dtype if machine.device == "cuda" else "bfloat16"
        oracle = plan.found.judging(dtype)
        played = planned_passes(first, shape, machine, choices.generator, choices.learner, oracle)
        display.console.print(memory(played, shape, dtype, oracle), "")
        for line in verdicts(plan.found, shape, dtype):
            display.log(line)
    for note in plan.notes:
        display.log(note, "yellow")
    left = [line.measured for line in plan.lines if line.to_do and not line.untimed]
    if left:
        computed = (
            "computed" if plan.gpu else "computed, and may be several times too long or too short; --measure times this machine"
        )
        display.log(f"Times are {'measured on this machine' if all(left) else computed}.")


def measure_here(recipe: Recipe, recipe_dir: Path, display: Display, trust: Trust) -> list[str]:
    """Prepare a recipe's rows, load its base, time it, and keep the rates in the store's bench.json, for plans.

    Returns:
        Lines on what was found.

    Raises:
        InputError: as `run` refuses the recipe.
    """
    shared = SharedResources(trust=trust)
    game = open_game(recipe, recipe_dir, display, shared)
    try:
        with tempfile.TemporaryDirectory(prefix="timing-", dir=game.store.root) as work:
            found = measure_rates(game, display, Path(work))
        resident = psutil.Process().memory_info().rss
    finally:
        shared.engines.close()
    record_measurements(game.store.root, *found)
    rates = {one.kind: f"{one.kind} {one.tokens / one.seconds:,.0f}" for one in found}  # of two for judging, the game's own
    said = ", ".join(rates.values()) + " answers" * ("judge" in rates)
    lines = [f"Measured on {found[0].device}, in tokens per second: {said}; kept in {game.store.root / 'bench.json'}."]
    if game.resolved.choices.machine.device == "cpu":
        lines.append(f"Memory of this process, libraries and all: {resident / 1e9:.1f} GB of RAM after a training step.")
    return lines


def rows(plan: PlannedWork) -> TerminalTable:
    """Rows by kind of stage, of several games without a common store and with one: stored, to do, and the time for the rest."""
    totals, found, several = plan.totals(), [], len(plan.points) > 1
    for kind, total in totals.items():
        alone, shared = total["independent"], total["shared"]
        saved = f"{1 - shared / alone:.0%}" if alone else ""
        reuse = [f"{alone:,}", f"{shared:,}", saved] if several else [f"{shared:,}"]
        called, done, ahead = MEASURING.get(kind, kind), f"{total['stored']:,}", f"{total['to_do']:,}"
        found.append([called, *reuse, done, ahead, clock(total["seconds"])])
    reuses = ["without\nreuse", "with\nreuse", "saved"] if several else ["rows"]
    headings = ["stage", *reuses, "stored", "to do", "time"]
    last = next((place for place, kind in enumerate(totals) if kind == GAME_KINDS[-1]), None)
    title = f"Rows of {len(plan.points)} game{'s' * several}"
    return Grid(headings, found, parted=last).table(title)


def stages_left(plan: PlannedWork) -> TerminalTable:
    """Distinct stages in the order in which they are first needed; those of like name in one line."""
    grouped: dict[str, list[PlanLine]] = {}
    for line in plan.lines:
        if line.unit.kind in GAME_KINDS:
            grouped.setdefault(f"{line.unit.kind} {'by ' * (line.unit.kind != 'train')}{line.label}", []).append(line)
    found = []
    for name, lines in grouped.items():
        policies = len({line.unit.policy for line in lines})
        sums = (sum(getattr(line, part) for line in lines) for part in ("rows", "stored", "to_do"))
        found.append([name, str(policies), *(f"{total:,}" for total in sums), clock(sum(line.seconds for line in lines))])
    beside = [called for kind, called in MEASURING.items() if any(line.unit.kind == kind for line in plan.lines)]
    title = f"By stage{', without ' * bool(beside)}{' and '.join(beside)}"
    return Grid(["stage", "policies", "rows", "stored", "to do", "time"], found).table(title)


def memory(recipe: Recipe, shape: Shape, dtype: str, oracle: Terms) -> TerminalTable:
    """Gigabytes of each term by stage, in the worst case of rows as long as the recipe allows."""
    found, generator = stage_memory(recipe, shape, dtype), gpu_engine("generation")
    own = generator.memory(recipe, shape, dtype)["generate"]
    judging = judging_terms(recipe, shape, dtype, oracle)
    found = {"generate": found["generate"], f"with {generator.name}": own, **({"judge": judging} if judging else {}), **found}
    named = dict.fromkeys(term for terms in found.values() for term in terms)
    terms_of = [[term, *(_gigabytes(terms[term]) if term in terms else "" for terms in found.values())] for term in named]
    allowances = [CONTEXT + (FRAGMENTATION - 1) * sum(terms.values()) for terms in found.values()]
    terms_of.append(["context, fragmentation", *map(_gigabytes, allowances)])
    peaks = ["peak", *(_gigabytes(peak(terms)) for terms in found.values())]
    grid = Grid(["", *found], [*terms_of, peaks], parted=len(terms_of) - 1)
    return grid.table(f"GPU memory in {dtype}, GB; full-length rows, training on {recipe.training_tokens:,} tokens at once")


def _gigabytes(count: float) -> str:
    return "<0.01" if 0 < count < 5e6 else f"{count / 1e9:.2f}"


def verdicts(found: ResolvedRecipe, shape: Shape, dtype: str) -> list[str]:
    """A line for each size of card: fits, and how its two engines share it, or what to change."""
    lines, recipe, oracle = list[str](), found.recipe, found.judging(dtype)
    generator, learner = gpu_engine("generation"), gpu_engine("training")
    for card, limit in CARDS.items():
        changes = list(advice(recipe, shape, dtype, limit, found.oracle))
        try:
            shared = SHARING[plan_residency(recipe, shape, dtype, generator, learner, oracle, limit, RAM).residency].format(
                generator.name
            )
        except InputError:
            shared = f"with generation.engine {PORTABLE} alone, as {generator.name} has no room"
        lines.append(f"GPU of {card:<11} {'; '.join(['does not fit: ' + '; '.join(changes) if changes else 'fits', shared])}")
    return lines
