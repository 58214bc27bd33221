"""Whole runs and sweeps: opened, checked, played, measured and shown."""

from pathlib import Path

from lowmem_spin.cli.results import show_run, show_sweep
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.evaluation import suites as evaluating
from lowmem_spin.runner import sweep as sweeps
from lowmem_spin.runner.health import Health
from lowmem_spin.runner.open import Shared, open_game
from lowmem_spin.runner.run import Player


def run(recipe: Recipe, beside: Path, display: Display) -> list[Health]:
    """Play a game and measure it; what the store already has is not computed again."""
    counted, shared = dict(display.seconds), Shared()
    game = open_game(recipe, beside, display, shared)
    player = Player(game, display, counted, evaluating.check(game))
    try:
        player.play_all()
        try:
            evaluating.at_the_end([game], display)
        finally:  # without a judge that has gone away, or what else a benchmark needs, the game is still played
            with display.timed("report"):
                show_run(game, player.healths, display)
        with display.timed("shut-down"):
            shared.engines.close()
    finally:
        player.keep_time()
    return player.healths


def sweep(points: sweeps.Sweep, beside: Path, display: Display) -> None:
    """Play the points of a sweep and measure those that are finished.

    Raises:
        TimeIsUpError: the display's deadline has passed; what is finished is stored.
    """
    shared = Shared()
    try:
        games = sweeps.play(points, beside, display, shared, evaluating.check)
        try:
            evaluating.at_the_end(games, display)
        except InputError:  # a judge that has gone away, or what else a benchmark needs: the games are played all the same
            show_sweep(points, display)
            raise
    finally:
        shared.engines.close()
