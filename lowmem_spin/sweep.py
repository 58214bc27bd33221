"""Plays many games in step: every stage of an iteration for all of them, so that engines switch seldom and work is shared."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lowmem_spin.display import Display
from lowmem_spin.game import Evaluate, Generate, Score, Stage, Train
from lowmem_spin.grid import Axes, Point
from lowmem_spin.opening import Shared, open_game
from lowmem_spin.recipe import InputError, printable
from lowmem_spin.runner import Player
from lowmem_spin.store import write_json

ORDER: list[type] = [Generate, Score, Train, Evaluate]


@dataclass
class Entry:
    """One point of the sweep and how far it is."""

    point: Point
    status: str = "waiting"  # finished, failed
    error: str | None = None
    player: Player | None = None
    stages: list[tuple[int, Stage]] = field(default_factory=list)  # each with its iteration


@dataclass
class Sweep:
    """A sweep's folder: sweep.json says how far each point is."""

    name: str
    folder: Path
    axes: Axes
    seeds: list[int]
    entries: list[Entry]

    def write(self) -> None:
        points = [
            {
                "name": entry.point.name,
                "values": entry.point.values,
                "dir": f"points/{entry.point.name}",
                "status": entry.status,
                "error": entry.error,
            }
            for entry in self.entries
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "sweep.json", {"recipe": self.name, "axes": self.axes, "seeds": self.seeds, "points": points})


def numbered(stages: Sequence[Stage]) -> list[tuple[int, Stage]]:
    """Each stage with its iteration; what comes before the first is -1, and what only measures comes after the last."""
    iteration, found = -1, []
    for stage in stages:
        iteration += isinstance(stage, Generate)
        found.append((iteration, stage))
    last = iteration + 1
    return [(last if (isinstance(s, Train) and s.loss["name"] == "sft") or _of_sft(s) else t, s) for t, s in found]


def _of_sft(stage: Stage) -> bool:
    return isinstance(stage, Evaluate) and stage.name == "plain SFT"


def in_step(games: Sequence[Sequence[tuple[int, Stage]]]) -> list[tuple[int, Stage]]:
    """(number of the game, stage), every game's own order kept: by iteration, then by kind, then by game."""
    ranked = [
        (iteration, rank, number, place, stage)
        for number, stages in enumerate(games)
        for place, (iteration, stage) in enumerate(stages)
        for rank in [ORDER.index(type(stage)) if iteration <= _played(stages) else place]
    ]
    return [(number, stage) for *_, number, _, stage in sorted(ranked, key=lambda entry: entry[:4])]


def _played(stages: Sequence[tuple[int, Stage]]) -> int:
    """The last iteration of the game itself."""
    return max(iteration for iteration, stage in stages if isinstance(stage, Generate))


def play(sweep: Sweep, beside: Path, display: Display) -> None:
    """Play all points as far as they go; one that fails is reported and left, the others go on.

    Raises:
        TimeIsUpError: the display's deadline has passed; what is finished is stored.
    """
    shared, counted = Shared(), dict(display.seconds)
    sweep.write()
    for entry in sweep.entries:
        with _surviving(sweep, entry, shared, display):
            game = open_game(entry.point.recipe, beside, display, shared)
            entry.player, entry.stages = Player(game, display, counted), numbered(game.stages)
    opened = [entry for entry in sweep.entries if entry.player]
    if not opened:
        raise InputError(f"no point could be opened: {sweep.entries[0].error}")
    order = in_step([entry.stages for entry in opened])
    left = {entry.point.name: len(entry.stages) for entry in opened}
    for place, (number, stage) in enumerate(order):
        entry = opened[number]
        if entry.status == "failed" or entry.player is None:
            continue
        display.title = f"[{place + 1}/{len(order)}] {entry.point.name} "
        display.name = f"{entry.point.name} "
        with _surviving(sweep, entry, shared, display):
            entry.player.play(stage)
            left[entry.point.name] -= 1
            if not left[entry.point.name]:
                entry.player.finish()
                entry.status = "finished"
                sweep.write()
        display.stop_if_late()
    shared.engines.close()


@contextmanager
def _surviving(sweep: Sweep, entry: Entry, shared: Shared, display: Display) -> Iterator[None]:
    """A point that fails is reported, with its traceback in its folder if no one is to blame, and the sweep goes on."""
    try:
        yield
    except OSError:  # a full or closed disk is every point's
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, hours of other points must not be lost to it
        entry.status, entry.error = "failed", printable(" ".join(str(error).split()) or type(error).__name__)
        if not isinstance(error, InputError):
            place = Path(str(entry.point.recipe.output.dir)) / "error.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            entry.error += f"; the traceback is in {place}"
        display.say(f"{entry.point.name} failed: {entry.error}", "red")
        shared.engines.close()  # in whatever state it has left them
        sweep.write()


def show(sweep: Sweep, display: Display) -> None:
    """The table, the report, and what is left to do."""
    from lowmem_spin.report.page import write_all
    from lowmem_spin.report.reading import read
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
        display.say("report   " + ", ".join(str(path) for path in written if path.suffix in (".html", ".md")))
        display.say(f"pictures {sweep.folder / 'report_*.png'}")
    display.say(f"points   {counts}, in {sweep.folder / 'points'}")
