"""How training went: curves over the optimiser steps of all iterates in a row, from the manifests of the adapters."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import FigureBase

from lowmem_spin.report.plots import COLORS, GREY, Panel, add_legend, titled_axes
from lowmem_spin.report.results import RunResults
from lowmem_spin.runner.health import LOSS_UNITS

POINTS = 120  # of a curve per iterate; longer ones are averaged in bins
TRAINING: list[tuple[str, str, str, dict[str, str]]] = [
    ("loss", "loss", "", {"loss": "-"}),
    ("margin", "reward margin", "", {"rewards/margins": "-"}),
    ("sides", "log-prob of chosen and rejected answers", "nats", {"logps/chosen": "-", "logps/rejected": ":"}),
]
SIZES = [(1e6, "millions"), (1e3, "thousands")]  # SPPO's squares of a thousand times a win-rate are such numbers


def training_panels(groups: dict[str, list[RunResults]], looks: dict[str, tuple[str, str]]) -> list[Panel]:
    """Curves over the optimiser steps of all iterates in a row, the mean over the runs of a group."""
    starts = _starts(next(iter(groups.values()))[0])
    panels = []
    losses = [_loss(run) for runs in groups.values() for run in runs]
    units = {"loss": {LOSS_UNITS.get(str(loss.get("name")), "") for loss in losses}}
    units["margin"] = {"beta × nats" if "beta" in loss else "nats" for loss in losses}  # as TRL names and scales it
    for name, title, unit, metrics in TRAINING:
        curves = []
        for group, runs in groups.items():
            color, dashes = looks[group]
            for metric, dots in metrics.items():
                side = metric.rpartition("/")[2] if len(metrics) > 1 and not group else group if dots == "-" else "_"
                shade = COLORS[1] if dots == ":" and not group else color
                look = {"label": side, "color": shade, "linestyle": dashes if dots == "-" else dots}
                curves.append((*_mean_curve(runs, metric), look))
        if any(len(x) for x, _, _ in curves):
            dotted = " Dotted: rejected." if len(metrics) > 1 else ""
            caption = f"{title[0].upper()}{title[1:]}, per batch.{dotted}"
            measured = unit or (" ".join(units[name]) if len(units[name]) == 1 else "in the unit of each loss")
            draw = partial(_draw, title=title, unit=measured, curves=curves, starts=starts)
            panels.append(Panel("Training", f"training_{name}", caption, draw))
    return panels


def _loss(run: RunResults) -> dict[str, Any]:
    """What the last iterate was trained with."""
    return [manifest["asked"]["loss"] for manifest in run.trainings.values()][-1] if run.trainings else {}


def _draw(
    figure: FigureBase,
    title: str,
    unit: str,
    curves: Sequence[tuple[Any, Any, dict[str, str]]],
    starts: Sequence[float],
) -> None:
    highest = max((np.abs(y).max() for _, y, _ in curves if len(y)), default=0.0)
    size, word = next(((size, word) for size, word in SIZES if highest >= 2 * size), (1.0, ""))
    axes = titled_axes(figure, title, " of ".join(part for part in (word, unit) if part))
    for x, y, look in curves:
        axes.plot(x, np.asarray(y) / size, linewidth=1.2, **look)  # type: ignore[arg-type]
    for step in starts:
        axes.axvline(step, color=GREY, linewidth=0.6)
    axes.set_xlabel("optimiser step; a line where an iterate begins")
    axes.grid(axis="y")
    add_legend(figure, axes)


def _mean_curve(runs: Sequence[RunResults], metric: str) -> tuple[np.ndarray, np.ndarray]:
    curves = [_curve(run, metric) for run in runs]
    shortest = min(len(x) for x, _ in curves)
    return curves[0][0][:shortest], np.mean([y[:shortest] for _, y in curves], axis=0)


def _curve(run: RunResults, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of one metric over all iterates, averaged in bins where there are many."""
    starts, x, y = _starts(run), [], []
    for start, manifest in zip(starts, run.trainings.values(), strict=True):
        records = [record for record in manifest["metrics"] if record.get(metric) is not None]
        for part in np.array_split(np.arange(len(records)), min(len(records), POINTS) or 1):
            if len(part):
                x.append(start + fmean(records[place]["step"] for place in part))
                y.append(fmean(records[place][metric] for place in part))
    return np.array(x), np.array(y)


def _starts(run: RunResults) -> list[float]:
    """The step before the first of each iterate."""
    steps = [manifest["metrics"][-1]["step"] if manifest["metrics"] else 0 for manifest in run.trainings.values()]
    return list(accumulate(steps[:-1], initial=0)) if steps else []
