"""What a person sees when a run or a sweep is over: the table, the picture, and where everything is."""

from pathlib import Path
from typing import Any

from lowmem_spin.common.display import Display
from lowmem_spin.config.choices import in_words
from lowmem_spin.report import final_table
from lowmem_spin.runner.health import Health
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.run import PICTURES
from lowmem_spin.runner.sweep import Sweep


def show_run(game: OpenGame, healths: list[Health], display: Display) -> None:
    """The table, the picture, and where everything is."""
    picture, page = (game.folder / name for name in PICTURES)
    if not (picture.exists() and page.exists()):
        from lowmem_spin.report.figures import draw
        from lowmem_spin.report.load import read
        from lowmem_spin.report.page import write_page

        g = game.recipe.game
        title = f"{g.algorithm}, alpha {g.alpha}, history {g.history}, {in_words(g.loss.model_dump())}"
        draw(healths, f"{game.folder.name}: {title}", picture)
        write_page(read(game.folder))
    display.console.print(final_table.results(healths))
    display.log(f"picture  {picture}")
    display.log(f"report   {page}")
    last = sum(health.name.startswith("iterate ") for health in healths) - 1
    display.log(f"adapters {game.folder / 'iterates'}/0..{last}")
    display.log(f"numbers  {game.folder / 'metrics.jsonl'}")


def show_sweep(sweep: Sweep, display: Display) -> None:
    """The table, the report, and what is left to do."""
    from lowmem_spin.report.load import read
    from lowmem_spin.report.page import write_all
    from lowmem_spin.report.results import Sweep as Results
    from lowmem_spin.report.summary import sweep_table

    states = [entry.status for entry in sweep.entries]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "waiting", "failed") if state in states)
    if "finished" in states:
        with display.timed("report"):
            results = read(sweep.folder)
            written = write_all(results)
        if isinstance(results, Results):
            display.console.print(sweep_table(results))
        display.log("report   " + ", ".join(str(path) for path in written if path.suffix in (".html", ".md")))
        display.log(f"pictures {sweep.folder / 'report_*.png'}")
    display.log(f"points   {counts}, in {sweep.folder / 'points'}")


def show_arena(folder: Path, record: dict[str, Any], display: Display) -> None:
    """Strengths and wins, and where everything is."""
    from lowmem_spin.evaluation.arena import FILE
    from lowmem_spin.report.arena import grids
    from lowmem_spin.report.load import read
    from lowmem_spin.report.page import write_page

    with display.timed("report"):
        for grid, title in grids(record):
            display.console.print(grid.table(title))
        if (folder / "metrics.jsonl").is_file():  # else the game is not played to its end, and has no report yet
            display.log(f"report   {write_page(read(folder))}")
    display.log(f"numbers  {folder / FILE}")
    display.log(display.time_line())
