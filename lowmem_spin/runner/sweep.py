"""Plays many games in step: every stage of an iteration for all of them, so that engines switch seldom and work is shared."""

import errno
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from lowmem_spin.algorithm.stages import Stage, is_baseline
from lowmem_spin.common.checked import read_checked, write_checked
from lowmem_spin.common.display import Display, TimeIsUpError
from lowmem_spin.common.errors import InputError, printable
from lowmem_spin.common.files import DISK, DamagedError, UnreadableError, write_text
from lowmem_spin.common.trust import UntrustedError
from lowmem_spin.config.grid import Axes, SweepPoint
from lowmem_spin.runner.claim import LOGS, check_folder, check_sweep_folder
from lowmem_spin.runner.crew import Crew, Workers
from lowmem_spin.runner.needless import needless
from lowmem_spin.runner.open import OpenGame, SharedResources, open_game
from lowmem_spin.runner.planning.forecast import Ahead, steps_ahead
from lowmem_spin.runner.record import is_recorded
from lowmem_spin.runner.run import Player
from lowmem_spin.runner.steps import Step, in_step, numbered, places_of, scheduled, shared_rows
from lowmem_spin.runner.worker_record import add_workers, forget_other_games

Check = Callable[[OpenGame], Mapping[str, Path]]
"""Refuses what could not be measured after a game; gives the files of its benchmarks, by field of `evaluation`."""
MakeWorkers = Callable[[Sequence[SweepPoint], Sequence[tuple[int, Stage, bool]], Path, Display], Workers]
"""Makes workers: of the points, each step as (point, stage, whether only samples), a folder for logs, and a display."""
ERROR = "error.txt"  # in a point's folder: how it failed


@dataclass
class Entry:
    """One point of the sweep and how far it is."""

    point: SweepPoint
    status: str = "waiting"  # finished, failed
    error: str | None = None
    player: Player | None = None
    stages: list[tuple[int, Stage]] = field(default_factory=list)  # each with its iteration
    places: list[tuple[int, Stage]] = field(default_factory=list)  # each with its place among the steps of all games


@dataclass
class SweepState:
    """A sweep's folder: sweep.json says how far each point is."""

    name: str
    folder: Path
    axes: Axes
    seeds: list[int]
    entries: list[Entry]

    def finished_before(self, display: Display) -> set[str]:
        """Names of the points that an earlier run has finished; a record that somebody has damaged names none."""
        path = self.folder / "sweep.json"
        try:
            return {point["name"] for point in read_checked(path)["points"] if point["status"] == "finished"}
        except FileNotFoundError:
            return set()
        except (DamagedError, KeyError, TypeError) as error:
            why = error if isinstance(error, DamagedError) else "does not read back"
            display.log(f"{path} {why}; written again", "yellow")
            return set()

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
        write_checked(
            self.folder / "sweep.json", {"recipe": self.name, "axes": self.axes, "seeds": self.seeds, "points": points}
        )


def play_sweep(
    sweep: SweepState,
    recipe_dir: Path,
    display: Display,
    shared: SharedResources,
    check: Check | None = None,
    replace: bool = False,
    workers: MakeWorkers | None = None,
) -> list[OpenGame]:
    """Play all points as far as they go; one that fails is reported and left, the others go on.

    Args:
        sweep: whose entries are played.
        recipe_dir: the recipe's folder, from which its paths are looked for.
        display: what a person watches.
        shared: has the engines, which stay open.
        check: refuses a game that could not be measured afterwards, before any is played.
        replace: whether other games' results in the points' folders may go.
        workers: makes those that compute the steps; None computes them here, one after the other.

    Returns:
        The games that are finished.

    Raises:
        InputError: no point can be opened, or a folder is another game's: nothing is touched.
        TimeIsUpError: the display's deadline has passed; what is finished is stored.
    """
    check_sweep_folder(sweep.folder)
    counted, finished = dict(display.seconds), sweep.finished_before(display)
    games: list[tuple[Entry, OpenGame]] = []
    for entry in sweep.entries:
        with _surviving(entry, shared, display):
            games.append((entry, open_game(entry.point.recipe, recipe_dir, display, shared)))
    for _, game in games:  # all of them, before the first folder is written to
        check_folder(game, replace)
    for entry, game in games:
        game.store.users.begin()
        with _surviving(entry, shared, display):
            _begin(entry, game, display, counted, finished, check, replace)
    opened = [entry for entry in sweep.entries if entry.player]
    if not opened:
        raise InputError(f"no game could be opened: {sweep.entries[0].error}")
    left = sorted(finished - {entry.point.name for entry in sweep.entries})
    if left:
        stay = f"they stay in {sweep.folder / 'points'}, and the table and the report are without them"
        display.log(f"not of this sweep, but of an earlier one in this folder: {', '.join(left)}; {stay}", "yellow")
    sweep.write()
    playing = [entry.player.game for entry in opened if entry.player]
    steps = in_step([entry.stages for entry in opened], [game.signature for game in playing])
    passed_over = needless(playing)
    for entry in opened:
        if entry.player:
            entry.player.needless = passed_over
    ahead = steps_ahead([(playing[step.game], step.stage, step.samples_only) for step in steps], passed_over)
    display.expect([step.rows for step in ahead])
    forget_other_games(sweep.folder, [step.stage for step in steps], playing[0].store)
    with _crew(workers, sweep, opened, playing, steps, ahead, display) as crew:
        for place, step in enumerate(steps):
            display.begin_step(place)
            entry = opened[step.game]
            if entry.status != "failed" and entry.player is not None:
                display.title = f"[{place + 1}/{len(steps)}] {entry.point.name} "
                display.name = f"{entry.point.name} "
                with _surviving(entry, shared, display, sweep):
                    if crew is not None:
                        crew.wait_for(place)
                    entry.player.play(step.stage, step.samples_only)
                    if step.stage is entry.stages[-1][1] and not step.samples_only:
                        entry.player.finish()
                        entry.status = "finished"
                        sweep.write()
                if crew is not None:
                    crew.settle(place, _needless(entry, place))
            if place + 1 < len(steps):
                _stop_if_late(display, crew)
    display.title = display.name = ""
    return [entry.player.game for entry in opened if entry.player and entry.status == "finished"]


def _needless(entry: Entry, passed: int) -> list[int]:
    """Steps that a game which has failed, or ended early, does not need any more."""
    player = entry.player
    if entry.status != "failed" and (player is None or player.stopped is None):
        return []
    later = [(place, stage) for place, stage in entry.places if place > passed]
    return [place for place, stage in later if entry.status == "failed" or not is_baseline(stage)]


def _stop_if_late(display: Display, crew: Crew | None) -> None:
    try:
        display.stop_if_late()
    except TimeIsUpError:
        if crew is not None:
            crew.finish()
        raise


@contextmanager
def _crew(
    make: MakeWorkers | None,
    sweep: SweepState,
    opened: Sequence[Entry],
    games: Sequence[OpenGame],
    steps: Sequence[Step],
    ahead: Sequence[Ahead],
    display: Display,
) -> Iterator[Crew | None]:
    """The workers, if there are to be any, for as long as they are needed."""
    if make is None:
        yield None
        return
    for entry, places in zip(opened, places_of(steps, len(opened)), strict=True):
        entry.places = places
    schedule = scheduled([game.recipe for game in games], [game.signature for game in games], steps, ahead)
    numbers = {id(entry): number for number, entry in enumerate(sweep.entries)}
    told = [(numbers[id(opened[step.game])], step.stage, step.samples_only) for step in steps]
    stages = [step.stage for step in steps]
    with display.start_up("starting workers"):
        workers = make([entry.point for entry in sweep.entries], told, sweep.folder / LOGS, display)
    crew = Crew(workers, schedule, display, shared_rows(ahead))
    display.workers = display.most_workers = workers.count
    began = perf_counter()
    said = "1 worker, its log" if workers.count == 1 else f"{workers.count} workers, their logs"
    display.log(f"{said} in {sweep.folder / LOGS}")
    try:
        yield crew
        display.log(crew.busy_line(perf_counter() - began))
    finally:
        display.workers = 1
        crew.close()
        add_workers(sweep.folder, stages, crew.computed, perf_counter() - began)


def _begin(
    entry: Entry,
    game: OpenGame,
    display: Display,
    counted: dict[str, float],
    finished: set[str],
    check: Check | None,
    replace: bool,
) -> None:
    """Name the point's stages. One that was finished as the very same game stays so while it is looked through again."""
    if entry.point.name in finished and is_recorded(game) and (game.folder / "metrics.jsonl").exists():
        entry.status = "finished"
    (game.folder / ERROR).unlink(missing_ok=True)
    entry.player = Player(game, display, counted, {} if check is None else check(game), replace)
    entry.stages = numbered(game.stages)


@contextmanager
def _surviving(entry: Entry, shared: SharedResources, display: Display, sweep: SweepState | None = None) -> Iterator[None]:
    """A point that fails is reported, with its traceback in its folder if no one is to blame, and the sweep goes on."""
    try:
        yield
    except Exception as error:  # whatever it is, hours of other points must not be lost to it
        disk = isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in DISK
        if disk or isinstance(error, UnreadableError | UntrustedError):
            raise  # a full or closed disk, or one that does not answer, is every point's, and trust is asked for beforehand
        entry.status, entry.error = "failed", printable(" ".join(str(error).split()) or type(error).__name__)
        if not isinstance(error, InputError):
            place = Path(str(entry.point.recipe.output.dir)) / ERROR
            write_text(place, "".join(traceback.format_exception(error)))
            entry.error += f"; the traceback is in {place}"
        display.log(f"{entry.point.name} failed: {entry.error}", "red")
        shared.engines.close()  # in whatever state it has left them
        if sweep is not None:
            sweep.write()
