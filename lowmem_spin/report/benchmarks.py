"""Benchmarks as tables: the paper's Table 1, other tasks, diversity; of a run's policies or a sweep's last iterates."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

from lowmem_spin.evaluation.leaderboard import COLUMNS, PAPER, PAPER_SOURCE
from lowmem_spin.report.grid import Grid, escape_markdown
from lowmem_spin.report.intervals import Value, over, within_noise
from lowmem_spin.report.plots import COLORS, GREY, TALL, Curve, Panel, draw_curves, draw_radar, zoom
from lowmem_spin.report.results import Benchmark, RunResults, SweepResults

SHARES = {"acc", "acc_norm", "acc_bytes", "exact_match", "em", "f1", "truncated", "distinct_1", "distinct_2"}
SHARES |= {"failed", "win rate", "length-controlled win rate"}  # in percent, these all
PLAIN = {"failed", "baseline's length"}  # numbers whose difference from the base says nothing about a policy
JUDGED = {"mtbench", "alpaca"}  # suites whose tasks' names say who judged; each has a block of its own
TITLES = {"leaderboard": "Open LLM Leaderboard v1", "tasks": "Other tasks", "diversity": "Length and diversity"}
LEGEND = (
    "± is the half-width of a 95% interval over documents or prompts; over seeds, by Student's t, where there are several. "
    "[a..b] are its ends where it would pass 0 or 100%; of two seeds, (a..b) are both values. "
    "Differences are from the base, document by document; noise means that the interval holds 0."
)
NOTES = {
    "mtbench": "Single-answer grading from 1 to 10 with FastChat's prompts; the mean is over both turns of every question, "
    "intervals are over questions. Failed judgements, those without a score, are left out. Scores of one judge do not compare "
    "with those of another.",
    "alpaca": "Each answer beside the baseline's, in both orders; a tie is half a win. AlpacaEval's leaderboard has another "
    "protocol (one order, the log-probs of one token of gpt-4-turbo): run alpaca_eval on the files in alpaca/ to compare with "
    "it. Lengths are in characters.",
    "diversity": "Each policy's answers to held-out prompts, with the sampling of the game. Words are cut by sacrebleu's "
    "tokeniser 13a; self-BLEU is sacrebleu's with n-grams up to 3 (lower is more diverse) and its smoothing, exp; RSPO's code "
    "has NLTK's method1, which is sacrebleu's floor, and another sampling, so do not compare with its numbers. Distinct-n is "
    "the share of distinct n-grams among a prompt's answers (higher is more diverse).",
}
DIVERSITY = {
    "length": "length, tokens",
    "truncated": "truncated, %",
    "distinct_1": "distinct-1, %",
    "distinct_2": "distinct-2, %",
    "self_bleu_3": "self-BLEU-3 (exp)",
}
AVERAGE = "Average"
OVERALL = {"score", "turn 1", "turn 2", "failed, %"}  # columns of MT-Bench that are no category


@dataclass(frozen=True)
class BenchmarkRow:
    """One policy, or one configuration over its seeds: numbers by column."""

    name: str
    values: dict[str, Value]
    gains: dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class Block:
    """The tables of one suite: the numbers, and their differences from the base."""

    title: str
    grid: Grid
    gains: Grid | None
    verdict: list[str]  # in words: which differences are noise
    note: str
    columns: list[str]
    rows: list[BenchmarkRow] = field(repr=False)  # of the grid that were measured here
    percent: frozenset[str] = frozenset()  # columns in percent
    graded: tuple[str, ...] = ()  # columns that are MT-Bench's categories, graded from 1 to 10

    def markdown(self) -> list[str]:
        """Heading, tables and notes."""
        grids = [self.grid, *([self.gains] if self.gains else [])]
        verdict = "\n".join(f"- {escape_markdown(line)}" for line in self.verdict)
        return [
            f"## {escape_markdown(self.title)}",
            "",
            *(grid.markdown() for grid in grids),
            verdict,
            "",
            escape_markdown(self.note),
            "",
        ]


def blocks(results: Sequence[Benchmark]) -> list[Block]:
    """A run's benchmarks, a row per policy in their order."""
    names = list(dict.fromkeys(one.name for one in results))
    return _blocks(results, lambda mine: [_row(name, [one for one in mine if one.name == name]) for name in names])


def of_sweep(sweep: SweepResults) -> list[Block]:
    """The base, then the last iterate of every configuration over its seeds."""
    every = [one for run in sweep.runs.values() for one in run.benchmarks]

    def rows(mine: Sequence[Benchmark]) -> list[BenchmarkRow]:
        known = set(map(id, mine))

        def of(run: RunResults, name: str) -> BenchmarkRow:
            return _row(name, [one for one in run.benchmarks if id(one) in known and one.name == name])

        base = _over("base", [of(run, "base") for run in sweep.runs.values()], shared=True)
        last = {c.label: [of(run, run.last.name) for run in c.runs.values()] for c in sweep.finished}
        return [base, *(_over(label, seeds) for label, seeds in last.items())]

    return _blocks(every, rows)


def _blocks(results: Sequence[Benchmark], rows: Callable[[Sequence[Benchmark]], list[BenchmarkRow]]) -> list[Block]:
    groups: dict[tuple[str, str, int | None], list[Benchmark]] = {}
    suites = list(dict.fromkeys([*TITLES, *(one.suite for one in results)]))
    for one in sorted(results, key=lambda one: suites.index(one.suite)):
        title = one.task if one.suite in JUDGED else TITLES.get(one.suite, one.suite)
        title += f", {one.asked}" if one.asked else ""
        groups.setdefault((one.suite, title, one.limit), []).append(one)
    return [_block(*kind, mine, [row for row in rows(mine) if row.values]) for kind, mine in groups.items()]


def _block(suite: str, title: str, limit: int | None, results: Sequence[Benchmark], rows: list[BenchmarkRow]) -> Block:
    shares = frozenset(column for one in results for metric, column in _columns(one) if _metric(metric) in SHARES)
    columns = list(dict.fromkeys(column for one in results for _, column in _columns(one)))
    if suite == "leaderboard":
        columns = [*(column.heading for column in COLUMNS), AVERAGE]
        shares |= {AVERAGE}
    cells = [[row.name, *(_cell(row.values.get(c), c in shares) for c in columns)] for row in rows]
    headings = ["policy", *columns]
    comparable = suite == "leaderboard" and limit is None
    if comparable:
        cells += _paper(results)
    changed = [row for row in rows if row.gains]
    gains = [[row.name, *(_cell(row.gains.get(c), c in shares, "+") for c in columns)] for row in changed]
    what = "questions" if suite in JUDGED else "documents of each task"
    return Block(
        title=title + (f", the first {limit} {what}" if limit else ""),
        grid=Grid(headings, cells),
        gains=Grid(["difference", *columns], gains) if gains else None,
        verdict=[line for row in changed for line in _verdict(row)],
        note=" ".join(_notes(suite, limit, results)),
        columns=columns,
        rows=rows,
        percent=shares,
        graded=tuple(column for column in columns if column not in OVERALL) if suite == "mtbench" else (),
    )


def _columns(one: Benchmark) -> Iterable[tuple[str, str]]:
    """(metric, heading) of the numbers of a benchmark that are shown."""
    if one.suite == "leaderboard":
        mine = [(metric, c) for c in COLUMNS if c.task == one.task for metric in (c.metric, c.weighted) if metric in one.values]
        return [(metric, column.heading) for metric, column in mine[:1] if metric]
    if one.suite == "diversity":
        return [(metric, DIVERSITY.get(metric, metric)) for metric in one.values]
    if one.suite in JUDGED:
        return [(metric, f"{metric}, %" if metric in SHARES else metric) for metric in one.values]
    shots = "" if one.fewshot is None else f" {one.fewshot}-shot"
    return [(metric, f"{one.task}{shots} {metric.removesuffix(',none').replace(',', ' ')}") for metric in one.values]


def _metric(name: str) -> str:
    return name.partition(",")[0]


def _row(name: str, results: Sequence[Benchmark]) -> BenchmarkRow:
    values = {column: one.values[metric] for one in results for metric, column in _columns(one)}
    gains = {
        column: one.gains[metric]
        for one in results
        for metric, column in _columns(one)
        if metric in one.gains and metric not in PLAIN
    }
    if all(one.suite == "leaderboard" for one in results):  # here, so that over seeds each seed has its own average
        values, gains = _with_average(values), _with_average(gains)
    return BenchmarkRow(name, values, gains)


def _over(name: str, rows: Sequence[BenchmarkRow], shared: bool = False) -> BenchmarkRow:
    """Over seeds, where all of them have the number. `shared`: of one policy, whose equal numbers are one and the same."""

    def together(numbers: Sequence[dict[str, Value]]) -> dict[str, Value]:
        columns = dict.fromkeys(column for of_one in numbers for column in of_one)
        found = {column: [of_one[column] for of_one in numbers if column in of_one] for column in columns}
        if shared:
            return {column: over(list(dict.fromkeys(values))) for column, values in found.items()}
        return {column: over(values) for column, values in found.items() if len(values) == len(numbers)}

    return BenchmarkRow(name, together([row.values for row in rows]), together([row.gains for row in rows]))


def _with_average(values: dict[str, Value]) -> dict[str, Value]:
    """The six with their plain mean, if they are all there; its parts are of different documents, so independent."""
    if not all(column.heading in values for column in COLUMNS):
        return values
    parts = [values[column.heading] for column in COLUMNS]
    error = math.sqrt(sum(part.error**2 for part in parts)) / len(parts)
    return values | {AVERAGE: Value(fmean(part.mean for part in parts), error, max(part.reach for part in parts))}


def _paper(results: Sequence[Benchmark]) -> list[list[str]]:
    """The paper's rows, in the columns whose task was measured here as the leaderboard has it."""
    same = {one.task for one in results if not one.own}
    shown = [column.task in same for column in COLUMNS]
    if not any(shown):
        return []
    shown.append(all(shown))
    return [
        [name, *(f"{number:.2f}" if here else "" for number, here in zip(numbers, shown, strict=True))]
        for name, numbers in PAPER.items()
    ]


def _notes(suite: str, limit: int | None, results: Sequence[Benchmark]) -> list[str]:
    notes = [NOTES[suite]] if suite in NOTES else []
    if suite == "diversity" or suite in JUDGED:
        notes.append(f"{max(one.count for one in results)} {'questions' if suite in JUDGED else 'prompts'}.")
    if suite == "alpaca":
        notes.append(f"Answers are sampled at {' or '.join(sorted({one.sampling for one in results}))}.")
    if suite == "alpaca" and any(one.own for one in results):
        notes.append("Length control does not apply: it is fitted to all of AlpacaEval's own instructions.")
    versions = sorted({one.versions["lm-eval"] for one in results if "lm-eval" in one.versions})
    if versions:
        notes.append(f"lm-evaluation-harness {', '.join(versions)}.")
    if suite == "leaderboard":
        shots = ", ".join(f"{c.heading} {c.fewshot}-shot {c.metric.removesuffix(',none').replace(',', ' ')}" for c in COLUMNS)
        notes.append(
            f"{shots}; in percent, and their plain mean. Asked without a chat template, as the leaderboard was, which took the "
            "plain mean of MMLU's 57 subjects, too: the harness weights them by size."
        )
        weighted = [
            one.name
            for one in results
            for metric, _ in _columns(one)
            if metric in {c.weighted for c in COLUMNS if c.task == one.task}
        ]
        if weighted:
            notes.append(f"So it does here for {', '.join(weighted)}, measured by an earlier version: evaluate again.")
        own = sorted({one.task for one in results if one.own})
        if own:
            notes.append(f"Of your own YAML, so not compared with the paper: {', '.join(own)}.")
        if limit is None and len(own) < len({one.task for one in results}):
            notes.append(
                f"The paper's rows are {PAPER_SOURCE}, taken with the harness of its time; it gives no errors. "
                "Only the tasks that were measured here on all documents are shown. Its two rows of iteration 0 are one "
                "algorithm, so what they differ by is noise. Its base was not in 4 bits, as it is here by default."
            )
    return notes


def _verdict(row: BenchmarkRow) -> list[str]:
    """Which differences from the base are more than noise."""
    sides: dict[str, list[str]] = {"above": [], "below": [], "within noise of": []}
    for column, gain in row.gains.items():
        side = "within noise of" if within_noise(gain) else "above" if gain.mean > 0 else "below"
        sides[side].append(column.removesuffix(", %").removesuffix(", tokens"))
    parts = [f"{side} the base on {', '.join(columns)}" for side, columns in sides.items() if columns]
    return [f"{row.name} is {'; '.join(parts)}."] if parts else []


def _cell(value: Value | None, percent: bool, sign: str = "") -> str:
    """A number with the half-width of its 95% interval; a difference says when it is none to speak of."""
    if value is None:
        return ""
    return value.text(percent, 2, sign) + (" (noise)" if sign and within_noise(value) else "")


def panels(shown: Sequence[Block]) -> list[Panel]:
    """The shares of each block over its rows, with their intervals, where there is more than one row."""
    drawn = []
    for number, block in enumerate(shown):
        if block.graded:
            drawn += _radar(block, f"benchmark_{number}")
            continue
        columns = [c for c in block.columns if c in block.percent and all(c in row.values for row in block.rows)]
        columns = columns[: len(COLORS)]
        if len(block.rows) < 2 or not columns:
            continue
        looks = zip(columns, COLORS, strict=False)
        curves = [Curve.of(column, [row.values[column] for row in block.rows], color) for column, color in looks]
        names = [row.name for row in block.rows]
        draw = partial(draw_curves, title=block.title, curves=curves, places=names, unit="%")
        drawn.append(Panel("Benchmarks", f"benchmark_{number}", f"{block.title}. Bands: 95% intervals.", draw))
    return drawn


def _radar(block: Block, name: str) -> list[Panel]:
    """MT-Bench's categories in tenths, as in figures 2 to 5 of arXiv 2404.04291; nothing without three with a score."""
    scored = [row for row in block.rows if all(category in row.values for category in block.graded)][: len(COLORS)]
    if len(block.graded) < 3 or not scored:
        return []
    series = [
        (row.name, {category: row.values[category].mean / 10 for category in block.graded}, color, "-")
        for row, color in zip(scored, [GREY, *COLORS], strict=False)
    ]
    low, high = span = zoom([share for _, shares, _, _ in series for share in shares.values()])
    caption = f"{block.title}: scores by category in tenths; centre {10 * low:.0f}, rim {10 * high:.0f} of 10."
    return [Panel("Benchmarks", name, caption, partial(draw_radar, series=series, span=span), TALL)]
