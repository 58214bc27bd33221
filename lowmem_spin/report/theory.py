"""Games played exactly, as a table and a picture: where they lead, by iterate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowmem_spin.report.grid import Grid, TerminalTable
from lowmem_spin.report.pictures import save
from lowmem_spin.report.plots import COLORS, DASHES, TALL, WIDTH, add_legend, laid_out, titled_axes
from lowmem_spin.report.svg import drawing, style

SETTLED, SHOWN = 1e-6, (1, 3, 10)


@dataclass(frozen=True)
class ExactGame:
    """Probabilities of the answers under the base and every iterate, (iterates + 1, K)."""

    name: str
    asked: int  # iterations; fewer iterates: a training led too far
    policies: np.ndarray
    distances: np.ndarray  # of each policy from what the game aims at
    drifts: np.ndarray  # KL(policy || base), nats
    remedy: str = ""  # what keeps it from diverging

    @property
    def steps(self) -> np.ndarray:
        """Total variation between successive policies."""
        return np.abs(np.diff(self.policies, axis=0)).sum(1) / 2

    @property
    def verdict(self) -> str:
        """Where it leads, in words."""
        if len(self.steps) < self.asked:
            lost = "some answer has practically no probability; a real training stops earlier"
            where = f": by iterate {len(self.steps)}" if len(self.steps) else " at once: after the first training"
            return f"diverges{where} {lost}{self.remedy}"
        last = self.steps[-1]
        if last < SETTLED:
            return "settles"
        back = min(6, len(self.steps) - 1)
        rate = (last / self.steps[-1 - back]) ** (1 / back) if back else math.nan
        if rate < 0.97:
            return f"settles: steps shrink to {rate:.2f} of the one before"
        return f"does not settle: the last step moved {last:.0%} of the probability"


def theory_table(games: Sequence[ExactGame], aim: str) -> TerminalTable:
    """A row per game: the distance after some iterates, and the drift at the end."""
    asked = max(game.asked for game in games)
    shown = sorted({0, *(count for count in SHOWN if count < asked), asked})
    rows = []
    for game in games:
        cells = [f"{game.distances[count]:.3g}" if count < len(game.distances) else "" for count in shown]
        rows.append([game.name, *cells, f"{game.drifts[-1]:.3g}"])
    headings = ["game", *(str(count) if count else "base" for count in shown), "KL to\nbase"]
    return Grid(headings, rows).table(f"{aim}, by iterates played")


def draw_theory(games: Sequence[ExactGame], aim: str, to: Path) -> None:
    """Distance and drift over the iterates, a line per game: as a PNG and, beside it, an SVG."""
    with style():
        figure = Figure(figsize=(2 * WIDTH, TALL), layout="constrained")
        parts = np.atleast_1d(np.asarray(figure.subfigures(1, 2)))
        panels = ((aim, "distances", "log"), ("KL(policy || base), nats", "drifts", "linear"))
        for part, (title, values, scale) in zip(parts, panels, strict=True):
            axes = titled_axes(part, title)
            for place, game in enumerate(games):
                color, dashes = COLORS[place % len(COLORS)], DASHES[place // len(COLORS) % len(DASHES)]
                heights = np.maximum(getattr(game, values), 1e-12)
                axes.plot(heights, label=game.name, color=color, linestyle=dashes, marker=".")
            axes.set_yscale(scale)
            axes.yaxis.set_major_formatter("{x:g}")  # powers of ten would be formulas, which texts here never are
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("iterates played, each trained to its minimum")
            add_legend(part, axes)
        laid_out(figure)
        save(figure, drawing(figure), to, f"exact play: {aim}")
