"""A sweep's main picture: the last iterates' score over the axis that was swept, or name by name where that is no number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from lowmem_spin.report import by_name
from lowmem_spin.report.intervals import Value, over_seeds
from lowmem_spin.report.marks import marks
from lowmem_spin.report.measures import MEASURES
from lowmem_spin.report.plots import COLORS, DASHES, Level, Panel, add_legend, draw_levels, short
from lowmem_spin.report.results import Configuration, SweepResults, plain_value
from lowmem_spin.report.svg import INK

ALPHA = "game.alpha"


@dataclass(frozen=True)
class Line:
    """The last iterates of configurations that differ in one axis alone, over the seeds."""

    label: str
    x: list[float]
    values: list[Value]
    seeds: list[list[float]]  # every run's own number, for each x
    color: str
    dashes: str


def numeric_axis(sweep: SweepResults) -> str | None:
    """The axis that lines are drawn over: alpha if it was swept, else the first with two numbers or more."""
    axes = sorted(sweep.file.axes, key=lambda axis: axis != ALPHA)
    for axis in axes:
        found = {as_number(c.setting.get(axis)) for c in sweep.finished}
        if len(found) > 1 and None not in found:
            return axis
    return None


def as_number(value: Any) -> float | None:
    """A setting as a number; None if it is something else, as "inf" and true are."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def line_of(configuration: Configuration, axis: str) -> str:
    """The name of the line that a configuration is on: its settings of the other axes."""
    rest = {field: value for field, value in configuration.setting.items() if field != axis}
    return Configuration(rest, [], {}).label if rest else "last iterate"


def lines(sweep: SweepResults, shown: Sequence[Configuration], axis: str, name: str) -> list[Line]:
    """A line for each setting of the other axes, in their order."""
    groups: dict[str, list[Configuration]] = {}
    for configuration in shown:
        groups.setdefault(line_of(configuration, axis), []).append(configuration)
    found = []
    for place, (label, members) in enumerate(groups.items()):
        along = sorted(members, key=lambda c: float(c.setting[axis]))
        found.append(
            Line(
                label,
                [float(c.setting[axis]) for c in along],
                [c.value(name) for c in along],
                [[run.last.values[name].mean for run in c.runs.values()] for c in along],
                COLORS[place % len(COLORS)],
                DASHES[place // len(COLORS) % len(DASHES)],
            )
        )
    return found


def main_panels(sweep: SweepResults, shown: Sequence[Configuration], looks: by_name.Looks) -> list[Panel]:
    """The scores, and how far from the base they were bought: over the numeric axis, or configuration by configuration."""
    axis, names = numeric_axis(sweep), [*sweep.scores[:2], "kl_to_base"]
    counts = {len(c.runs) for c in shown}
    intervals = f"{over_seeds(counts)}; dots are single seeds" if max(counts) > 1 else "95% intervals over held-out rows"
    if axis is None:
        alike = {} if len(sweep.finished) > len(shown) else looks  # more than there are looks for: all alike
        return [by_name.panel("main", f"The last iterates. Bars: {intervals}.", sweep.finished, alike, names)]
    panels = []
    for name in names:
        measure, drawn = MEASURES[name], lines(sweep, shown, axis, name)
        groups = {
            line.label: [run for c in shown if line_of(c, axis) == line.label for run in c.runs.values()] for line in drawn
        }
        beside = [] if name == "kl_to_base" else marks(groups, name)
        caption = f"The last iterate's {measure.in_words} against {axis.rpartition('.')[2]}. Bands: {intervals}."
        ticks = {float(c.setting[axis]): plain_value(c.setting[axis]) for c in shown}
        across = [mark.level(measure) for mark in beside]
        draw = partial(draw_against, name=name, axis=axis, lines=drawn, levels=across, ticks=ticks)
        panels.append(Panel("Overview", f"main_{name}", caption, draw))
    return panels


def draw_against(
    figure: FigureBase, name: str, axis: str, lines: Sequence[Line], levels: Sequence[Level], ticks: Mapping[float, str]
) -> None:
    """A line with its band for each group; the base and plain SFT across, where they are far away beyond a break."""
    measure = MEASURES[name]
    scale = 100 if measure.percent else 1
    reached = _reached(lines, scale, measure.percent)
    parts, main = _parts(figure, reached, [scale * height for height, _, _ in levels], measure.percent)
    for line in lines:
        _draw_line(main, line, scale)
    for axes, (low, high) in parts:
        axes.set_ylim(low, high)
        draw_levels(axes, [level for level in levels if low <= scale * level[0] <= high], scale)
        axes.grid(axis="y")
    for axes, _ in parts:
        _lay_out_x(axes, ticks, named=axes is parts[-1][0])
    parts[-1][0].set_xlabel(axis.rpartition(".")[2])
    main.set_ylabel(measure.heading)
    parts[0][0].set_title(short(f"{measure.label} against {axis.rpartition('.')[2]}", 60))
    add_legend(figure, main)


def _reached(lines: Sequence[Line], scale: float, percent: bool) -> tuple[float, float]:
    """The lowest and the highest that is drawn of the lines, their bands and their seeds."""
    numbers = [scale * n for line in lines for value in line.values for n in value.interval]
    numbers += [scale * n for line in lines for seeds in line.seeds for n in seeds]
    low, high = min(numbers), max(numbers)
    return (max(0.0, low), min(100.0, high)) if percent else (low, high)


def _lay_out_x(axes: Axes, ticks: Mapping[float, str], named: bool) -> None:
    """The values that were played as ticks, written as in tables; far apart ones on a logarithmic scale."""
    every = sorted(ticks)
    room = 0.05 * (every[-1] - every[0])
    axes.set_xlim(every[0] - room, every[-1] + room)
    if every[0] > 0 and every[-1] >= 30 * every[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xlim(0.8 * every[0], 1.25 * every[-1])
    if not named:
        axes.set_xticks([])
    elif len(every) <= 8:
        axes.set_xticks(every, [ticks[x] for x in every])


def _parts(
    figure: FigureBase, reached: tuple[float, float], marks: Sequence[float], percent: bool
) -> tuple[list[tuple[Axes, tuple[float, float]]], Axes]:
    """The axes from the top down, each with its span, and that of the lines; a mark far away has its own."""
    low, high = reached
    far = [mark for mark in marks if max(low - mark, mark - high) > 0.6 * (high - low)]
    alone = [mark for mark in far if [mark > high for mark in far].count(mark > high) == 1]  # on its side
    near = [low, high, *(mark for mark in marks if mark not in alone)]
    room = 0.07 * (max(near) - min(near)) or 1.0
    most = (max(-2.0, min(near) - room), min(102.0, max(near) + room)) if percent else (min(near) - room, max(near) + room)
    spans = sorted([most, *((mark - room, mark + room) for mark in alone)], reverse=True)
    whole = spans.index(most)
    heights = [6.0 if place == whole else 1.0 for place in range(len(spans))]
    grid = figure.add_gridspec(len(spans), 1, height_ratios=heights, hspace=0.05)
    parts = [figure.add_subplot(grid[place]) for place in range(len(spans))]
    for upper, lower in pairwise(parts):
        upper.spines["bottom"].set_visible(False)
        for axes, place in ((upper, 0), (lower, 1)):  # strokes where the axis leaves something out
            axes.plot(
                [0], [place], transform=axes.transAxes, marker=[(-1, -0.6), (1, 0.6)], markersize=7, color=INK, clip_on=False
            )
    for axes, (bottom, top) in zip(parts, spans, strict=True):
        if axes is not parts[whole]:
            axes.set_yticks([(bottom + top) / 2], [f"{(bottom + top) / 2:.3g}"])
    return list(zip(parts, spans, strict=True)), parts[whole]


def _draw_line(axes: Axes, line: Line, scale: float) -> None:
    means = [scale * value.mean for value in line.values]
    lows, highs = zip(*((scale * low, scale * high) for low, high in (value.interval for value in line.values)), strict=True)
    axes.plot(line.x, means, label=line.label, color=line.color, linestyle=line.dashes, marker="o", markersize=4)
    axes.fill_between(line.x, lows, highs, color=line.color, alpha=0.16, linewidth=0)
    for x, seeds in zip(line.x, line.seeds, strict=True):
        if len(seeds) > 1:
            axes.plot([x] * len(seeds), [scale * one for one in seeds], ".", color=line.color, markersize=4, alpha=0.6)
