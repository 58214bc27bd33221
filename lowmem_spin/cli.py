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
