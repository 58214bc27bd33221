"""The command line. Heavy imports are inside the commands, so that help is instant."""

from pathlib import Path
from typing import Annotated

import typer

from lowmem_spin.cli.options import TrustCode, path_argument, path_option
from lowmem_spin.cli.policy_commands import app as living
from lowmem_spin.cli.recipe_commands import app as copying
from lowmem_spin.cli.run_commands import app as comparing

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
STORE = Path("runs/store")
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that comes along.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a recipe value, e.g. game.alpha=0.9.")
]


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


MaxHours = Annotated[float | None, typer.Option(help="Stop then, with what is finished stored; run again to go on.")]


@app.command()
def run(
    recipe: RecipeName = "quickstart",
    overrides: Overrides = None,
    replace: Replace = False,
    trust: TrustCode = False,
    max_hours: MaxHours = None,
) -> None:
    """Play a game. Interrupting is safe: running again goes on where it stopped."""
    import signal

    from rich.console import Console

    from lowmem_spin.cli.play import run as play
    from lowmem_spin.common.display import Display, TimeIsUpError
    from lowmem_spin.config.load import find_recipe, load_recipe
    from lowmem_spin.engines.machine import memory_gauge

    display = Display(Console(), memory_gauge())
    signal.signal(signal.SIGINT, display.interrupt)
    display.stop_after(max_hours)
    path = find_recipe(recipe)
    try:
        play(load_recipe(path, overrides or []), path.parent, display, replace, trust)
    except TimeIsUpError:
        display.log(f"{max_hours:g} hours are over; what is finished is stored, run the same command again to go on", "yellow")
    except KeyboardInterrupt:
        display.log("interrupted; what is finished is stored, run the same command again to go on", "yellow")
        raise typer.Exit(130) from None
    display.log(display.time_line())


Alphas = Annotated[str | None, typer.Option("--alpha", metavar="A,B,...", help="Values of game.alpha.")]
Histories = Annotated[str | None, typer.Option("--history", metavar="H,I,...", help="Values of game.history, inf among them.")]
Grid = Annotated[list[str] | None, typer.Option(metavar="FIELD=V,W", help="Values of any other field; again for more.")]
Seeds = Annotated[int, typer.Option(help="Games per combination, each with a seed of its own.")]


@app.command()
def sweep(
    recipe: RecipeName = "quickstart",
    alpha: Alphas = None,
    history: Histories = None,
    grid: Grid = None,
    seeds: Seeds = 1,
    overrides: Overrides = None,
    replace: Replace = False,
    trust: TrustCode = False,
    max_hours: MaxHours = None,
) -> None:
    """Play a recipe with some of its values varied. What the games have in common is computed once."""
    import signal

    from rich.console import Console

    from lowmem_spin.cli.play import sweep as play
    from lowmem_spin.cli.results import show_sweep
    from lowmem_spin.common.display import Display, TimeIsUpError
    from lowmem_spin.config import grid as points
    from lowmem_spin.config.load import find_recipe
    from lowmem_spin.engines.machine import memory_gauge
    from lowmem_spin.runner.sweep import Entry, Sweep

    display = Display(Console(), memory_gauge())
    signal.signal(signal.SIGINT, display.interrupt)
    display.stop_after(max_hours)
    path = find_recipe(recipe)
    varied = points.sweep_axes(path, alpha, history, grid or [])
    base = points.first_recipe(path, overrides or [])
    entries = [Entry(point) for point in points.sweep_points(path, overrides or [], varied, seeds)]
    game = Sweep(path.stem, points.sweep_folder(base), varied, list(range(base.seed, base.seed + seeds)), entries)
    display.log(f"{len(entries)} games, results in {game.folder}; interrupt whenever you like, run again to go on")
    try:
        play(game, path.parent, display, replace, trust)
    except TimeIsUpError:
        display.log(f"{max_hours:g} hours are over; what is finished is stored, run the same command again to go on", "yellow")
    except KeyboardInterrupt:
        display.log("interrupted; what is finished is stored, run the same command again to go on", "yellow")
        raise typer.Exit(130) from None
    show_sweep(game, display)
    display.log(display.time_line())
    if any(entry.status == "failed" for entry in entries):
        raise typer.Exit(1)


@app.command()
def recipe(
    name: RecipeName = "quickstart",
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of all fields, for editors.")] = False,
) -> None:
    """Check a recipe and print it with every default filled in."""
    import json

    from lowmem_spin.config.load import find_recipe, load_recipe
    from lowmem_spin.config.recipe import Recipe
    from lowmem_spin.config.yaml_text import write_yaml

    if schema:
        print(json.dumps(Recipe.model_json_schema(), indent=2))
    else:
        print(write_yaml(load_recipe(find_recipe(name), overrides or []).model_dump(mode="json"), sort_keys=False), end="")


@app.command()
def plan(
    recipe: RecipeName = "quickstart",
    alpha: Alphas = None,
    history: Histories = None,
    grid: Grid = None,
    seeds: Seeds = 1,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option(help="Plan for this card instead: 4090, 3090, T4, A100, H100 or H200.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON and nothing else.")] = False,
) -> None:
    """Say what a recipe or a sweep of it would compute, what is stored already, and the memory it needs. Runs nothing."""
    from rich.console import Console

    from lowmem_spin.cli import plan as tables
    from lowmem_spin.common.display import Display
    from lowmem_spin.common.files import json_text
    from lowmem_spin.config import grid as points
    from lowmem_spin.config.load import find_recipe
    from lowmem_spin.engines.memory import planned_shape
    from lowmem_spin.runner.planning import plan as planning
    from lowmem_spin.runner.planning.calibration import check_gpu

    if gpu is not None:
        check_gpu(gpu)
    path = find_recipe(recipe)
    varied = points.sweep_axes(path, alpha, history, grid or [])
    asked = points.planned_points(path, overrides or [], varied, seeds)
    made = planning.plan(asked, path.parent, gpu)
    if as_json:
        print(json_text(made.record(), indent=2))
        return
    display, first = Display(Console()), made.found.recipe
    display.console.print(tables.rows(made))
    display.console.print(tables.stages_left(made))
    if (shape := planned_shape(made.found.model)) is not None:
        dtype = made.found.choices.machine.dtype if made.found.choices.machine.device == "cuda" else "bfloat16"
        display.console.print(tables.memory(first, shape, dtype))
        for line in tables.verdicts(first, shape, dtype):
            display.log(line)
    for note in made.notes:
        display.log(note, "yellow")
    left = [line.measured for line in made.lines if line.to_do]
    if left:
        display.log(f"Times are {'from `lowmem-spin bench` on this machine' if all(left) else 'computed, not measured here'}.")


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Say first whether this one can be played.")] = None,
    store: Annotated[Path, path_option(help="The store: its disk is looked at, and verdicts are kept in it.")] = STORE,
    engine: Annotated[str | None, typer.Option(help="Test only this one: vllm or unsloth.")] = None,
    overrides: Overrides = None,
) -> None:
    """Say what this machine has and which engines a game would use, and test each for real."""
    from rich.console import Console

    from lowmem_spin.common.display import Display
    from lowmem_spin.common.errors import InputError
    from lowmem_spin.engines import doctor as examine

    display, place, names = Display(Console()), store, list(examine.self_tested())
    if engine is not None and engine not in names:
        raise InputError(f"--engine {engine!r}: no such engine to test; known here: {', '.join(names)}")
    if recipe is not None:
        from lowmem_spin.config import grid as points
        from lowmem_spin.config.load import find_recipe
        from lowmem_spin.runner.planning.plan import plan as planned

        path = find_recipe(recipe)
        made = planned(points.planned_points(path, overrides or [], {}, 1), path.parent)
        display.log(f"{'recipe':<20}{path.stem}: model, tokenizer and adapter belong together")
        for note in made.notes:
            display.log(note, "yellow")
    for what, found in examine.machine_facts(place):
        display.log(f"{what:<20}{found}")
    for tested, verdict in examine.self_tests([engine] if engine else names, place):
        display.log(f"{tested + ' self-test':<20}{verdict}")
    for role, choice in examine.engine_choices(place):
        display.log(f"{role:<20}{choice}")


@app.command()
def bench(
    model: Annotated[str | None, typer.Option(help="gemma-2b, llama-8b, smollm2-135m or tiny; without a GPU tiny.")] = None,
    vram: Annotated[float | None, typer.Option(help="Gigabytes of the card to keep to.")] = None,
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
    """Measure speed and memory of each stage on this machine with random weights. Downloads nothing."""
    from rich.console import Console

    from lowmem_spin.cli.bench.bench import BenchRequest
    from lowmem_spin.cli.bench.bench import bench as measure

    rivals, layouts = ([name.strip() for name in names.split(",") if name.strip()] for names in (versus, layout))
    lengths = prompt_length, completion_length
    measure(BenchRequest(model, vram, pairs, *lengths, rivals, overrides or [], store, layouts), Console())


@app.command()
def report(folder: Annotated[Path, path_argument(metavar="RUN_OR_SWEEP", help="The folder of a run or of a sweep.")]) -> None:
    """Write what a run or a sweep found as one HTML page, a Markdown table and pictures. Loads no model."""
    from rich.console import Console

    from lowmem_spin.common.display import Display
    from lowmem_spin.report.load import read_results
    from lowmem_spin.report.page import write_all
    from lowmem_spin.report.summary import terminal_table

    display = Display(Console())
    results = read_results(folder)
    for line in results.missing:
        display.log(line, "yellow")
    paths = write_all(results)
    display.console.print(terminal_table(results))
    display.log(f"page     {paths[0]}")
    display.log(f"table    {paths[1]}")
    display.log(f"pictures {results.folder}/report_*.png")


app.add_typer(living)
app.add_typer(comparing)
app.add_typer(copying)


def main() -> None:
    """Run a command; bad input, and a disk that is full, closed or does not answer, is one line and exit code 2."""
    import errno
    import sys

    from lowmem_spin.common.errors import InputError, printable
    from lowmem_spin.common.streams import spell_out

    for stream in (sys.stdout, sys.stderr):
        spell_out(stream)
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (OSError, ValueError) as error:
        from lowmem_spin.common.files import DISK, DamagedError, UnreadableError

        if isinstance(error, DamagedError):
            where = "a file" if error.path is None else error.path
            print(printable(f"error: {where} {error}; move it away, and run again to go on"), file=sys.stderr)
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
        line = f"error: cannot {what}: {where}{error.strerror}; {remedy}; what is finished is kept, run again to go on"
        print(printable(line), file=sys.stderr)
        sys.exit(2)
