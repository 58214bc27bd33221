"""The pictures of a report, each one small enough for a phone: what is drawn here is read from results.py alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import numpy as np
from matplotlib.figure import FigureBase

from lowmem_spin.report import radars
from lowmem_spin.report.against import line_of, lines, main_panels, numeric_axis
from lowmem_spin.report.heatmap import draw_heatmap, steps
from lowmem_spin.report.intervals import Value, over_seeds
from lowmem_spin.report.measures import MEASURES
from lowmem_spin.report.plots import COLORS, DASHES, DRAWN, Curve, Panel, draw_curves
from lowmem_spin.report.results import Configuration, PolicyResults, RunResults, SweepResults, plain_value
from lowmem_spin.report.training_curves import training_panels

TITLES = {"score": "scores", "kl": "KL", "samples": "own samples"}  # of pictures of several measures


@dataclass(frozen=True)
class Pictures:
    """Panels, and the notes under a heading where there is nothing to draw."""

    panels: list[Panel]
    notes: dict[str, list[str]] = field(default_factory=dict)


def run_panels(run: RunResults) -> Pictures:
    """A run's pictures: scores, categories, health, training."""
    names = ", ".join(policy.name for policy in run.baselines)
    caption = "Bars: 95% intervals over held-out rows." + (f" Dotted: {names}." if names else "")
    unit = MEASURES[run.scores[0]].unit
    alike = [name for name in run.scores if MEASURES[name].unit == unit]
    panels = [_policies(run, "Scores", "score", alike, caption)]
    if others := [name for name in run.scores if name not in alike]:
        panels.append(_policies(run, "Scores", "logprob", others, caption))
    categories, notes = radars.of_run(run)
    kl = ["kl_to_base", "kl_to_previous", "kl_from_base"]
    ends, shares = "Own samples that are truncated, or equal the data's answer.", ["truncated", "identical"]
    if "identical" not in run.base.values:  # the data has prompts alone
        ends, shares = "Own samples that are truncated.", ["truncated"]
    panels += [
        *categories,
        _policies(run, "Drift and samples", "kl", kl, "KL, nats per completion."),
        _policies(run, "Drift and samples", "length", ["length"], "Length of own samples."),
        _policies(run, "Drift and samples", "samples", shares, ends),
    ]
    return Pictures(panels + training_panels({"": [run]}, {"": (COLORS[0], "-")}), {"Scores": notes})


def sweep_panels(sweep: SweepResults) -> Pictures:
    """A sweep's pictures: one curve per configuration."""
    shown = drawn_configurations(sweep)
    if not shown:
        return Pictures([])
    looks = looks_of(sweep, shown)
    counts = {len(configuration.runs) > 1: None for configuration in shown}
    captions = {
        True: over_seeds(len(c.runs) for c in shown),
        False: "where there is one seed, 95% intervals over held-out rows",
    }
    caption = f"Bands: {'; '.join(captions[several] for several in sorted(counts, reverse=True))}."
    longest = max((run.played for c in shown for run in c.runs.values()), key=len)
    places = [policy.name for policy in longest[: max(c.iterates for c in shown)]]

    def curves(part: str, name: str) -> Panel:
        bands = [_band(configuration, name, *looks[configuration.label]) for configuration in shown]
        measure = MEASURES[name]
        return Panel(
            part, name, caption, partial(draw_curves, title=measure.label, curves=bands, places=places, unit=measure.unit)
        )

    categories, notes = radars.of_sweep(shown, looks)
    panels = [
        *main_panels(sweep, shown, looks),
        *(curves("Scores", name) for name in sweep.scores),
        *_heatmaps(sweep),
        *categories,
    ]
    health = ["kl_to_base", "kl_to_previous", "length", "truncated", *(["identical"] if sweep.has("identical") else [])]
    panels += [curves("Drift and samples", name) for name in health]
    return Pictures(panels + training_panels({c.label: list(c.runs.values()) for c in shown}, looks), {"Scores": notes})


def looks_of(sweep: SweepResults, shown: Sequence[Configuration]) -> dict[str, tuple[str, str]]:
    """A colour and dashes for each configuration: that of its line in the main picture, if dashes suffice for the rest."""
    axis = numeric_axis(sweep)
    if axis is not None:
        drawn = lines(sweep, shown, axis, sweep.score)
        along = sorted({x for line in drawn for x in line.x})
        if 1 < len(drawn) <= len(COLORS) and len(along) <= len(DASHES):
            color = {line.label: line.color for line in drawn}
            return {c.label: (color[line_of(c, axis)], DASHES[along.index(float(c.setting[axis]))]) for c in shown}
    return {c.label: (COLORS[i % len(COLORS)], DASHES[i // len(COLORS)]) for i, c in enumerate(shown)}


def drawn_configurations(sweep: SweepResults) -> list[Configuration]:
    """The configurations that the curves show: all, or the best DRAWN by the last iterate's score."""
    best = sorted(sweep.finished, key=lambda configuration: -configuration.value(sweep.score).mean)[:DRAWN]
    return [configuration for configuration in sweep.finished if configuration in best]


def _policies(run: RunResults, part: str, name: str, measures: Sequence[str], caption: str) -> Panel:
    """Some numbers of a run over its policies; the baselines' scores as dotted lines."""
    colors = dict(zip(measures, COLORS, strict=False))
    baselines = run.baselines if part == "Scores" else []
    draw = partial(
        draw_curves,
        title=TITLES[name] if len(measures) > 1 else MEASURES[measures[0]].label,
        curves=[_curve(MEASURES[measure].label, run.played, measure, color) for measure, color in colors.items()],
        places=[policy.name for policy in run.played],
        unit=MEASURES[measures[0]].unit,
        levels=[(policy.values[measure].mean, color, policy.name) for measure, color in colors.items() for policy in baselines],
    )
    return Panel(part, name, caption, draw)


def _curve(label: str, policies: Sequence[PolicyResults], name: str, color: str, dashes: str = "-") -> Curve:
    return Curve.of(label, [policy.values[name] for policy in policies], color, dashes)


def _band(configuration: Configuration, name: str, color: str, dashes: str) -> Curve:
    """A configuration's numbers with their intervals, over the seeds where there are several."""
    values = [configuration.value(name, place) for place in range(configuration.iterates)]
    return Curve.of(configuration.label, values, color, dashes)


def _heatmaps(sweep: SweepResults) -> list[Panel]:
    """Alpha x history by the last iterate's score, one for each setting of the other axes."""
    alphas, histories = ([plain_value(v) for v in sweep.file.axes.get(f"game.{axis}", [])] for axis in ("alpha", "history"))
    if len(alphas) < 2 or len(histories) < 2:
        return []
    groups: dict[str, list[Configuration]] = {}
    for configuration in sweep.configurations:
        rest = {n: v for n, v in configuration.setting.items() if n not in ("game.alpha", "game.history")}
        groups.setdefault(", ".join(f"{n} {plain_value(v)}" for n, v in rest.items()), []).append(configuration)
    groups = {title: group for title, group in groups.items() if any(configuration.runs for configuration in group)}
    names = [f"heatmap_{place}" if len(groups) > 1 else "heatmap" for place in range(len(groups))]
    return [_heatmap(sweep.score, n, *group, alphas, histories) for n, group in zip(names, groups.items(), strict=True)]


def noise_between(configurations: Sequence[Configuration], score: str) -> float:
    """How far apart two of them may be by chance: the median half-width of their differences' 95% intervals; nan: unknown."""
    halves = [one.against(other, score).half for one, other in combinations(configurations, 2) if not one.same_as(other)]
    known = [half for half in halves if not np.isnan(half)]
    return float(np.median(known)) if known else float("nan")


def _heatmap(
    score: str, name: str, title: str, group: Sequence[Configuration], alphas: list[str], histories: list[str]
) -> Panel:
    measure = MEASURES[score]
    scale = 100 if measure.percent else 1
    values = np.full((len(histories), len(alphas)), np.nan)
    texts = np.full(values.shape, "", object)
    for configuration in group:
        alpha, history = (plain_value(configuration.setting[f"game.{axis}"]) for axis in ("alpha", "history"))
        cell = histories.index(history), alphas.index(alpha)
        text = " ".join(dict.fromkeys(point.status for point in configuration.points))
        if configuration.runs:
            value: Value = configuration.value(score)
            values[cell], text = scale * value.mean, measure.text(value)
        texts[cell] = text.replace(" ", "\n")
    noise = scale * noise_between([configuration for configuration in group if configuration.runs], score)
    edges = steps(values, noise)

    def draw(figure: FigureBase) -> None:
        heading = title or f"last iterate: {measure.label}"
        axes = draw_heatmap(figure, heading, values, texts, alphas, histories, edges, measure.heading)
        axes.set_xlabel("alpha")
        axes.set_ylabel("history")

    step = f"{edges[1] - edges[0]:.2g}{' points' if measure.percent else ''}"
    note = f"A step of colour is {step}, {_meant(edges[1] - edges[0], noise)}."
    return Panel("Scores", name, f"The last iterate's {measure.in_words}{': ' + title if title else ''}. {note}", draw)


def _meant(step: float, noise: float) -> str:
    if np.isnan(noise):
        return "for how far cells differ by chance is not known"
    return (
        "which two cells may differ by chance (95%)" if step <= 1.001 * noise else "more than two cells differ by chance (95%)"
    )
