"""What a benchmark found, as tables at most 80 columns wide."""

from collections.abc import Sequence

from lowmem_spin.cli.bench.measure import Cost
from lowmem_spin.report.grid import Grid, TerminalTable

HEADINGS = ["stage", "by", "rows", "tokens", "seconds", "tok/s", "GB of\ncard", "GB of\ntorch"]


def costs(measured: Sequence[Cost], predicted: dict[str, float]) -> TerminalTable:
    """A line for each kind of stage; `predicted` are engines/memory.py's peaks in bytes, where it can be held to them."""
    rows = [[*_numbers(cost), *_prediction(cost, predicted.get(cost.work))] for cost in measured]
    return _table([*HEADINGS, "GB by\nbudget", "error"], rows)


def rivals(ours: Sequence[Cost], theirs: Sequence[Cost], not_comparable: Sequence[str]) -> TerminalTable:
    """A line for each work of a rival; the last column is how many times as many rows a second we do: the same rows may be
    fewer tokens for one than for the other.

    `not_comparable` rivals get no such number: what they did says nothing about their speed.
    """
    speeds = {cost.work: cost.rows / cost.seconds for cost in ours}
    faster = {cost: f"{speeds[cost.work] / (cost.rows / cost.seconds):.2f}x" for cost in theirs}
    rows = [[*_numbers(cost), "" if cost.by in not_comparable else faster[cost]] for cost in theirs]
    return _table([*HEADINGS, "ours to\ntheirs"], rows)


def layouts(measured: Sequence[Cost]) -> TerminalTable:
    """A line for each work and layout; the last column is its seconds over those of the first one that is listed."""
    first = {cost.work: cost.seconds for cost in reversed(measured)}
    rows = [[*_numbers(cost), f"{cost.seconds / first[cost.work]:.2f}"] for cost in measured]
    return _table([*HEADINGS, f"seconds to\n{measured[0].by}"], rows)


def _table(headings: list[str], rows: list[list[str]]) -> TerminalTable:
    """Columns that nothing is known for are left out."""
    known = [place for place in range(len(headings)) if any(row[place] for row in rows)]
    return Grid([headings[place] for place in known], [[row[place] for place in known] for row in rows], 2).table("")


def _numbers(cost: Cost) -> list[str]:
    counts = [f"{cost.rows:,}", f"{cost.tokens:,}", f"{cost.seconds:.2f}", f"{cost.rate:,.0f}"]
    return [cost.work, cost.by, *counts, _gigabytes(cost.peak.device), _gigabytes(cost.peak.torch)]


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"


def _prediction(cost: Cost, predicted: float | None) -> list[str]:
    if predicted is None or not cost.peak.device:
        return ["", ""]
    return [_gigabytes(predicted), f"{(predicted - cost.peak.device) / cost.peak.device:+.0%}"]
