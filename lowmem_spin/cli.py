"""The command line. Heavy imports are inside the commands, so that help is instant."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Self-play fine-tuning of language models on one consumer GPU.",
)
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that comes along.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a recipe value, e.g. game.alpha=0.9.")
]


@app.command()
def run(recipe: RecipeName = "quickstart", overrides: Overrides = None) -> None:
    """Play a game. Interrupting is safe: running again goes on where it stopped."""
    import signal

    from rich.console import Console

    from lowmem_spin.display import Display
    from lowmem_spin.recipe import find, load
    from lowmem_spin.runner import run as play

    display = Display(Console())
    signal.signal(signal.SIGINT, display.interrupt)
    path = find(recipe)
    try:
        play(load(path, overrides or []), path.parent, display)
    except KeyboardInterrupt:
        display.say("interrupted; what is finished is stored, run the same command again to go on", "yellow")
        raise typer.Exit(130) from None
    display.say(display.time_line())


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
    max_hours: Annotated[
        float | None, typer.Option(help="Stop then, with what is finished stored; run again to go on.")
    ] = None,
) -> None:
    """Play a recipe with some of its values varied. What the games have in common is computed once."""
    import math
    import signal
    import time

    from rich.console import Console

    from lowmem_spin import grid as points
    from lowmem_spin.display import Display, TimeIsUpError
    from lowmem_spin.recipe import InputError, find, load
    from lowmem_spin.sweep import Entry, Sweep, play, show

    if max_hours is not None and not (math.isfinite(max_hours) and max_hours > 0):
        raise InputError(f"--max-hours {max_hours}: cannot be used; give the hours to play, for instance 11.5")
    display = Display(Console())
    signal.signal(signal.SIGINT, display.interrupt)
    display.deadline = None if max_hours is None else time.perf_counter() + 3600 * max_hours
    path, varied = find(recipe), points.axes(alpha, history, grid or [])
    base = load(path, overrides or [])
    entries = [Entry(point) for point in points.points(path, overrides or [], varied, seeds)]
    game = Sweep(path.stem, points.sweep_folder(base), varied, list(range(base.seed, base.seed + seeds)), entries)
    display.say(f"{len(entries)} games, results in {game.folder}; interrupt whenever you like, run again to go on")
    try:
        play(game, path.parent, display)
    except TimeIsUpError:
        display.say(f"{max_hours:g} hours are over; what is finished is stored, run the same command again to go on", "yellow")
    except KeyboardInterrupt:
        display.say("interrupted; what is finished is stored, run the same command again to go on", "yellow")
        raise typer.Exit(130) from None
    show(game, display)
    display.say(display.time_line())
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

    import yaml

    from lowmem_spin.recipe import Recipe, find, load

    if schema:
        print(json.dumps(Recipe.model_json_schema(), indent=2))
    else:
        print(yaml.safe_dump(load(find(name), overrides or []).model_dump(mode="json"), sort_keys=False), end="")


@app.command()
def plan(
    recipe: RecipeName = "quickstart",
    alpha: Alphas = None,
    history: Histories = None,
    grid: Grid = None,
    seeds: Seeds = 1,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON and nothing else.")] = False,
) -> None:
    """Say what a recipe or a sweep of it would compute, what is stored already, and the memory it needs. Runs nothing."""
    import json

    from rich.console import Console

    from lowmem_spin import grid as points
    from lowmem_spin import planning
    from lowmem_spin.budget import read_shape
    from lowmem_spin.display import Display
    from lowmem_spin.recipe import find
    from lowmem_spin.report import plan as tables

    path, varied = find(recipe), points.axes(alpha, history, grid or [])
    asked = points.points(path, overrides or [], varied, seeds)
    made = planning.plan(asked, path.parent)
    if as_json:
        print(json.dumps(made.record(), indent=2))
        return
    display, first = Display(Console()), made.found.recipe
    display.console.print(tables.rows(made))
    display.console.print(tables.stages_left(made))
    if made.found.model.resolved:
        dtype = made.found.choices.where.dtype if made.found.choices.where.device == "cuda" else "bfloat16"
        shape = read_shape(made.found.model)
        display.console.print(tables.memory(first, shape, dtype))
        for line in tables.verdicts(first, shape, dtype):
            display.say(line)
    for note in made.notes:
        display.say(note, "yellow")
    left = [line.measured for line in made.lines if line.to_do]
    if left:
        display.say(f"Times are {'from `lowmem-spin bench` on this machine' if all(left) else 'computed, not measured here'}.")


@app.command()
def doctor(
    store: Annotated[str, typer.Option(help="The store: its disk is looked at, and verdicts are kept in it.")] = "runs/store",
    engine: Annotated[str | None, typer.Option(help="Test only this one: vllm or unsloth.")] = None,
) -> None:
    """Say what this machine has and which engines a game would use, and test each for real."""
    from rich.console import Console

    from lowmem_spin import doctor as examine
    from lowmem_spin.display import Display
    from lowmem_spin.recipe import InputError

    display, place, names = Display(Console()), Path(store), list(examine.ROLES.values())
    if engine is not None and engine not in names:
        raise InputError(f"--engine {engine!r}: no such engine to test; known here: {', '.join(names)}")
    for what, found in examine.facts(place):
        display.say(f"{what:<20}{found}")
    for tested, verdict in examine.self_tests([engine] if engine else names, place):
        display.say(f"{tested + ' self-test':<20}{verdict}")
    for role, choice in examine.choices(place):
        display.say(f"{role:<20}{choice}")


class Dtype(StrEnum):
    """What a merged model may be rounded to."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `lowmem-spin run` wrote.", show_default=False)]
Iterate = Annotated[
    str | None, typer.Option(metavar="K", help="An iterate's number, or base. Without it, the last one trained.")
]


@app.command()
def chat(
    run: RunFolder,
    iterate: Iterate = None,
    versus: Annotated[str | None, typer.Option(metavar="K", help="A second policy that answers beside it.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Instead of the recipe's; 0 is greedy.")] = None,
) -> None:
    """Talk to an iterate, or to two side by side. Reads lines from a pipe too; /reset forgets, /quit ends."""
    from rich.console import Console

    from lowmem_spin import runs
    from lowmem_spin.display import Display

    display = Display(Console(stderr=True))
    game = runs.read(run)
    store = runs.open_store(game, display.say)
    policies = [runs.policy(game, store, iterate)]
    policies += [runs.policy(game, store, versus, "--versus")] if versus is not None else []
    base = runs.model(game, store)
    with display.start_up(f"loading {base.location}"):
        from lowmem_spin.living.chat import lines, open_voices, talk

        voices = open_voices(game, policies, base, temperature)
    display.say(f"{' and '.join(policy.name for policy in policies)} of {run}; /reset forgets, /quit ends")
    talk(voices, lines(), Console(), display.say)


@app.command()
def export(
    run: RunFolder,
    to: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    iterate: Iterate = None,
    merge: Annotated[bool, typer.Option("--merge", help="One model instead of the adapter.")] = False,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the merged model; bfloat16 without it.", show_default=False)] = None,
) -> None:
    """Write an iterate to a folder that PEFT loads, or merged into one that transformers and vLLM load."""
    from rich.console import Console

    from lowmem_spin import runs
    from lowmem_spin.display import Display
    from lowmem_spin.recipe import InputError

    if dtype is not None and not merge:
        raise InputError(f"--dtype {dtype.value}: an adapter keeps its own; add --merge, or leave it out")
    display = Display(Console(stderr=True))
    game = runs.read(run)
    store = runs.open_store(game, display.say)
    policy, base = runs.policy(game, store, iterate), runs.model(game, store)
    with display.start_up(f"exporting {policy.name}"):
        from lowmem_spin.living.export import export as write

        write(game, policy, base, to, (dtype or Dtype.bfloat16).value if merge else None)
    display.say(f"{policy.name} of {run} is in {to}")


@app.command()
def serve(
    run: RunFolder,
    extra: Annotated[list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Further options of `vllm serve`.")] = None,
    host: Annotated[str, typer.Option(help="Address to answer on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    only_print: Annotated[bool, typer.Option("--print", help="Print the command and do not run it.")] = False,
) -> None:
    """Serve the base and every iterate with vLLM, each under its own model name, as an OpenAI-compatible API."""
    from rich.console import Console

    from lowmem_spin import runs
    from lowmem_spin.display import Display
    from lowmem_spin.living import serve as server

    display = Display(Console(stderr=True))
    game = runs.read(run)
    store = runs.open_store(game, display.say)
    if not only_print:
        server.check(host, port)
    with display.start_up("preparing the base"):
        environment, command = server.prepare(game, store, host, port, extra or [])
    print(server.line(environment, command), flush=True)
    if not only_print:
        server.start(environment, command)


@app.command()
def gc(
    store: Annotated[Path, typer.Option(help="Folder that the runs share.")] = Path("runs/store"),
    runs: Annotated[Path, typer.Option(help="Folder with every run that is to be kept, at any depth.")] = Path("runs"),
    delete: Annotated[bool, typer.Option("--delete", help="Free it; without this, nothing is touched.")] = False,
    aside: Annotated[bool, typer.Option("--aside", help="Free what was set aside as damaged, too.")] = False,
) -> None:
    """Show what in the store no run uses any more, and free it if asked to."""
    from rich.console import Console

    from lowmem_spin.display import Display
    from lowmem_spin.report import unused

    unused.show(store, runs, delete, aside, Display(Console()))


@app.command()
def bench(
    model: Annotated[str | None, typer.Option(help="gemma-2b, llama-8b or tiny; by default tiny without a GPU.")] = None,
    vram: Annotated[float | None, typer.Option(help="Gigabytes of the card to keep to.")] = None,
    pairs: Annotated[int, typer.Option(help="Rows to train on per iteration.")] = 128,
    prompt_length: Annotated[int, typer.Option(help="Tokens of every prompt.")] = 256,
    completion_length: Annotated[int, typer.Option(help="Tokens of every completion.")] = 256,
    versus: Annotated[str, typer.Option(metavar="RIVAL,...", help="Also do the same work with: trl, vllm.")] = "",
    store: Annotated[str, typer.Option(help="Folder that remembers the rates, and has room for the base.")] = "runs/store",
    overrides: Overrides = None,
) -> None:
    """Measure speed and memory of each stage on this machine with random weights. Downloads nothing."""
    from pathlib import Path

    from rich.console import Console

    from lowmem_spin.bench import Asked
    from lowmem_spin.bench import bench as measure

    names = [name.strip() for name in versus.split(",") if name.strip()]
    asked = Asked(model, vram, pairs, prompt_length, completion_length, names, overrides or [], Path(store))
    measure(asked, Console())


@app.command()
def report(folder: Annotated[str, typer.Argument(metavar="RUN_OR_SWEEP", help="The folder of a run or of a sweep.")]) -> None:
    """Write what a run or a sweep found as one HTML page, a Markdown table and pictures. Loads no model."""
    from pathlib import Path

    from rich.console import Console

    from lowmem_spin.display import Display
    from lowmem_spin.report.page import write_all
    from lowmem_spin.report.reading import read
    from lowmem_spin.report.results import Sweep
    from lowmem_spin.report.summary import sweep_table

    display = Display(Console())
    results = read(Path(folder))
    for line in results.missing:
        display.say(line, "yellow")
    paths = write_all(results)
    if isinstance(results, Sweep):
        display.console.print(sweep_table(results))
    display.say(f"page     {paths[0]}")
    display.say(f"table    {paths[1]}")
    display.say(f"pictures {results.folder}/report_*.png")


def main() -> None:
    """Run a command; bad input, and a disk that is full or closed, is one line and exit code 2."""
    import errno
    import sys

    from lowmem_spin.recipe import InputError, printable

    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        from lowmem_spin.store import DISK

        if errno.errorcode.get(error.errno or 0) not in DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        remedy = "make room, or choose another output.store and output.dir; what is finished is kept, run again to go on"
        print(printable(f"error: cannot write: {where}{error.strerror}; {remedy}"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
