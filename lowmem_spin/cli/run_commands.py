"""The commands on the games that were played, all of them or several: runs, compare, remove. Heavy imports stay inside."""

from pathlib import Path
from typing import Annotated

import typer

from lowmem_spin.cli.options import Picture, path_argument

app = typer.Typer()


@app.command()
def runs(
    top: Annotated[Path, path_argument(metavar="FOLDER", help="Folder to search for runs, at any depth.")] = Path("runs"),
) -> None:
    """List runs and sweeps with state, best policy, size and age."""
    from rich.console import Console

    from lowmem_spin.report.overview import overview_grid, played_below

    found = played_below(top)
    if not found:
        print(f"no run and no sweep below {top}; `lowmem-spin run quickstart` plays one")
        return
    Console().print(overview_grid(found, top).table(f"Games in {top}"))


@app.command()
def compare(
    folders: Annotated[
        list[Path], path_argument(metavar="RUN_OR_SWEEP...", help="Two or more folders, measured on the same held-out rows.")
    ],
    picture: Picture = Path("comparison.png"),
) -> None:
    """Put runs side by side in one table and one picture. It says which differences are noise, and loads no model."""
    from rich.console import Console

    from lowmem_spin.common.display import Display
    from lowmem_spin.report.cautions import caution_lines
    from lowmem_spin.report.compare import side_by_side
    from lowmem_spin.report.page import write_picture
    from lowmem_spin.report.summary import sweep_verdict, terminal_table

    results, display = side_by_side(folders), Display(Console())
    for line in results.missing:
        display.log(line, "yellow")
    write_picture(results, picture)
    display.console.print(terminal_table(results))
    for line in sweep_verdict(results):
        display.log(line)
    for line in caution_lines(results):
        display.log(line, "yellow")
    display.log(f"picture {picture}, and as .svg")


@app.command()
def remove(
    folders: Annotated[list[Path], path_argument(metavar="RUN_OR_SWEEP...", help="Folders of runs or sweeps.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete what games wrote into these folders. Adapters and answers stay in the store until `gc` frees them."""
    from lowmem_spin.common.errors import InputError, printable
    from lowmem_spin.runner.removal import check_removable, remove_results

    for folder in folders:
        check_removable(folder)
        sweep = folder.resolve().parent.parent
        if folder.resolve().parent.name == "points" and (sweep / "sweep.json").is_file():
            raise InputError(
                f"{str(folder)!r} is a game of the sweep {str(sweep)!r}, which does not read without it; remove that"
            )
    if not yes:
        names = ", ".join(printable(str(folder)) for folder in folders)
        try:
            agreed = typer.confirm(f"Delete the results in {names}?")
        except typer.Abort:  # of an input that ended, behind the question
            print()
            agreed = False
        if not agreed:
            raise InputError("nothing is removed; --yes removes without asking")
    for folder in folders:
        left = remove_results(folder)
        kept = f"; not of a game, so kept: {', '.join(path.name for path in left)}" if left else ""
        print(printable(f"removed {folder}{kept}"))
    print("`lowmem-spin gc` shows what in the store no run uses any more")
