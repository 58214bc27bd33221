"""What `lowmem-spin arena` found: who wins how often against whom, and how strong that makes each policy."""

from typing import Any

import numpy as np
from matplotlib.figure import FigureBase

from lowmem_spin.report.grid import Grid
from lowmem_spin.report.heatmap import around, draw_heatmap
from lowmem_spin.report.intervals import Value, Z
from lowmem_spin.report.plots import Panel


def grids(record: dict[str, Any]) -> list[tuple[Grid, str]]:
    """(table, title): strengths, and wins of each row against each column in percent."""
    names, judge = record["names"], record["judge"]
    wins, errors = np.array(record["wins"], float), np.array(record["errors"], float)
    ranks = np.argsort(-np.array(record["strengths"]), kind="stable")
    spans = ["", *(f"{low:+.0f} to {high:+.0f}" for low, high in zip(record["low"][1:], record["high"][1:], strict=True))]
    strengths = [[names[k], f"{record['strengths'][k]:+.0f}", spans[k]] for k in ranks]
    matrix = [
        [name, *("" if i == j else Value(wins[i, j], errors[i, j]).text(percent=True, digits=1) for j in range(len(names)))]
        for i, name in enumerate(names)
    ]
    return [
        (Grid(["policy", "points", "95% interval"], strengths), f"Strengths, judged by {judge}"),
        (Grid(["wins of, % against", *names], matrix), f"Wins, judged by {judge}"),
    ]


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
    names = [name.replace(" ", "\n") for name in record["names"]]
    wins, errors = 100 * np.array(record["wins"], float), 100 * np.array(record["errors"], float)
    np.fill_diagonal(wins, np.nan)
    noise = Z * float(np.median(errors[~np.eye(len(names), dtype=bool)]))
    edges = around(50.0, (0.0, 100.0), noise)
    texts = np.array([["" if np.isnan(share) else f"{share:.0f}" for share in row] for row in wins])
    title = f"wins of the row over the column, %, by {record['judge']}"

    def draw(figure: FigureBase) -> None:
        draw_heatmap(figure, title, wins, texts, names, names, edges, "wins, %", "PuOr")

    caption = (
        f"Every policy against every other, {record['prompts']} prompts. What has the middle colour is within noise of 50%."
    )
    return Panel("Arena", "arena", caption, draw)
