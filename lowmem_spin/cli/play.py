"""Whole runs and sweeps: opened, checked, played, measured and shown."""

from pathlib import Path

from lowmem_spin.cli.results import show_run, show_sweep
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.evaluation import suites
from lowmem_spin.runner import sweep as sweeps
from lowmem_spin.runner.health import Health
from lowmem_spin.runner.open import SharedResources, open_game
from lowmem_spin.runner.run import Player


def run(recipe: Recipe, recipe_dir: Path, display: Display, replace: bool = False, trust: bool = False) -> list[Health]:
    """Play a game and measure it; what the store already has is not computed again.

    Another game's results in its folder are refused, unless they are to be replaced; and code that comes with recipe or model,
    unless it is trusted.
    """
    counted, shared = dict(display.seconds), SharedResources(trust=Trust(trust))
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
            with display.timed("shut-down"):
                shared.engines.close()
        finally:
            player.keep_time()
    return player.healths


def sweep(points: sweeps.Sweep, recipe_dir: Path, display: Display, replace: bool = False, trust: bool = False) -> None:
    """Play the points of a sweep and measure those that are finished.

    Raises:
        TimeIsUpError: the display's deadline has passed; what is finished is stored.
    """
    shared = SharedResources(trust=Trust(trust))
    try:
        games = sweeps.play_sweep(points, recipe_dir, display, shared, suites.check_benchmarks, replace)
        try:
            suites.measure_games(games, display)
        except InputError:  # a judge that has gone away, or what else a benchmark needs: the games are played all the same
            show_sweep(points, display)
            raise
    finally:
        for store in shared.stores.values():
            store.users.end()
        shared.engines.close()
