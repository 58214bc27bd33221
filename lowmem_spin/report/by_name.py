"""Configurations name by name, where no number orders them: what a comparison shows, and a sweep of variants."""

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from lowmem_spin.report.marks import Mark, marks
from lowmem_spin.report.measures import MEASURES
from lowmem_spin.report.plots import COLORS, DASHES, HEIGHT, WIDTH, Panel, short
from lowmem_spin.report.results import Configuration

MARKERS = dict(zip(DASHES, "os^", strict=True))
Looks = Mapping[str, tuple[str, str]]  # colour and dashes of a configuration


def panel(name: str, caption: str, shown: Sequence[Configuration], looks: Looks, measures: Sequence[str]) -> Panel:
    """The last iterates' numbers, a part of the picture for each measure."""
    draw = partial(draw_by_name, shown=shown, looks=looks, measures=measures)
    height = max(HEIGHT, 1.3 + 0.24 * len(shown))
    return Panel("Overview", name, caption, draw, height, WIDTH * len(measures))


def draw_by_name(figure: FigureBase, shown: Sequence[Configuration], looks: Looks, measures: Sequence[str]) -> None:
    """A dot with its interval for each configuration, from the top as in the table; the base and plain SFT as lines, or row by
    row where they differ."""
    columns = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    groups = {c.label: list(c.runs.values()) for c in shown}
    for axes, name in zip(columns, measures, strict=True):
        _draw(axes, shown, looks, name, [] if name == "kl_to_base" else marks(groups, name))
    columns[0].set_yticks(range(len(shown)), [short(c.label, 40) for c in shown])
    columns[0].set_ylim(len(shown) - 0.5, -0.5)


def _draw(axes: Axes, shown: Sequence[Configuration], looks: Looks, name: str, beside: Sequence[Mark]) -> None:
    measure = MEASURES[name]
    scale = 100 if measure.percent else 1
    for place, configuration in enumerate(shown):
        value, (color, dashes) = configuration.value(name), looks.get(configuration.label, (COLORS[0], "-"))
        arms = [[scale * abs(end - value.mean)] for end in value.interval]
        axes.errorbar(scale * value.mean, place, xerr=arms, fmt=MARKERS[dashes], color=color, capsize=3, markersize=5)
        seeds = [scale * run.last.values[name].mean for run in configuration.runs.values()]
        if len(seeds) > 1:
            axes.plot(seeds, [place] * len(seeds), ".", color=color, markersize=4, alpha=0.6)
    places = {c.label: place for place, c in enumerate(shown)}
    for mark in beside:
        height, color, label = mark.level(measure)
        if mark.group is None:
            axes.axvline(scale * height, color=color, linestyle=":", label=label)
        else:
            known = mark.name in axes.get_legend_handles_labels()[1]
            label = "_" if known else mark.name
            axes.plot([scale * height], [places[mark.group]], "|", color=color, markersize=11, markeredgewidth=2, label=label)
    if measure.percent:
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -3), min(high, 103))
    axes.grid(axis="x")
    axes.set_xlabel(measure.heading)
    axes.set_title(measure.label)
    if beside:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
