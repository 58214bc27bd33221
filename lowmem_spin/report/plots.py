"""How one picture of a report is drawn: curves over policies with a range, a radar, and a legend below them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from lowmem_spin.common.errors import printable
from lowmem_spin.report.intervals import Value
from lowmem_spin.report.svg import OF

# Okabe and Ito's colours that show on light and on dark paper; more curves than colours are told apart by their dashes.
COLORS = ["#0083c7", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"]
GREY, DARK, WARM, BASELINE = "#8a8f98", "#626873", "#8c6bb1", "#d55e00"
DASHES = ["-", "--", "-."]
DRAWN = len(COLORS) * len(DASHES)  # configurations in one panel; the page says when there are more
WIDTH, HEIGHT, TALL = 4.7, 3.5, 4.4  # inches; radars are tall
Level = tuple[float, str, str]  # height, colour, name of a horizontal line


@dataclass(frozen=True)
class Panel:
    """One picture: `name` is its file's, `part` the heading that it stands under; `draw` fills a figure, or part of one."""

    part: str
    name: str
    caption: str
    draw: Callable[[FigureBase], None]
    height: float = HEIGHT
    width: float = WIDTH

    def figure(self, of: str) -> Figure:
        """The picture by itself, with a small line on what it is of."""
        figure = Figure(figsize=(self.width, self.height), layout="constrained")
        figure.suptitle(short(of, 80), fontsize=7, alpha=0.7, gid=OF)
        self.draw(figure)
        return laid_out(figure)


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
        lows, highs = ([value.interval[end] for value in values] for end in (0, 1))
        return cls(label, [value.mean for value in values], lows, highs, color, dashes)


def laid_out(figure: Figure) -> Figure:
    """The figure with everything in its place for good, however often it is saved."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)  # else every save would first draw it once more, for a layout that is done
    return figure


def short(text: str, longest: int = 24) -> str:
    """Text for a picture: on one line, and not so long that it pushes the picture away."""
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def titled_axes(figure: FigureBase, title: str, unit: str = "") -> Axes:
    """Empty axes with a title, and what their height is in."""
    axes = figure.add_subplot()
    axes.set_title(short(title, 60))
    axes.set_ylabel(unit)
    return axes


def name_places(axes: Axes, places: Sequence[str]) -> None:
    """The policies below the axis, by the names that they have in tables; of many only some."""
    step = -(-len(places) // 8)
    shown = range(0, len(places), step)
    width = max(map(len, places)) * len(shown)
    axes.set_xticks(list(shown), [short(places[i]).replace(" ", "\n" if width > 45 else " ") for i in shown])


def draw_levels(axes: Axes, levels: Sequence[Level], scale: float) -> None:
    """Dotted lines, each with its name at its right end; names that would lie upon each other share a place."""
    low, high = axes.get_ylim()
    last = -math.inf
    for level, color, name in sorted(levels):
        axes.axhline(scale * level, color=color, linestyle=":")
        place = max(scale * level, last + 0.07 * (high - low))
        axes.annotate(
            name, (1, place), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points", color=color, va="center",
            fontsize=7.5,
        )  # fmt: skip
        last = place


def within_percent(axes: Axes, percent: bool) -> None:
    """Keep the axis from stretching to what a share cannot be, and from making equal shares look apart."""
    if percent:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -3), min(max(high, low + 1), 103))


def add_legend(figure: FigureBase, axes: Axes) -> None:
    """Under the picture, if there is more than one curve to name."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        longest = max(map(len, labels))
        columns = 3 if longest <= 14 else 2 if longest <= 28 else 1
        figure.legend(handles, [short(label, 40) for label in labels], loc="outside lower center", ncols=columns)


def draw_curves(
    figure: FigureBase,
    title: str,
    curves: Sequence[Curve],
    places: list[str],
    unit: str,
    levels: Sequence[Level] = (),
) -> None:
    """Curves over the base and the iterates; `unit` is the axis', "%" for shares."""
    percent = unit == "%"
    axes = titled_axes(figure, title, unit)
    scale = 100 if percent else 1
    for curve in curves:
        x = range(len(curve.means))
        means, lows, highs = (scale * np.array(values) for values in (curve.means, curve.lows, curve.highs))
        axes.plot(x, means, label=curve.label, color=curve.color, linestyle=curve.dashes, marker="o", markersize=3.5)
        axes.fill_between(x, lows, highs, color=curve.color, alpha=0.18, linewidth=0)
        if len(curves) <= 3:
            reach = [(means - lows).clip(0), (highs - means).clip(0)]  # a mean of equal numbers can be rounded past them
            axes.errorbar(x, means, reach, color=curve.color, linestyle="", capsize=3)
    name_places(axes, places)
    within_percent(axes, percent)
    draw_levels(axes, levels, scale)
    axes.grid(axis="y")
    add_legend(figure, axes)


def zoom(shares: Sequence[float]) -> tuple[float, float]:
    """What a radar's centre and rim stand for: tenths around the shares, from 0 where that is near."""
    low, high = math.floor(10 * min(shares) + 1e-9) / 10, math.ceil(10 * max(shares) - 1e-9) / 10
    return 0.0 if low <= 0.3 else low - 0.1 * (low == high), max(high, 0.1)


def draw_radar(
    figure: FigureBase, series: Sequence[tuple[str, dict[str, float], str, str]], span: tuple[float, float] = (0.0, 1.0)
) -> None:
    """A closed line for each (label, {category: share}, color, dashes); `span` is what centre and rim stand for."""
    axes = figure.add_subplot(projection="polar")
    names = list(series[0][1])
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for label, shares, color, dashes in series:
        values = [shares[name] for name in names]
        axes.plot([*angles, angles[0]], [*values, values[0]], label=label, color=color, linestyle=dashes)
    axes.set_xticks(angles, names)
    rings = np.linspace(*span, 5)[1:-1]
    axes.set_ylim(*span)
    axes.set_yticks(rings, [f"{100 * ring:.0f}%" if place == 1 else "" for place, ring in enumerate(rings)])
    add_legend(figure, axes)
