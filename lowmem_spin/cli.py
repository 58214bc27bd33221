"""The command line. Heavy imports are inside the commands, so that help is instant."""

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
def plan(recipe: RecipeName = "quickstart", overrides: Overrides = None) -> None:
    """Say how much memory each stage needs and on which cards it fits. Runs nothing."""
    from pathlib import Path

    from rich.console import Console

    from lowmem_spin.budget import read_shape
    from lowmem_spin.display import Display
    from lowmem_spin.recipe import find, load
    from lowmem_spin.report.plan import memory, verdicts
    from lowmem_spin.sources import Sources

    display = Display(Console())
    path = find(recipe)
    asked = load(path, overrides or [])
    sources = Sources(path.parent, Path(asked.output.store) / "sources.json")
    shape = read_shape(sources.model(asked.model.name_or_path, asked.model.revision))
    dtype = "bfloat16" if asked.model.dtype == "auto" else asked.model.dtype
    display.console.print(memory(asked, shape, dtype))
    for line in verdicts(asked, shape, dtype):
        display.say(line)
    display.say("By the documented model of budget.py; its allowances for a GPU are not measured yet.")


@app.command()
def doctor(store: Annotated[str, typer.Option(help="Folder whose disk to look at.")] = "runs/store") -> None:
    """Say what this machine has and which engines a game would use, and test each for real."""
    from pathlib import Path

    from rich.console import Console

    from lowmem_spin import doctor as examine
    from lowmem_spin.display import Display

    display = Display(Console())
    for what, found in [*examine.facts(Path(store)), *examine.choices()]:
        display.say(f"{what:<20}{found}")
    for engine, verdict in examine.self_tests():
        display.say(f"{engine + ' self-test':<20}{verdict}")


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


# What the disk can answer; anything else is a bug and keeps its traceback.
DISK = {"ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EEXIST", "ENOTDIR"}


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
        if errno.errorcode.get(error.errno or 0) not in DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        remedy = "make room, or choose another output.store and output.dir; what is finished is kept, run again to go on"
        print(printable(f"error: cannot write: {where}{error.strerror}; {remedy}"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
