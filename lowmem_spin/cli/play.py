"""Whole runs and sweeps: opened, checked, played, measured and shown."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from lowmem_spin.algorithm.stages import Stage
from lowmem_spin.cli.interrupts import ctrl_c
from lowmem_spin.cli.results import show_run, show_sweep
from lowmem_spin.common.display import Display, TimeIsUpError
from lowmem_spin.common.errors import InputError, install_extra, quoted
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.grid import Axes, SweepPoint, first_recipe, sweep_folder, sweep_points
from lowmem_spin.config.load import RecipeFile
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.machine import memory_gauge, visible_gpus
from lowmem_spin.evaluation import suites
from lowmem_spin.runner import sweep as sweeps
from lowmem_spin.runner.crew import Workers
from lowmem_spin.runner.health import Health
from lowmem_spin.runner.open import SharedResources, open_game
from lowmem_spin.runner.run import Player
from lowmem_spin.runner.worker_count import asked_count, check_gpus, on_gpu


@contextmanager
def watched(console: Console, max_hours: float | None, again: str) -> Iterator[Display]:
    """What a person watches a game by, and stops it with: that the hours are over, or Ctrl-C was pressed, is said.

    Args:
        console: where to.
        max_hours: when to stop; None is never. It is no error: whoever called goes on.
        again: how a person goes on, for these lines.

    Raises:
        InputError: these are no hours.
        KeyboardInterrupt: somebody pressed Ctrl-C; what is finished is stored.
    """
    display = Display(console, memory_gauge())
    display.stop_after(max_hours)
    try:
        with ctrl_c(display):
            yield display
    except TimeIsUpError:
        display.log(f"{max_hours:g} hours are over; what is finished is stored, {again} to continue", "yellow")
    except KeyboardInterrupt:
        display.log(f"interrupted; what is finished is stored, {again} to continue", "yellow")
        raise


def run(recipe: Recipe, recipe_dir: Path, display: Display, replace: bool = False, trust: Trust | None = None) -> list[Health]:
    """Play a game and measure it; what the store already has is not computed again.

    Another game's results in its folder are refused, unless they are to be replaced; and code that comes with recipe or model,
    unless it is trusted.
    """
    counted, shared = dict(display.seconds), SharedResources(trust=trust or Trust())
    game = open_game(recipe, recipe_dir, display, shared)
    with game.store.users.playing():
        player = Player(game, display, counted, suites.check_benchmarks(game), replace)
        try:
            player.play_all()
            try:
                suites.measure_games([game], display)
            finally:  # without a judge that has gone away, or what else a benchmark needs, the game is still played
                with display.timed("report"):
                    show_run(game.folder, display)
        finally:
            with display.timed("shut-down"):  # also of a game that was interrupted: this process may have more to do
                shared.engines.close()
            player.keep_time()
    return player.healths


def planned_sweep(
    path: RecipeFile, overrides: Sequence[str], varied: Axes, seeds: int, *, single: bool = False
) -> sweeps.SweepState:
    """The games of a sweep, none of them played yet; with `single` it may be one, whose stages several workers share.

    Raises:
        InputError: nothing is varied, or one of them is no recipe; the line says which.
    """
    if not varied and seeds == 1 and not single:
        raise InputError(
            f"sweep {path.stem}: there is nothing to vary; add --alpha, --history, --grid or --seeds, or play this one game "
            "with `lowmem-spin run`; --workers 2 shares one game's stages"
        )
    base = first_recipe(path, overrides)
    entries = [sweeps.Entry(point) for point in sweep_points(path, overrides, varied, seeds)]
    return sweeps.SweepState(path.stem, sweep_folder(base), varied, list(range(base.seed, base.seed + seeds)), entries)


@dataclass(frozen=True)
class WorkersAsked:
    """How many processes compute a sweep's steps, and where; see cli.main.sweep."""

    workers: str | None = None
    ray: str | None = None

    @property
    def several(self) -> bool:
        """Whether somebody wants more than this process."""
        return self.workers is not None or self.ray is not None

    def maker(self, recipe_dir: Path, trust: Trust, points: Sequence[SweepPoint]) -> sweeps.MakeWorkers | None:
        """What makes them; None for one, which is this process.

        Raises:
            InputError: this is no number, or there cannot be so many; one line.
        """
        if not self.several:
            return None
        count, with_gpus = asked_count(self.workers), on_gpu(points)
        gpus = visible_gpus() if with_gpus and self.ray is None else None
        if self.ray is None and (count or gpus or 1) == 1:
            return None
        if find_spec("ray") is None:
            named = f"--workers {self.workers}" if self.ray is None else f"--ray {quoted(self.ray)}"
            raise InputError(f"{named}: Ray is not installed; {install_extra('ray')}")
        if gpus is not None:
            check_gpus(count, gpus)

        def make(
            points: Sequence[SweepPoint], steps: Sequence[tuple[int, Stage, bool]], logs: Path, display: Display
        ) -> Workers:
            from lowmem_spin.runner.ray_workers import RayWorkers

            return RayWorkers(count, self.ray, points, recipe_dir, steps, logs, display, trust, with_gpus)

        return make


def sweep(
    points: sweeps.SweepState,
    recipe_dir: Path,
    display: Display,
    replace: bool = False,
    trust: Trust | None = None,
    asked: WorkersAsked | None = None,
) -> None:
    """Play the points of a sweep and measure those that are finished.

    Raises:
        TimeIsUpError: the display's deadline has passed; what is finished is stored.
    """
    shared, count = SharedResources(trust=trust or Trust()), len(points.entries)
    workers = (asked or WorkersAsked()).maker(recipe_dir, shared.trust, [entry.point for entry in points.entries])
    display.log(
        f"{count} game{'s' * (count > 1)}, results in {points.folder}; interrupt whenever you like, run again to continue"
    )
    try:
        games = sweeps.play_sweep(points, recipe_dir, display, shared, suites.check_benchmarks, replace, workers)
        try:
            suites.measure_games(games, display)
        except InputError:  # a judge that has gone away, or what else a benchmark needs: the games are played all the same
            show_sweep(points, display)
            raise
    finally:
        for store in shared.stores.values():
            store.users.end()
        shared.engines.close()
