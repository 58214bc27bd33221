"""The command line. Heavy imports are inside the commands, so that help is instant."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowmem_spin.cli.measure_commands import app as measure_commands
from lowmem_spin.cli.options import (
    Alphas,
    GridAxes,
    Histories,
    Overrides,
    RecipeName,
    Seeds,
    TrustCode,
    path_argument,
    path_option,
)
from lowmem_spin.cli.policy_commands import app as policy_commands
from lowmem_spin.cli.recipe_commands import app as recipe_commands
from lowmem_spin.cli.run_commands import app as run_commands
from lowmem_spin.cli.usage import Commands

if TYPE_CHECKING:
    from lowmem_spin.common.display import Display

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # see loading.py; it comes in with transformers

# Rich would cut options.
app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
STORE = Path("runs/store")


def _print_version(asked: bool) -> None:
    if asked:
        from lowmem_spin import __version__

        print(f"lowmem-spin {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Self-play fine-tuning of language models on one consumer GPU."""


Replace = Annotated[bool, typer.Option("--replace", help="Replace the results of another game in the same folder.")]


@contextmanager
def _watched(max_hours: float | None) -> "Iterator[Display]":
    """What a person watches a game by; an interrupt ends the command."""
    from rich.console import Console

    from lowmem_spin.cli.play import watched

    try:
        with watched(Console(), max_hours, "run the same command again") as display:
            yield display
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


MaxHours = Annotated[
    float | None, typer.Option(help="Stop after this many hours; finished work is kept, run again to continue.")
]


@app.command()
def run(
    recipe: RecipeName = "quickstart",
    overrides: Overrides = None,
    replace: Replace = False,
    trust: TrustCode = False,
    max_hours: MaxHours = None,
) -> None:
    """Play a game. Interrupting is safe: run it again to continue."""
    from lowmem_spin.cli.play import run as play
    from lowmem_spin.common.trust import Trust
    from lowmem_spin.config.load import find_recipe, load_recipe

    with _watched(max_hours) as display:
        path = find_recipe(recipe)
        play(load_recipe(path, overrides or []), path.parent, display, replace, Trust(trust))
    display.log(display.time_line())


@app.command()
def sweep(
    recipe: RecipeName = "quickstart",
    alpha: Alphas = None,
    history: Histories = None,
    grid: GridAxes = None,
    seeds: Seeds = 1,
    overrides: Overrides = None,
    replace: Replace = False,
    trust: TrustCode = False,
    max_hours: MaxHours = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Processes that compute at once, by Ray; auto is one for each GPU.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address of a running Ray cluster; every node must see the store.")
    ] = None,
) -> None:
    """Play a recipe with some of its values varied. What the games have in common is computed once."""
    from lowmem_spin.cli.play import WorkersAsked, planned_sweep
    from lowmem_spin.cli.play import sweep as play
    from lowmem_spin.cli.results import show_sweep
    from lowmem_spin.common.trust import Trust
    from lowmem_spin.config.grid import sweep_axes
    from lowmem_spin.config.load import find_recipe

    path = find_recipe(recipe)
    asked = WorkersAsked(workers, ray)
    game = planned_sweep(path, overrides or [], sweep_axes(path, alpha, history, grid or []), seeds, single=asked.several)
    with _watched(max_hours) as display:
        play(game, path.parent, display, replace, Trust(trust), asked)
    show_sweep(game, display)
    display.log(display.time_line())
    if any(entry.status == "failed" for entry in game.entries):
        raise typer.Exit(1)


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Say first whether this one can be played.")] = None,
    store: Annotated[
        Path, path_option(help="The shared store; its free disk is checked, and self-test results are kept in it.")
    ] = STORE,
    engine: Annotated[str | None, typer.Option(help="Test only this one: vllm or unsloth.")] = None,
    overrides: Overrides = None,
    trust: TrustCode = False,
) -> None:
    """Say what this machine has and what a game would use. Each engine is tested for real."""
    from rich.console import Console

    from lowmem_spin.common.display import Display
    from lowmem_spin.common.errors import InputError
    from lowmem_spin.engines import doctor as examine

    display, place, names = Display(Console()), store, list(examine.self_tested())
    if engine is not None and engine not in names:
        raise InputError(f"--engine {engine!r}: no such engine to test; known here: {', '.join(names)}")
    if recipe is not None:
        from lowmem_spin.common.trust import Trust
        from lowmem_spin.config import grid as points
        from lowmem_spin.config.load import find_recipe
        from lowmem_spin.runner.planning.plan import plan as planned

        path = find_recipe(recipe)
        made = planned(points.planned_points(path, overrides or [], {}, 1), path.parent, trust=Trust(trust))
        display.log(f"{'recipe':<20}{made.total().answer(path.stem, made.missing)}")
        for note in made.notes:
            display.log(note, "yellow")
    for what, found in examine.machine_facts(place):
        display.log(f"{what:<20}{found}")
    display.log("training and answering with a tiny model, to test the engines: a minute without a GPU, some minutes with one")
    for tested, verdict in examine.self_tests([engine] if engine else names, place):
        display.log(f"{tested + ' self-test':<20}{verdict}")
    for role, choice in examine.engine_choices(place):
        display.log(f"{role:<20}{choice}")


@app.command()
def bench(
    model: Annotated[str | None, typer.Option(help="gemma-2b, llama-8b, smollm2-135m or tiny; without a GPU tiny.")] = None,
    vram: Annotated[float | None, typer.Option(help="GPU memory limit in GB.")] = None,
    pairs: Annotated[int, typer.Option(help="Rows to train on per iteration.")] = 128,
    prompt_length: Annotated[int, typer.Option(help="Tokens of every prompt.")] = 256,
    completion_length: Annotated[int, typer.Option(help="Tokens of every completion.")] = 256,
    versus: Annotated[str, typer.Option(metavar="RIVAL,...", help="Also do the same work with: trl, vllm.")] = "",
    layout: Annotated[
        str, typer.Option(metavar="LAYOUT,...", help="Also score and train in each of these: padded, packed.")
    ] = "",
    store: Annotated[Path, path_option(help="Folder that remembers the rates, and has room for the base.")] = STORE,
    overrides: Overrides = None,
) -> None:
    """Measure each stage's speed and memory on this machine. Weights are random; nothing is downloaded."""
    from rich.console import Console

    from lowmem_spin.cli.bench.bench import BenchRequest
    from lowmem_spin.cli.bench.bench import bench as measure

    rivals, layouts = ([name.strip() for name in names.split(",") if name.strip()] for names in (versus, layout))
    request = BenchRequest(
        model=model,
        vram=vram,
        pairs=pairs,
        prompt_length=prompt_length,
        completion_length=completion_length,
        versus=rivals,
        overrides=overrides or [],
        store=store,
        layouts=layouts,
    )
    measure(request, Console())


@app.command()
def report(folder: Annotated[Path, path_argument(metavar="RUN_OR_SWEEP", help="The folder of a run or of a sweep.")]) -> None:
    """Write results as an HTML page, a Markdown table and pictures. Loads no model."""
    from rich.console import Console

    from lowmem_spin.common.display import Display
    from lowmem_spin.report.cautions import caution_lines
    from lowmem_spin.report.load import read_results
    from lowmem_spin.report.page import write_all
    from lowmem_spin.report.summary import terminal_table

    display = Display(Console())
    results = read_results(folder, so_far=True)
    for line in results.missing:
        display.log(line, "yellow")
    paths = write_all(results)
    display.console.print(terminal_table(results))
    for line in caution_lines(results):
        display.log(line, "yellow")
    display.log(f"page     {paths[0]}")
    display.log(f"table    {paths[1]}")
    display.log(f"pictures {results.folder}/report_*.png, and as .svg")


app.add_typer(measure_commands)
app.add_typer(policy_commands)
app.add_typer(run_commands)
app.add_typer(recipe_commands)


def _check_settings(words: list[str]) -> None:
    """Refuse a setting without the option that it belongs to: `run quickstart game.alpha=0.5`.

    Raises:
        InputError: one line, with that option.
    """
    for before, word in pairwise(words):
        name, equals, _ = word.partition("=")
        if not equals or "." not in name or (before.startswith("-") and "=" not in before):
            continue
        from lowmem_spin.common.errors import InputError, quoted
        from lowmem_spin.config.field_names import field_names

        if name in field_names():
            raise InputError(f"{quoted(word)}: did you mean --set {word}?")


def main() -> None:
    """Run a command; bad input, and a disk that is full, closed or does not answer, is one line and exit code 2."""
    import errno
    import sys

    from lowmem_spin.common.errors import InputError, printable
    from lowmem_spin.common.streams import spell_out

    for stream in (sys.stdout, sys.stderr):
        spell_out(stream)
    try:
        _check_settings(sys.argv[1:])
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (OSError, ValueError) as error:
        from lowmem_spin.common.files import DISK, DamagedError, UnreadableError

        if isinstance(error, DamagedError):
            where = "a file" if error.path is None else error.path
            print(printable(f"error: {where} {error}; move it away, and run again to continue"), file=sys.stderr)
            sys.exit(2)
        if not isinstance(error, OSError):
            raise
        if isinstance(error, UnreadableError):
            what, remedy = "read", "see that its drive answers and lets it be read"
        elif errno.errorcode.get(error.errno or 0) in DISK:
            what, remedy = "write", "make room, or choose another output.store and output.dir"
        else:
            raise
        where = f"{error.filename}: " if error.filename else ""
        line = f"error: cannot {what}: {where}{error.strerror}; {remedy}; what is finished is kept, run again to continue"
        print(printable(line), file=sys.stderr)
        sys.exit(2)
