"""The report as files: one HTML page with everything in it, a Markdown table, and the pictures as PNGs.

Model text and data are hostile: jinja2 escapes every value, and what would steer a terminal or reorder a line shows as its
escape. The page fetches nothing and runs nothing.
"""

import os
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from lowmem_spin.common.errors import printable
from lowmem_spin.common.files import write_text
from lowmem_spin.report import arena, benchmarks
from lowmem_spin.report.against import numeric_axis
from lowmem_spin.report.answers import before_after
from lowmem_spin.report.benchmarks import Block
from lowmem_spin.report.cautions import caution_lines
from lowmem_spin.report.grid import Grid, escape_markdown
from lowmem_spin.report.panels import Pictures, drawn_configurations, run_panels, sweep_panels
from lowmem_spin.report.pictures import game_in_words, main_picture, picture_title, played_on, save, write_picture
from lowmem_spin.report.plots import DRAWN, WIDTH
from lowmem_spin.report.results import RunResults, SweepResults, plain_value, recipe_field
from lowmem_spin.report.summary import duration, points_grid, run_grid, sweep_grid, sweep_verdict, verdict
from lowmem_spin.report.svg import drawing, inline, style
from lowmem_spin.runner.planning.counting import MEASURING
from lowmem_spin.runner.worker_record import WorkersFile

__all__ = ["write_all", "write_page", "write_picture"]
RUN_LEGEND = (
    "± is the half-width of a 95% interval over held-out rows, [a..b] are its ends where it would pass 0 or 100%; it says "
    "nothing about another seed. Gain: score minus the "
    "base's on the same rows. KL in nats per completion. As in data: own samples that equal the data's answer."
)
OF_UNQUANTIZED = " Gain over unquantized: score minus that of the base before nf4; the base's own is what nf4 costs."
SWEEP_LEGEND = (
    "The last iterate of each configuration. ± is the half-width of a 95% interval: over seeds, by Student's t, where there "
    "are several; else over held-out rows, which says nothing about another seed. [a..b] are its ends where it would pass 0 or "
    "100%. Of two seeds (a..b) are both values: they bound little, and noise is judged by 12.7 standard errors. "
    "Differences from the best are taken seed by seed where both have two or more, else row by row where these are known, and "
    "are within noise if their interval holds 0. The best is chosen by these same numbers, so a part of its lead may be luck. "
    "Below the configurations: the base and plain SFT, where all games have the same."
)


def write_page(results: RunResults | SweepResults) -> Path:
    """Write report.html beside the results."""
    with style():
        pictures = _pictures(results)
        return _write_page(results, pictures, [drawing(figure) for figure in _figures(results, pictures)])


def write_all(results: RunResults | SweepResults) -> list[Path]:
    """Write report.html, report.md, and each picture as PNG and SVG, beside the results; of a sweep one that sums it up too."""
    with style():
        pictures = _pictures(results)
        figures = _figures(results, pictures)
        drawings = [drawing(figure) for figure in figures]
        paths, names = [_write_page(results, pictures, drawings), results.folder / "report.md"], []
        if isinstance(results, SweepResults) and pictures.panels:
            names.append("sweep")
            title = picture_title(results)
            figure = main_picture(results, pictures.panels, title)
            paths += save(figure, drawing(figure), results.folder / "report_sweep.png", title)
        for panel, figure, drawn in zip(pictures.panels, figures, drawings, strict=True):
            names.append(panel.name)
            paths += save(figure, drawn, results.folder / f"report_{panel.name}.png", panel.caption)
    grids = [run_grid(results)] if isinstance(results, RunResults) else [sweep_grid(results), points_grid(results)]
    legend = _legend(results)
    shown = "\n".join(f"![{name}](report_{name}.png)" for name in names)
    tables = [part for block in _blocks(results) for part in [*block.markdown(), benchmarks.LEGEND, ""]]
    if isinstance(results, RunResults) and results.arena is not None:
        met = [
            part for grid, title in arena.grids(results.arena) for part in (f"## {escape_markdown(title)}", "", grid.markdown())
        ]
        tables += [*met, escape_markdown(arena.note(results.arena)), ""]
    warned = [f"- {escape_markdown(line)}\n" for line in caution_lines(results)]
    write_text(paths[1], "\n".join([*(grid.markdown() for grid in grids), *warned, legend, "", *tables, shown, ""]))
    return paths


def _legend(results: RunResults | SweepResults) -> str:
    if isinstance(results, RunResults):
        return RUN_LEGEND + OF_UNQUANTIZED * (results.unquantized is not None)
    return SWEEP_LEGEND + OF_UNQUANTIZED * any(run.unquantized is not None for run in results.runs.values())


def _pictures(results: RunResults | SweepResults) -> Pictures:
    if isinstance(results, SweepResults):
        return sweep_panels(results)
    met = [] if results.arena is None else [arena.panel(results.arena)]
    own = run_panels(results)
    return Pictures([*benchmarks.panels(_blocks(results)), *met, *own.panels], own.notes)


def _blocks(results: RunResults | SweepResults) -> list[Block]:
    return benchmarks.blocks(results.benchmarks) if isinstance(results, RunResults) else benchmarks.of_sweep(results)


def _figures(results: RunResults | SweepResults, pictures: Pictures) -> list[Figure]:
    of = played_on(results)
    return [panel.figure(of) for panel in pictures.panels]


def _write_page(results: RunResults | SweepResults, pictures: Pictures, drawings: Sequence[bytes]) -> Path:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown)
    template = environment.from_string(files("lowmem_spin.report").joinpath("page.html.j2").read_text(encoding="utf-8"))
    content = _run(results) if isinstance(results, RunResults) else _sweep(results)
    blocks = _blocks(results)
    parts: dict[str, list[dict[str, Any]]] = {"Benchmarks": []} if blocks else {}
    for panel, drawn in zip(pictures.panels, drawings, strict=True):
        element = Markup(inline(drawn, f"{panel.name}-", printable(panel.caption)))  # noqa: S704 ElementTree has escaped it
        parts.setdefault(panel.part, []).append({"svg": element, "caption": panel.caption, "wide": panel.width > WIDTH})
    path = results.folder / "report.html"
    content |= {"before": before_after(results), "notes": pictures.notes, "arena": _arena(results)}
    page = template.render(parts=list(parts.items()), blocks=blocks, bars=benchmarks.LEGEND, **content)
    write_text(path, page)
    return path


def _arena(results: RunResults | SweepResults) -> dict[str, Any] | None:
    if isinstance(results, SweepResults) or results.arena is None:
        return None
    return {"grids": arena.grids(results.arena), "note": arena.note(results.arena)}


def _shown(value: Any) -> Any:
    """Text as a person may see it: lines and tabs are kept, what else is unprintable shows as its escape."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "\n".join("\t".join(printable(part) for part in line.split("\t")) for line in value.split("\n"))


def _run(run: RunResults) -> dict[str, Any]:
    return {
        "title": run.folder.resolve().name,
        "subtitle": f"{game_in_words(run.recipe)}; {played_on(run)}",
        "verdict": verdict(run),
        "cautions": caution_lines(run),
        "results": run_grid(run),
        "legend": _legend(run),
        "points": None,
        "links": {},
        "missing": run.missing,
        "left_out": {},
        "samples": _samples([(policy.name, policy.samples) for policy in run.policies]),
        "samples_note": "The first held-out prompts, each with a sample of every policy, at temperature 1 from all tokens.",
        "provenance": _provenance([run], [recipe_field(run.recipe, "seed")]),
        "workers": None,
        "keys": [("", _keys(run))],
        "recipes": [("", run.recipe_text)],
    }


def _sweep(sweep: SweepResults) -> dict[str, Any]:
    runs = list(sweep.runs.values())
    firsts = [(c.label, next(iter(c.runs.values()))) for c in sweep.finished]
    links = {p.name: link for p in sweep.file.points if (link := _link(sweep.folder, p.dir)) is not None}
    shown, count = drawn_configurations(sweep), len(sweep.finished)
    limited = ["Scores", *(["Overview"] if numeric_axis(sweep) else [])] if len(shown) < count else []  # by name all have room
    return {
        "title": f"{sweep.folder.resolve().name}: sweep of {sweep.file.recipe}",
        "subtitle": "; ".join(
            [f"{axis}: {', '.join(map(plain_value, values))}" for axis, values in sweep.file.axes.items()]
            + [played_on(sweep)] * bool(runs)
        ),
        "verdict": sweep_verdict(sweep),
        "cautions": caution_lines(sweep),
        "results": sweep_grid(sweep),
        "legend": _legend(sweep),
        "points": points_grid(sweep),
        "states": ", ".join(f"{count} {state}" for state, count in Counter(p.status for p in sweep.file.points).items()),
        "whole": all(point.status == "finished" for point in sweep.file.points),  # else what failed is shown at once
        "links": links,
        "missing": sweep.missing,
        "left_out": dict.fromkeys(limited, f"Only the best {DRAWN} of {count} configurations are drawn."),
        "samples": _samples(
            [("base", runs[0].base.samples), *((label, run.last.samples) for label, run in firsts)] if runs else []
        ),
        "samples_note": "The first held-out prompts, answered by the last iterate of each configuration's first seed.",
        "provenance": _provenance(runs, sweep.file.seeds),
        "workers": None if sweep.workers is None else _workers(sweep.workers),
        "keys": [(name, _keys(run)) for name, run in sweep.runs.items()],
        "recipes": [(name, run.recipe_text) for name, run in sweep.runs.items()],
    }


def _link(folder: Path, point: str) -> str | None:
    """The point's own page relative to the sweep's, if it has one."""
    page = folder / point / "report.html"
    return "./" + quote(Path(os.path.relpath(page, folder)).as_posix()) if page.is_file() else None


def _samples(answers: Sequence[tuple[str, list[dict[str, str]]]]) -> list[dict[str, Any]]:
    """The same prompts side by side: each with the data's answer and every policy's."""
    if not answers:
        return []
    by_policy = [(name, {sample["prompt_id"]: sample for sample in samples}) for name, samples in answers]
    found = []
    for first in answers[0][1]:
        prompt = first["prompt_id"]
        rows = [("the data", first["data"])] if "data" in first else []
        rows += [(name, _answer(samples[prompt])) for name, samples in by_policy if prompt in samples]
        found.append({"prompt": first.get("prompt", f"prompt {prompt} (its text was not kept)"), "answers": rows})
    return found


def _answer(sample: dict[str, str]) -> str:
    return sample["answer"] + (" … (truncated)" if sample.get("finish_reason") == "length" else "")


def _workers(found: WorkersFile) -> dict[str, Any]:
    """Which worker did what, and how much of the time it was busy."""
    rows = []
    for one in found.workers:
        place = ", ".join(part for part in (one.machine, one.device) if part) or "not known"
        did = ", ".join(f"{count} {MEASURING.get(kind, kind)}" for kind, count in one.steps.items())
        share = f"{one.seconds / found.seconds:.0%}" if found.seconds else ""
        rows.append([str(one.worker), place, did, str(sum(one.steps.values())), duration([one.seconds]), share])
    count = len({one.worker for one in found.workers})
    said = f"{count} worker{'s' * (count != 1)} computed steps of these games in {duration([found.seconds])}, waits included."
    return {"said": said, "grid": Grid(["worker", "on", "did", "steps", "busy", "share"], rows, names=3)}


def _provenance(runs: Sequence[RunResults], seeds: Sequence[Any]) -> Grid:
    """Where and with what the results were made; what differs between a sweep's points is listed."""

    def every(values: Sequence[Any]) -> str:
        return ", ".join(dict.fromkeys(plain_value(value) for value in values if value is not None)) or "not recorded"

    seconds: dict[str, float] = {}
    for run in runs:
        for kind, value in run.seconds.items():
            seconds[kind] = seconds.get(kind, 0.0) + value
    parts = ", ".join(f"{kind} {duration([value])}" for kind, value in seconds.items())
    engines = [
        f"{role} {plain_value(recipe_field(run.record, f'inputs.{role}.engine'))}"
        for run in runs
        for role in ("generator", "learner")
    ]
    versions = {f"{name} {v}" for run in runs for name, v in run.record.get("versions", {}).items() if v is not None}
    rows = [
        ["model", every([recipe_field(run.recipe, "model.name_or_path") for run in runs])],
        ["revision", every([recipe_field(run.recipe, "model.revision") for run in runs])],
        ["quantization", every([recipe_field(run.recipe, "model.quantization") for run in runs])],
        ["dtype", every([recipe_field(run.recipe, "model.dtype") for run in runs])],
        ["device", every([run.record.get("device") for run in runs])],
        ["engines", every(engines)],
        ["data", every([recipe_field(run.recipe, "data.path") for run in runs])],
        ["seeds", every(seeds)],
        [
            "time",
            f"{duration(list(seconds.values()))}: {parts}; what the store already had is not counted"
            if seconds
            else "not recorded",
        ],
        ["versions", ", ".join(sorted(versions)) or "not recorded"],
    ]
    return Grid(["", ""], rows, 2)


def _keys(run: RunResults) -> Grid:
    """Every policy's key, and the hash of its weights where the store's manifest was found."""
    rows = [[name, key, run.trainings.get(name, {}).get("sha256", "")] for name, key in run.record["policies"].items()]
    return Grid(["policy", "key", "sha256 of the adapter"], rows, 3)
