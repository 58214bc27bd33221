"""The pictures of a report, each one small enough for a phone: what is drawn here is read from results.py alone."""

from collections.abc import Sequence
from functools import partial
from statistics import fmean

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import FigureBase

from lowmem_spin.report.measures import MEASURES
from lowmem_spin.report.plots import (
    BASELINE,
    COLORS,
    DASHES,
    DRAWN,
    GREY,
    TALL,
    Curve,
    Panel,
    draw_curves,
    draw_heatmap,
    draw_radar,
    short,
)
from lowmem_spin.report.results import Configuration, PolicyResults, RunResults, SweepResults, plain_value
from lowmem_spin.report.training_curves import training_panels

TITLES = {"score": "scores, %", "kl": "KL, nats", "samples": "own samples, %"}  # of pictures of several measures


def run_panels(run: RunResults) -> list[Panel]:
    """A run's pictures: scores, categories, health, training."""
    dotted = ", ".join(policy.name for policy in run.baselines)
    caption = "Bars: 95% intervals over held-out rows." + (f" Dotted: {dotted}." if dotted else "")
    panels = [_policies(run, "Scores", "score", run.scores[:2], caption)]
    if run.scores[2:]:
        panels.append(_policies(run, "Scores", "logprob", run.scores[2:], caption))
    if len(run.base.categories) >= 3:
        colors = _shades(len(run.played))
        series = [(p.name, _categories([p]), color, "-") for p, color in zip(run.played, colors, strict=True)]
        series += [(p.name, _categories([p]), BASELINE, ":") for p in run.baselines]
        panels.append(_radar("radar", "Exact match by category, policy by policy.", series))
    kl = ["kl_to_base", "kl_to_previous", "kl_from_base"]
    ends, shares = "Own samples that did not end, or equal the data's answer.", ["truncated", "identical"]
    if "identical" not in run.base.values:  # the data has prompts alone
        ends, shares = "Own samples that did not end.", ["truncated"]
    panels += [
        _policies(run, "Game health", "kl", kl, "KL, nats per completion."),
        _policies(run, "Game health", "length", ["length"], "Length of own samples."),
        _policies(run, "Game health", "samples", shares, ends),
    ]
    return panels + training_panels({"": [run]}, {"": (COLORS[0], "-")})


def sweep_panels(sweep: SweepResults) -> list[Panel]:
    """A sweep's pictures: one curve per configuration."""
    shown = drawn_configurations(sweep)
    if not shown:
        return []
    looks = {c.label: (COLORS[i % len(COLORS)], DASHES[i // len(COLORS)]) for i, c in enumerate(shown)}
    counts = {len(configuration.runs) > 1: None for configuration in shown}
    captions = {True: "from the lowest to the highest seed", False: "where there is one seed, 95% intervals over held-out rows"}
    caption = f"Bands: {'; '.join(captions[several] for several in sorted(counts, reverse=True))}."
    places = _places(max(c.iterates for c in shown))

    def curves(part: str, name: str) -> Panel:
        bands = [_band(configuration, name, *looks[configuration.label]) for configuration in shown]
        title, percent = MEASURES[name].heading, MEASURES[name].percent
        return Panel(part, name, caption, partial(draw_curves, title=title, curves=bands, places=places, percent=percent))

    panels = [curves("Scores", name) for name in sweep.scores] + _heatmaps(sweep)
    if all(len(policy.categories) >= 3 for c in shown for run in c.runs.values() for policy in run.played):
        last = [(c.label, _categories([run.last for run in c.runs.values()]), *looks[c.label]) for c in shown]
        panels.append(_radar("radar", "Exact match by category, last iterates, mean over seeds.", last))
        panels += [_radar_of(configuration, place) for place, configuration in enumerate(shown)]
    health = ["kl_to_base", "kl_to_previous", "length", "truncated", *(["identical"] if sweep.has("identical") else [])]
    panels += [curves("Game health", name) for name in health]
    return panels + training_panels({c.label: list(c.runs.values()) for c in shown}, looks)


def drawn_configurations(sweep: SweepResults) -> list[Configuration]:
    """The configurations that the curves show: all, or the best DRAWN by the last iterate's score."""
    best = sorted(sweep.finished, key=lambda configuration: -configuration.value(sweep.score).mean)[:DRAWN]
    return [configuration for configuration in sweep.finished if configuration in best]


def _places(count: int) -> list[str]:
    return ["base", *(f"it. {place}" for place in range(count - 1))]


def _shades(count: int) -> list[str]:
    """Grey for the base, then from light to dark for the iterates."""
    shades = colormaps["plasma"](np.linspace(0.8, 0.32, max(1, count - 1)))
    return [GREY, *("#" + "".join(f"{round(255 * part):02x}" for part in shade[:3]) for shade in shades)][:count]


def _categories(policies: Sequence[PolicyResults]) -> dict[str, float]:
    names = policies[0].categories
    return {short(name): fmean(policy.categories[name].mean for policy in policies) for name in names}


def _policies(run: RunResults, part: str, name: str, measures: Sequence[str], caption: str) -> Panel:
    """Some numbers of a run over its policies; the baselines' scores as dotted lines."""
    colors = dict(zip(measures, COLORS, strict=False))
    baselines = run.baselines if part == "Scores" else []
    draw = partial(
        draw_curves,
        title=TITLES[name] if len(measures) > 1 else MEASURES[measures[0]].heading,
        curves=[_curve(MEASURES[measure].label, run.played, measure, color) for measure, color in colors.items()],
        places=_places(len(run.played)),
        percent=MEASURES[measures[0]].percent,
        levels=[(policy.values[measure].mean, color) for measure, color in colors.items() for policy in baselines],
    )
    return Panel(part, name, caption, draw)


def _curve(label: str, policies: Sequence[PolicyResults], name: str, color: str, dashes: str = "-") -> Curve:
    return Curve.of(label, [policy.values[name] for policy in policies], color, dashes)


def _band(configuration: Configuration, name: str, color: str, dashes: str) -> Curve:
    """A configuration's mean over the seeds, and the range of the seeds."""
    runs = list(configuration.runs.values())
    if len(runs) == 1:
        return _curve(configuration.label, runs[0].played, name, color, dashes)
    seeds = [[run.played[place].values[name].mean for run in runs] for place in range(configuration.iterates)]
    means, lows, highs = ([gather(values) for values in seeds] for gather in (fmean, min, max))
    return Curve(configuration.label, means, lows, highs, color, dashes)


def _radar(name: str, caption: str, series: Sequence[tuple[str, dict[str, float], str, str]]) -> Panel:
    return Panel("Scores", name, caption, partial(draw_radar, series=series), TALL)


def _radar_of(configuration: Configuration, place: int) -> Panel:
    """One configuration's categories over its iterates, as in figures 2 to 5 of arXiv 2404.04291."""
    names, colors = _places(configuration.iterates), _shades(configuration.iterates)
    runs = list(configuration.runs.values())
    series = [(n, _categories([run.played[i] for run in runs]), colors[i], "-") for i, n in enumerate(names)]
    title = "Categories over iterates"
    return Panel(
        title, f"radar_{place}", f"Exact match by category: {configuration.label}.", partial(draw_radar, series=series), TALL
    )


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


def _heatmap(
    score: str, name: str, title: str, group: Sequence[Configuration], alphas: list[str], histories: list[str]
) -> Panel:
    measure = MEASURES[score]
    values = np.full((len(histories), len(alphas)), np.nan)
    texts = np.full(values.shape, "", object)
    for configuration in group:
        alpha, history = (plain_value(configuration.setting[f"game.{axis}"]) for axis in ("alpha", "history"))
        cell = histories.index(history), alphas.index(alpha)
        text = " ".join(dict.fromkeys(point.status for point in configuration.points))
        if configuration.runs:
            value = configuration.value(score)
            values[cell], text = value.mean, measure.text(value)
        texts[cell] = text.replace(" ", "\n")

    def draw(figure: FigureBase) -> None:
        axes = draw_heatmap(figure, title or f"last iterate: {measure.heading}", values, texts, alphas, histories)
        axes.set_xlabel("alpha")
        axes.set_ylabel("history")

    return Panel("Scores", name, f"{measure.heading} of the last iterate{': ' + title if title else ''}.", draw)
