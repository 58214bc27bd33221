"""How one picture of a report is drawn: curves over policies with a range, a radar, a heatmap, and a legend below them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from lowmem_spin.common.errors import printable
from lowmem_spin.report.intervals import Value
from lowmem_spin.report.svg import INK

# Okabe and Ito's colours that show on light and on dark paper; more curves than colours are told apart by their dashes.
COLORS = ["#0083c7", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"]
GREY, BASELINE = "#8a8f98", "#d55e00"
DASHES = ["-", "--"]
DRAWN = len(COLORS) * len(DASHES)  # configurations in one panel; the page says when there are more
WIDTH, HEIGHT, TALL = 4.7, 3.5, 4.4  # inches; radars are tall


@dataclass(frozen=True)
class Panel:
    """One picture: `name` is its file's, `part` the heading that it stands under; `draw` fills a figure, or part of one."""

    part: str
    name: str
    caption: str
    draw: Callable[[FigureBase], None]
    height: float = HEIGHT

    @cached_property
    def figure(self) -> Figure:
        """The picture by itself."""
        figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
        self.draw(figure)
        return figure


@dataclass(frozen=True)
class Curve:
    """Points with a range each, by place on the axis of policies."""

    label: str
    means: list[float]
    lows: list[float]
    highs: list[float]
    color: str
    dashes: str = "-"

    @classmethod
    def of(cls, label: str, values: Sequence[Value], color: str, dashes: str = "-") -> "Curve":
        """Means with their 95% intervals, where those are known."""
        halves = [0.0 if math.isnan(value.half) else value.half for value in values]
        means = [value.mean for value in values]
        lows, highs = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
        return cls(label, means, lows, highs, color, dashes)


def short(text: str, longest: int = 24) -> str:
    """Text for a picture: on one line, and not so long that it pushes the picture away."""
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def titled_axes(figure: FigureBase, title: str) -> Axes:
    """Empty axes with a title."""
    axes = figure.add_subplot()
    axes.set_title(short(title, 60))
    return axes


def add_legend(figure: FigureBase, axes: Axes) -> None:
    """Under the picture, if there is more than one curve to name."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 2 if max(map(len, labels)) > 14 else 3
        figure.legend(handles, [short(label, 40) for label in labels], loc="outside lower center", ncols=columns)


def draw_curves(
    figure: FigureBase,
    title: str,
    curves: Sequence[Curve],
    places: list[str],
    percent: bool,
    levels: Sequence[tuple[float, str]] = (),
) -> None:
    """Curves over the base and the iterates; `levels` are dotted (height, colour)."""
    axes = titled_axes(figure, title)
    scale = 100 if percent else 1
    for curve in curves:
        x = range(len(curve.means))
        means, lows, highs = (scale * np.array(values) for values in (curve.means, curve.lows, curve.highs))
        axes.plot(x, means, label=curve.label, color=curve.color, linestyle=curve.dashes, marker="o", markersize=3.5)
        axes.fill_between(x, lows, highs, color=curve.color, alpha=0.18, linewidth=0)
        if len(curves) <= 3:
            reach = [(means - lows).clip(0), (highs - means).clip(0)]  # a mean of equal numbers can be rounded past them
            axes.errorbar(x, means, reach, color=curve.color, linestyle="", capsize=3)
    for level, color in levels:
        axes.axhline(scale * level, color=color, linestyle=":")
    axes.set_xticks(range(len(places)), places)
    if len(places) > 8:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(axis="y")
    add_legend(figure, axes)


def draw_radar(figure: FigureBase, series: Sequence[tuple[str, dict[str, float], str, str]]) -> None:
    """Shares from 0 to 1 by category: a closed line for each (label, {category: share}, color, dashes)."""
    axes = figure.add_subplot(projection="polar")
    names = list(series[0][1])
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for label, shares, color, dashes in series:
        values = [shares[name] for name in names]
        axes.plot([*angles, angles[0]], [*values, values[0]], label=label, color=color, linestyle=dashes)
    axes.set_xticks(angles, names)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75], ["", ".5", ""])
    add_legend(figure, axes)


def draw_heatmap(
    figure: FigureBase,
    title: str,
    values: np.ndarray,
    texts: np.ndarray,
    columns: list[str],
    rows: list[str],
    colors: str = "viridis",
    span: tuple[float | None, float | None] = (None, None),
) -> Axes:
    """A cell with its text for each of `values` (rows, columns), nan without colour; `span` is what the colours reach over."""
    axes = titled_axes(figure, title)
    axes.set_facecolor("none")
    mesh = axes.pcolormesh(values, cmap=colors, vmin=span[0], vmax=span[1], edgecolor="none")
    axes.invert_yaxis()
    bright = mesh.to_rgba(values)[..., :3] @ np.array([0.3, 0.6, 0.1]) > 0.5
    for row, column in np.ndindex(values.shape):
        ink = INK if np.isnan(values[row, column]) else "#000000" if bright[row, column] else "#ffffff"
        axes.text(column + 0.5, row + 0.5, str(texts[row, column]), color=ink, ha="center", va="center")
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    return axes
