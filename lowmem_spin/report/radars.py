"""Categories as radars, zoomed to where the numbers are; shapes that are equal within noise are drawn once, or not at all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib import colormaps

from lowmem_spin.report.intervals import Value, Z, difference, over, within_noise
from lowmem_spin.report.measures import MEASURES
from lowmem_spin.report.plots import BASELINE, GREY, TALL, Panel, draw_radar, short, zoom
from lowmem_spin.report.results import Configuration, PolicyResults, RunResults

LEAST = 3  # categories that make a shape
VISIBLE = 0.02  # a smaller difference of two shares is none that a shape shows
RadarShape = Mapping[str, Value]


@dataclass(frozen=True)
class Series:
    """One closed line."""

    name: str
    shape: RadarShape
    color: str
    dashes: str = "-"


def alike(one: RadarShape, other: RadarShape) -> bool:
    """Whether two shapes differ by no more than noise in every category."""
    apart = [difference({0: one[name]}, {0: other[name]}) for name in one]
    return all(within_noise(value) or abs(value.mean) < VISIBLE for value in apart)


def shapes(policies: Sequence[PolicyResults]) -> RadarShape:
    """The categories of one policy over its seeds."""
    return {name: _sure([policy.categories[name] for policy in policies]) for name in policies[0].categories}


def _sure(values: Sequence[Value]) -> Value:
    """Over seeds, but no surer than the held-out rows of all of them make it: two seeds may agree by chance."""
    seeds, rows = over(values), math.hypot(*(value.half for value in values)) / len(values)
    return Value(seeds.mean, rows / Z) if seeds.half < rows else seeds


def shades(count: int) -> list[str]:
    """Grey for the base, then from light to dark for the iterates."""
    colors = colormaps["plasma"](np.linspace(0.8, 0.32, max(1, count - 1)))
    return [GREY, *("#" + "".join(f"{round(255 * part):02x}" for part in color[:3]) for color in colors)][:count]


def radar(part: str, name: str, caption: str, series: Sequence[Series]) -> Panel:
    """One picture; its caption says what centre and rim stand for."""
    low, high = zoom([value.mean for one in series for value in one.shape.values()])
    drawn = [(one.name, {short(n): v.mean for n, v in one.shape.items()}, one.color, one.dashes) for one in series]
    rim = f"Centre {100 * low:.0f}%, rim {100 * high:.0f}%."
    return Panel(part, name, f"{caption} {rim}", partial(draw_radar, series=drawn, span=(low, high)), TALL)


def _sentence(label: str) -> str:
    """A measure's label as a caption begins."""
    return label[:1].upper() + label[1:]


def of_run(run: RunResults) -> tuple[list[Panel], list[str]]:
    """The policies of a run by category, and what is said where nothing is drawn."""
    score = MEASURES[run.scores[0]]
    if len(run.base.categories) < LEAST or not score.percent:
        return [], []
    colors = shades(len(run.played))
    series = [Series(p.name, p.categories, color) for p, color in zip(run.played, colors, strict=True)]
    series += [Series(p.name, p.categories, BASELINE, ":") for p in run.baselines]
    if all(alike(one.shape, series[0].shape) for one in series):
        return [], ["No radar: in every category all policies are within noise of the base."]
    return [radar("Scores", "radar", f"{_sentence(score.label)} by category, policy by policy.", series)], []


def of_sweep(shown: Sequence[Configuration], looks: Mapping[str, tuple[str, str]]) -> tuple[list[Panel], list[str]]:
    """The last iterates by category, and each configuration's iterates where they are unlike those drawn before it."""
    all_runs = [run for c in shown for run in c.runs.values()]
    scores = {run.scores[0] for run in all_runs}
    if len(scores) != 1 or not all(len(policy.categories) >= LEAST for run in all_runs for policy in run.played):
        return [], []
    score = MEASURES[scores.pop()]
    if not score.percent:
        return [], []
    by_category = f"{_sentence(score.label)} by category"
    last = [Series(c.label, shapes([run.last for run in c.runs.values()]), *looks[c.label]) for c in shown]
    panels, notes = [], []
    if len(last) > 1:
        if all(alike(one.shape, other.shape) for one in last for other in last):
            notes = ["No radar of the last iterates: in every category they are within noise of each other."]
        else:
            panels.append(radar("Scores", "radar", f"{by_category}, last iterates, mean over seeds.", last))
    groups: list[tuple[list[RadarShape], list[int]]] = []
    for index, configuration in enumerate(shown):
        runs = list(configuration.runs.values())
        path = [shapes([run.played[i] for run in runs]) for i in range(configuration.iterates)]
        for other, members in groups:
            if len(other) == len(path) and all(map(alike, path, other)):
                members.append(index)
                break
        else:
            groups.append((path, [index]))
    for path, members in groups:
        names, colors = [p.name for p in next(iter(shown[members[0]].runs.values())).played], shades(len(path))
        series = [Series(n, shape, color) for n, shape, color in zip(names, path, colors, strict=False)]
        caption = f"{by_category}: {shown[members[0]].label}."
        if members[1:]:
            caption += f" Within noise of it, so not drawn: {'; '.join(shown[index].label for index in members[1:])}."
        panels.append(radar("Categories over iterates", f"radar_{members[0]}", caption, series))
    return panels, notes
