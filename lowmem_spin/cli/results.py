"""What a person sees when a run or a sweep is over: the table, the picture, and where everything is."""

from pathlib import Path
from typing import Any

from lowmem_spin.common.display import Display
from lowmem_spin.runner.run_folder import PICTURES
from lowmem_spin.runner.sweep import SweepState


def show_run(folder: Path, display: Display) -> None:
    """The table, the picture, and where everything is."""
    from lowmem_spin.report.cautions import caution_lines
    from lowmem_spin.report.load import read_run_results
    from lowmem_spin.report.summary import terminal_table

    results = read_run_results(folder)
    picture, page, vector = (folder / name for name in PICTURES)
    if not all(path.exists() for path in (picture, page, vector)):
        from lowmem_spin.report.page import write_page, write_picture

        write_picture(results, picture)
        write_page(results)
    display.console.print(terminal_table(results))
    for line in caution_lines(results):
        display.log(line, "yellow")
    display.log(f"picture  {picture}, and as .svg")
    display.log(f"report   {page}")
    last = len(results.played) - 2
    display.log(f"adapters {folder / 'iterates'}/{f'0..{last}' if last > 0 else last}")
    display.log(f"numbers  {folder / 'metrics.jsonl'}")


def show_sweep(sweep: SweepState, display: Display) -> None:
    """The table, the report, and what is left to do."""
    from lowmem_spin.report.cautions import caution_lines
    from lowmem_spin.report.load import read_sweep
    from lowmem_spin.report.page import write_all
    from lowmem_spin.report.summary import terminal_table

    states = [entry.status for entry in sweep.entries]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "waiting", "failed") if state in states)
    if "finished" in states:
        with display.timed("report"):
            results = read_sweep(sweep.folder)
            written = write_all(results)
        display.console.print(terminal_table(results))
        for line in caution_lines(results):
            display.log(line, "yellow")
        display.log("report   " + ", ".join(str(path) for path in written if path.suffix in (".html", ".md")))
        display.log(f"picture  {sweep.folder / 'report_sweep.png'}, others report_*.png, all as .svg too")
    display.log(f"games    {counts}, in {sweep.folder / 'points'}")


def show_arena(folder: Path, record: dict[str, Any], display: Display) -> None:
    """Strengths and wins, and where everything is."""
    from lowmem_spin.evaluation.arena import FILE
    from lowmem_spin.report.arena import grids
    from lowmem_spin.report.load import read_run_results
    from lowmem_spin.report.page import write_page

    with display.timed("report"):
        for grid, title in grids(record):
            display.console.print(grid.table(title))
        if (folder / "metrics.jsonl").is_file():  # else the game is not played to its end, and has no report yet
            display.log(f"report   {write_page(read_run_results(folder))}")
    display.log(f"numbers  {folder / FILE}")
    display.log(display.time_line())
