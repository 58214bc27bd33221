"""How one picture of a report is drawn: lines over policies with a range, a radar, a legend that leaves the lines alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowmem_spin.common.errors import printable
from lowmem_spin.report import figures

# Okabe and Ito's colours that show on light and on dark paper; more lines than colours are told apart by their dashes.
COLORS = ["#0083c7", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"]
GREY, YARDSTICK = "#8a8f98", "#d55e00"
DASHES = ["-", "--"]
DRAWN = len(COLORS) * len(DASHES)  # configurations in one panel; the page says when there are more
SIZE = (4.7, 3.5)  # inches


@dataclass(frozen=True)
class Panel:
    """One picture: `name` is its file's, `part` the heading that it stands under."""

    part: str
    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Line:
    """Points with a range each, by place on the axis of policies."""

    label: str
    means: list[float]
    lows: list[float]
    highs: list[float]
    color: str
    dashes: str = "-"


def short(text: str, longest: int = 24) -> str:
    """Text for a picture: on one line, and not so long that it pushes the picture away."""
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def figure(title: str) -> tuple[Figure, Axes]:
    """An empty picture with a title."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(short(title, 60))
    return figure, axes


def legend(figure: Figure, axes: Axes) -> None:
    """Under the picture, if there is more than one line to name."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 2 if max(map(len, labels)) > 14 else 3
        figure.legend(handles, [short(label, 40) for label in labels], loc="outside lower center", ncols=columns)


def lines(
    part: str,
    name: str,
    title: str,
    caption: str,
    lines: Sequence[Line],
    places: list[str],
    percent: bool,
    levels: Sequence[tuple[float, str]] = (),
) -> Panel:
    """Lines over the base and the iterates; `levels` are dotted (height, colour)."""
    drawing, axes = figure(title)
    scale = 100 if percent else 1
    for line in lines:
        x = range(len(line.means))
        means, lows, highs = (scale * np.array(values) for values in (line.means, line.lows, line.highs))
        axes.plot(x, means, label=line.label, color=line.color, linestyle=line.dashes, marker="o", markersize=3.5)
        axes.fill_between(x, lows, highs, color=line.color, alpha=0.18, linewidth=0)
        if len(lines) <= 3:
            reach = [(means - lows).clip(0), (highs - means).clip(0)]  # a mean of equal numbers can be rounded past them
            axes.errorbar(x, means, reach, color=line.color, linestyle="", capsize=3)
    for level, color in levels:
        axes.axhline(scale * level, color=color, linestyle=":")
    axes.set_xticks(range(len(places)), places)
    if len(places) > 8:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(axis="y")
    legend(drawing, axes)
    return Panel(part, name, caption, drawing)


def radar(part: str, name: str, caption: str, series: Sequence[tuple[str, dict[str, float], str, str]]) -> Panel:
    """Shares by category: a closed line for each (label, {category: share}, color, dashes)."""
    drawing = Figure(figsize=(4.7, 4.4), layout="constrained")
    axes = drawing.add_subplot(projection="polar")
    figures.radar(axes, series)  # type: ignore[arg-type]
    legend(drawing, axes)
    return Panel(part, name, caption, drawing)
