"""The final picture: scores over iterates, drift, and a radar of categories as in the paper's figures 2 to 5."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from lowmem_spin.common.errors import printable
from lowmem_spin.report.intervals import Z
from lowmem_spin.runner.health import Estimate, Health

COLORS = ["#8a8f98", "#9ecae1", "#4292c6", "#08519c", "#3f007d", "#7a0177", "#ae017e"]  # base grey, then darker


def draw(healths: Sequence[Health], title: str, path: Path) -> None:
    """Write the picture of a finished game."""
    has_radar = len(healths[0].categories) >= 3
    figure = Figure(figsize=(13.5 if has_radar else 9, 4.4), layout="constrained")
    figure.suptitle(_plain(title))
    count = 3 if has_radar else 2
    _scores(figure.add_subplot(1, count, 1), healths)
    _drift(figure.add_subplot(1, count, 2), healths)
    if has_radar:
        _radar(figure.add_subplot(1, count, 3, projection="polar"), healths)  # type: ignore[arg-type]
    figure.savefig(path, dpi=140)


def _plain(text: str) -> str:
    """Text from a person's data as it is: no formulas, nothing unprintable."""
    return printable(text).replace("$", r"\$")


def _points(axes: Axes, values: Sequence[Estimate], label: str, color: str, marker: str = "o") -> None:
    places = range(len(values))
    errors = [Z * value.error for value in values]
    axes.errorbar(places, [value.mean for value in values], errors, label=label, color=color, marker=marker, capsize=3)


def _played(healths: Sequence[Health]) -> tuple[list[Health], list[Health]]:
    """(base and iterates, yardsticks)"""
    return [h for h in healths if h.name.startswith(("base", "iterate"))], [h for h in healths if h.name.startswith("plain")]


def _name_policies(axes: Axes, played: Sequence[Health]) -> None:
    axes.set_xticks(range(len(played)), [health.name.replace("iterate ", "it. ") for health in played])
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


def _scores(axes: Axes, healths: Sequence[Health]) -> None:
    played, yardsticks = _played(healths)
    if played[0].exact_match is None:
        kinds = [
            ("log-prob of the data's answers", "#08519c", [h.chosen_logp for h in played], [h.chosen_logp for h in yardsticks])
        ]
    else:
        matches, marked = ([h.exact_match for h in group if h.exact_match] for group in (played, yardsticks))
        sampled = [h.sampled_accuracy for h in played], [h.sampled_accuracy for h in yardsticks]
        kinds = [("exact match (greedy)", "#08519c", matches, marked), ("sampled accuracy", "#4292c6", *sampled)]
        axes.set_ylim(bottom=0)
    for label, color, values, marks in kinds:
        _points(axes, values, label, color)
        for mark in marks:
            axes.axhline(mark.mean, color=color, linestyle=":", label=f"plain SFT, {label.split(' (')[0]}")
    axes.set_title("held-out rows")
    _name_policies(axes, played)


def _drift(axes: Axes, healths: Sequence[Health]) -> None:
    played, _ = _played(healths)
    _points(axes, [h.kl_to_base for h in played], "KL(policy | base)", "#7a0177")
    _points(axes, [h.kl_to_previous for h in played], "KL(policy | previous)", "#f768a1", "s")
    _points(axes, [h.kl_from_base for h in played], "KL(base | policy)", "#fa9fb5", "^")
    axes.set_ylabel("nats per completion")
    axes.set_title("drift")
    _name_policies(axes, played)


def _radar(axes: PolarAxes, healths: Sequence[Health]) -> None:
    series = []
    for index, health in enumerate(healths):
        yardstick = health.name.startswith("plain")
        color = "#d95f0e" if yardstick else COLORS[min(index, len(COLORS) - 1)]
        means = {_plain(name): value.mean for name, value in health.categories.items()}
        series.append((health.name, means, color, ":" if yardstick else "-"))
    radar(axes, series)
    axes.set_title("exact match by category")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.12, 0.5))


def radar(axes: PolarAxes, series: Sequence[tuple[str, dict[str, float], str, str]]) -> None:
    """Shares from 0 to 1 by category: a closed line for each (label, {category: share}, color, line style)."""
    names = list(series[0][1])
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    for label, means, color, style in series:
        values = [means[name] for name in names]
        axes.plot([*angles, angles[0]], [*values, values[0]], label=label, color=color, linestyle=style)
    axes.set_xticks(angles, names)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75], ["", ".5", ""])
