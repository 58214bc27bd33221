"""Pictures to share: a run's or a sweep's in one, each as an SVG and as a PNG for screens of twice the density."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure, FigureBase

from lowmem_spin.common.errors import printable
from lowmem_spin.common.files import write_atomically, write_text
from lowmem_spin.config.game_config import rules_in_words
from lowmem_spin.config.loss_choices import in_words
from lowmem_spin.report.answers import BeforeAfter, before_after, on_one_line
from lowmem_spin.report.intervals import over_seeds
from lowmem_spin.report.panels import run_panels, sweep_panels
from lowmem_spin.report.plots import TALL, Panel, laid_out, short
from lowmem_spin.report.results import RunResults, SweepResults, plain_value, recipe_field
from lowmem_spin.report.svg import drawing, standalone, style

PNG: dict[str, Any] = {"format": "png", "dpi": 192, "facecolor": "white", "metadata": {"Software": None}}
LINE, LETTER = 0.19, 0.0785  # inches: of a line of an answer, and of a letter of it


def played_on(results: RunResults | SweepResults) -> str:
    """What the games were played with, for a small line on every picture: base model, data, and this tool."""
    runs = [results] if isinstance(results, RunResults) else list(results.runs.values())
    fields = ("model.name_or_path", "data.path")
    found = [dict.fromkeys(_brief(recipe_field(run.recipe, name)) for run in runs) for name in fields]
    return printable(" · ".join([*(" and ".join(values) for values in found), "lowmem-spin"]))


def _brief(name: Any) -> str:
    """A name on the hub, or the end of a path."""
    return "/".join(str(name).rstrip("/").split("/")[-2:])


def save(figure: Figure, drawn: bytes, path: Path, title: str) -> list[Path]:
    """Write a figure to `path`, a PNG, and its drawing beside it as an SVG."""
    vector = path.with_suffix(".svg")
    write_atomically(path, partial(figure.savefig, **PNG))
    write_text(vector, standalone(drawn, printable(title)))
    return [path, vector]


def main_picture(results: RunResults | SweepResults, panels: Sequence[Panel], title: str) -> Figure:
    """The panels that say most, side by side, and below them one answer before and after."""
    if isinstance(results, RunResults):
        wanted = ["score", "radar", "kl"]
    else:
        wanted = [panel.name for panel in panels if panel.part == "Overview"]
    chosen = [panel for name in wanted for panel in panels if panel.name == name]
    answer = before_after(results)
    below = LINE * (len(answer.answers) + 3.2) if answer else 0.0
    tall, width = max(TALL, *(panel.height for panel in chosen)), sum(panel.width for panel in chosen)
    figure = Figure(figsize=(width, tall + below), layout="constrained")
    figure.suptitle(f"{on_one_line(title, int(6 * width))}\n", fontsize=12)
    figure.text(
        0.5,
        1 - 0.36 / (tall + below),
        short(f"{played_on(results)} · {intervals(results)}", int(13 * width)),
        ha="center",
        fontsize=8,
        alpha=0.7,
    )
    above: FigureBase = figure
    if answer:
        above, strip = figure.subfigures(2, 1, squeeze=False, height_ratios=[tall, below])[:, 0]
        _write_answer(strip, answer, width)
    widths = [panel.width for panel in chosen]
    for panel, part in zip(chosen, above.subfigures(1, len(chosen), squeeze=False, width_ratios=widths)[0], strict=True):
        panel.draw(part)
    return laid_out(figure)


def _write_answer(part: FigureBase, answer: BeforeAfter, width: float) -> None:
    """Prompt and answers, a line each."""
    axes = part.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    names = ["prompt", *(name for name, _ in answer.answers)]
    indent = min(0.4, (max(map(len, names)) + 2) * LETTER / width)
    letters = int((0.97 - indent) * width / LETTER)
    axes.set_ylim(len(names) + 0.3, -1.2)
    axes.text(
        0.01, -0.6, on_one_line(f"Before and after: {answer.why}", int(width / 0.066)), va="center", fontsize=8, alpha=0.7
    )
    for place, (name, text) in enumerate(zip(names, [answer.prompt, *(text for _, text in answer.answers)], strict=True)):
        axes.text(0.01, place + 0.4, on_one_line(name, int(indent * width / LETTER)), va="center", fontsize=8.5, weight="bold")
        axes.text(indent, place + 0.4, on_one_line(text, letters), va="center", fontsize=8.5, family="monospace")


def write_picture(results: RunResults | SweepResults, path: Path) -> list[Path]:
    """Scores, drift and categories side by side, and one answer before and after: as a PNG and, beside it, an SVG."""
    with style():
        panels = run_panels(results) if isinstance(results, RunResults) else sweep_panels(results)
        title = picture_title(results)
        figure = main_picture(results, panels.panels, title)
        return save(figure, drawing(figure), path, title)


def game_in_words(recipe: dict[str, Any]) -> str:
    """Algorithm, loss and what is most often varied."""
    names = ["game.iterations", "seed"]
    values = [f"{name.rpartition('.')[2]} {plain_value(recipe_field(recipe, name))}" for name in names]
    values = [*rules_in_words(recipe_field(recipe, "game") or {}), *values]
    loss = recipe_field(recipe, "game.loss")
    played = [str(recipe_field(recipe, "game.algorithm")), *([in_words(loss)] if isinstance(loss, dict) else [])]
    return ", ".join([*played, *values])


def picture_title(results: RunResults | SweepResults) -> str:
    """What was played."""
    if isinstance(results, RunResults):
        return f"{results.folder.resolve().name}: {game_in_words(results.recipe)}"
    if not results.file.axes or not all(results.file.axes.values()):
        return f"{results.file.recipe} of {len(results.finished)} games"
    axes = [f"{axis.rpartition('.')[2]} {', '.join(map(plain_value, values))}" for axis, values in results.file.axes.items()]
    return f"{results.file.recipe}: {'; '.join(axes)}"


def intervals(results: RunResults | SweepResults) -> str:
    """What bars and bands are, in words."""
    seeds = [len(c.runs) for c in results.finished] if isinstance(results, SweepResults) else [1]
    if max(seeds) == 1:
        return "95% intervals over held-out rows"
    counts = f"{min(seeds)}{f' to {max(seeds)}' if min(seeds) < max(seeds) else ''}"
    return "both values of two seeds" if counts == "2" else over_seeds(seeds).replace("over seeds", f"over {counts} seeds")
