"""What `lowmem-spin arena` found: who wins how often against whom, and how strong that makes each policy."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_spin.common.errors import InputError
from lowmem_spin.evaluation.arena import FILE
from lowmem_spin.report.plots import Panel, figure
from lowmem_spin.report.summary import Grid


def read(folder: Path, keys: dict[str, str]) -> dict[str, Any] | None:
    """The arena of a run with these policies, if there was one.

    Raises:
        InputError: the file does not read back.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if [keys.get(name) for name in record["names"]] != record["policies"]:
            return None  # of iterates that were played anew since
        count = len(record["names"])
        for name, shape in (("wins", 2), ("errors", 2), ("strengths", 1), ("low", 1), ("high", 1)):
            if np.array(record[name], float).shape != (count,) * shape:
                raise ValueError(name)
        if not all(
            isinstance(record[name], kind) for name, kind in (("judge", str), ("how", str), ("from", str), ("prompts", int))
        ):
            raise TypeError("judge")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: does not read back; delete it, `lowmem-spin arena` writes it again") from None
    return record


def grids(record: dict[str, Any]) -> list[tuple[Grid, str]]:
    """(table, title): strengths, and wins of each row against each column in percent."""
    names, judge = record["names"], record["judge"]
    wins, errors = np.array(record["wins"], float), np.array(record["errors"], float)
    ranks = np.argsort(-np.array(record["strengths"]), kind="stable")
    spans = ["", *(f"{low:+.0f} to {high:+.0f}" for low, high in zip(record["low"][1:], record["high"][1:], strict=True))]
    strengths = [[names[k], f"{record['strengths'][k]:+.0f}", spans[k]] for k in ranks]
    matrix = [
        [names[i], *("" if i == j else _share(wins[i, j], errors[i, j]) for j in range(len(names)))] for i in range(len(names))
    ]
    return [
        (Grid(["policy", "points", "95% interval"], strengths), f"Strengths, judged by {judge}"),
        (Grid(["wins of, % against", *names], matrix), f"Wins, judged by {judge}"),
    ]


def _share(value: float, error: float) -> str:
    shown = f"{100 * value:.1f}"
    return shown if math.isnan(error) else f"{shown} ±{196 * error:.1f}"


def note(record: dict[str, Any]) -> str:
    """How the numbers came about."""
    failed = f" {record['failed']} of {record['orders']} judgements failed." if record.get("failed") else ""
    return (
        f"{record['prompts']} prompts ({record['from']}), one answer of each policy, every two judged {record['how']} "
        f"{record['judge']}; a tie is half a win.{failed} Points are Bradley-Terry strengths, the base's 0: 400 more are odds "
        "of ten to one. One tie is added to each pair, so that who never loses has a finite strength. Intervals are of 2,000 "
        "bootstrap samples of the prompts. Another judge's numbers do not compare with these."
    )


def panel(record: dict[str, Any]) -> Panel:
    """The wins as a picture."""
    names = [name.replace("iterate ", "it. ") for name in record["names"]]
    wins = 100 * np.array(record["wins"], float)
    drawing, axes = figure(f"wins of the row over the column, %, by {record['judge']}")
    np.fill_diagonal(wins, np.nan)
    axes.set_facecolor("none")
    axes.pcolormesh(wins, cmap="PuOr", vmin=0, vmax=100, edgecolor="none")
    axes.invert_yaxis()
    for i, j in zip(*np.nonzero(~np.isnan(wins)), strict=True):
        ink = "#ffffff" if abs(wins[i, j] - 50) > 32 else "#000000"
        axes.text(j + 0.5, i + 0.5, f"{wins[i, j]:.0f}", ha="center", va="center", color=ink)
    middles = np.arange(len(names)) + 0.5
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)
    return Panel("Arena", "arena", f"Every policy against every other, {record['prompts']} prompts.", drawing)
