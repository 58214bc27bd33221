"""The pictures of a report, each one small enough for a phone: what is drawn here is read from results.py alone."""

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from matplotlib import colormaps

from lowmem_spin.report.plots import COLORS, DASHES, DRAWN, GREY, YARDSTICK, Line, Panel, figure, lines, radar, short
from lowmem_spin.report.results import MATCH, Configuration, Policy, Run, Sweep, plain
from lowmem_spin.report.summary import NAMES, SHARES, show
from lowmem_spin.report.svg import INK
from lowmem_spin.report.training_curves import training


def run_panels(run: Run) -> list[Panel]:
    """A run's pictures: scores, categories, health, training."""
    matched = MATCH in run.base.values
    dotted = ", ".join(policy.name for policy in run.yardsticks)
    caption = "Bars: 95% intervals over held-out rows." + (f" Dotted: {dotted}." if dotted else "")
    scores = [MATCH, "sampled_accuracy"] if matched else ["chosen_logp"]
    panels = [_policies(run, "Scores", "score", scores, caption)]
    if matched:
        panels.append(_policies(run, "Scores", "logprob", ["chosen_logp"], caption))
    if len(run.base.categories) >= 3:
        colors = _shades(len(run.played))
        series = [(p.name, _categories([p]), color, "-") for p, color in zip(run.played, colors, strict=True)]
        series += [(p.name, _categories([p]), YARDSTICK, ":") for p in run.yardsticks]
        panels.append(radar("Scores", "radar", "Exact match by category, policy by policy.", series))
    panels += [
        _policies(run, "Game health", "kl", ["kl_to_base", "kl_to_previous", "kl_from_base"], "KL, nats per completion."),
        _policies(run, "Game health", "length", ["length"], "Length of own samples."),
        _policies(
            run,
            "Game health",
            "samples",
            ["truncated", "identical"],
            "Own samples that did not end, or equal the data's answer.",
        ),
    ]
    return panels + training({"": [run]}, {"": (COLORS[0], "-")})


def sweep_panels(sweep: Sweep) -> list[Panel]:
    """A sweep's pictures: one line per configuration."""
    shown = drawn(sweep)
    if not shown:
        return []
    looks = {c.label: (COLORS[i % len(COLORS)], DASHES[i // len(COLORS)]) for i, c in enumerate(shown)}
    counts = {len(configuration.runs) > 1: None for configuration in shown}
    captions = {True: "from the lowest to the highest seed", False: "where there is one seed, 95% intervals over held-out rows"}
    caption = f"Bands: {'; '.join(captions[several] for several in sorted(counts, reverse=True))}."

    def curves(part: str, name: str) -> Panel:
        bands = [_band(configuration, name, *looks[configuration.label]) for configuration in shown]
        return lines(part, name, NAMES[name], caption, bands, _places(max(c.iterates for c in shown)), name in SHARES)

    names = [MATCH, "sampled_accuracy", "chosen_logp"] if sweep.score == MATCH else ["chosen_logp"]
    panels = [curves("Scores", name) for name in names] + _heatmaps(sweep)
    if all(len(policy.categories) >= 3 for c in shown for run in c.runs.values() for policy in run.played):
        last = [(c.label, _categories([run.last for run in c.runs.values()]), *looks[c.label]) for c in shown]
        panels.append(radar("Scores", "radar", "Exact match by category, last iterates, mean over seeds.", last))
        panels += [_radar_of(configuration, place) for place, configuration in enumerate(shown)]
    health = ["kl_to_base", "kl_to_previous", "length", "truncated", "identical"]
    panels += [curves("Game health", name) for name in health]
    return panels + training({c.label: list(c.runs.values()) for c in shown}, looks)


def drawn(sweep: Sweep) -> list[Configuration]:
    """The configurations that the curves show: all, or the best DRAWN by the last iterate's score."""
    best = sorted(sweep.finished, key=lambda configuration: -configuration.value(sweep.score).mean)[:DRAWN]
    return [configuration for configuration in sweep.finished if configuration in best]


def _places(count: int) -> list[str]:
    return ["base", *(f"it. {place}" for place in range(count - 1))]


def _shades(count: int) -> list[str]:
    """Grey for the base, then from light to dark for the iterates."""
    shades = colormaps["plasma"](np.linspace(0.8, 0.32, max(1, count - 1)))
    return [GREY, *("#" + "".join(f"{round(255 * part):02x}" for part in shade[:3]) for shade in shades)][:count]


def _categories(policies: Sequence[Policy]) -> dict[str, float]:
    names = policies[0].categories
    return {short(name): fmean(policy.categories[name].mean for policy in policies) for name in names}


def _policies(run: Run, part: str, name: str, measures: Sequence[str], caption: str) -> Panel:
    """Some numbers of a run over its policies; the yardsticks' as dotted lines."""
    intervals = [_interval(run.played, measure, color) for measure, color in zip(measures, COLORS, strict=False)]
    percent = measures[0] in SHARES
    marks = {measure: [p.values[measure].mean for p in run.yardsticks] for measure in measures} if part == "Scores" else {}
    title = (
        NAMES[measures[0]]
        if len(measures) == 1
        else {"score": "scores, %", "kl": "KL, nats", "samples": "own samples, %"}[name]
    )
    levels = [(value, color) for measure, color in zip(measures, COLORS, strict=False) for value in marks.get(measure, [])]
    return lines(part, name, title, caption, intervals, _places(len(run.played)), percent, levels)


def _interval(policies: Sequence[Policy], name: str, color: str) -> Line:
    values = [policy.values[name] for policy in policies]
    halves = [0.0 if math.isnan(value.half) else value.half for value in values]
    means = [value.mean for value in values]
    lows, highs = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
    return Line(NAMES[name].removesuffix(", %"), means, lows, highs, color)


def _band(configuration: Configuration, name: str, color: str, dashes: str) -> Line:
    """A configuration's mean over the seeds, and the range of the seeds."""
    places = range(configuration.iterates)
    if len(configuration.runs) == 1:
        (run,) = configuration.runs.values()
        line = _interval(run.played, name, color)
        return Line(configuration.label, line.means, line.lows, line.highs, color, dashes)
    seeds = [[run.played[place].values[name].mean for run in configuration.runs.values()] for place in places]
    means, lows, highs = ([gather(values) for values in seeds] for gather in (fmean, min, max))
    return Line(configuration.label, means, lows, highs, color, dashes)


def _radar_of(configuration: Configuration, place: int) -> Panel:
    """One configuration's categories over its iterates, as in figures 2 to 5 of arXiv 2404.04291."""
    names, colors = _places(configuration.iterates), _shades(configuration.iterates)
    runs = list(configuration.runs.values())
    series = [(n, _categories([run.played[i] for run in runs]), colors[i], "-") for i, n in enumerate(names)]
    return radar("Categories over iterates", f"radar_{place}", f"Exact match by category: {configuration.label}.", series)


def _heatmaps(sweep: Sweep) -> list[Panel]:
    """Alpha x history by the last iterate's score, one for each setting of the other axes."""
    alphas, histories = sweep.plan.axes.get("game.alpha", []), sweep.plan.axes.get("game.history", [])
    if len(alphas) < 2 or len(histories) < 2:
        return []
    groups: dict[str, dict[tuple[str, str], Configuration]] = {}
    for configuration in sweep.configurations:
        rest = {n: v for n, v in configuration.setting.items() if n not in ("game.alpha", "game.history")}
        cell = plain(configuration.setting["game.alpha"]), plain(configuration.setting["game.history"])
        groups.setdefault(", ".join(f"{n} {plain(v)}" for n, v in rest.items()), {})[cell] = configuration
    groups = {title: cells for title, cells in groups.items() if any(c.runs for c in cells.values())}
    names = [f"heatmap_{place}" if len(groups) > 1 else "heatmap" for place in range(len(groups))]
    return [
        _heatmap(sweep, name, title, cells, [plain(a) for a in alphas], [plain(h) for h in histories])
        for name, (title, cells) in zip(names, groups.items(), strict=True)
    ]


def _heatmap(
    sweep: Sweep, name: str, title: str, cells: dict[tuple[str, str], Configuration], alphas: list[str], histories: list[str]
) -> Panel:
    drawing, axes = figure(title or f"last iterate: {NAMES[sweep.score]}")
    scale = 100 if sweep.score in SHARES else 1
    grid = np.full((len(histories), len(alphas)), np.nan)
    for (alpha, history), configuration in cells.items():
        if configuration.runs:
            grid[histories.index(history), alphas.index(alpha)] = scale * configuration.value(sweep.score).mean
    axes.set_facecolor("none")
    axes.pcolormesh(grid, cmap="viridis", edgecolor="none")
    axes.invert_yaxis()
    dark = np.nanmin(grid) + 0.6 * (np.nanmax(grid) - np.nanmin(grid))  # viridis is dark below
    for (alpha, history), configuration in cells.items():
        value = grid[histories.index(history), alphas.index(alpha)]
        states = " ".join(dict.fromkeys(point.status for point in configuration.points))
        text = states if np.isnan(value) else show(configuration.value(sweep.score), sweep.score)
        ink = INK if np.isnan(value) else ("#ffffff" if value < dark else "#000000")
        middle = alphas.index(alpha) + 0.5, histories.index(history) + 0.5
        axes.text(*middle, text.replace(" ", "\n"), color=ink, ha="center", va="center")
    axes.set_xticks(np.arange(len(alphas)) + 0.5, alphas)
    axes.set_yticks(np.arange(len(histories)) + 0.5, histories)
    axes.set_xlabel("alpha")
    axes.set_ylabel("history")
    caption = f"{NAMES[sweep.score]} of the last iterate{': ' + title if title else ''}."
    return Panel("Scores", name, caption, drawing)
