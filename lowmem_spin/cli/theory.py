"""Play recipes exactly on a few answers and show where they lead."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowmem_spin.algorithm.exact import Space, lengthened, play_exactly, six_answers
from lowmem_spin.common.display import Display
from lowmem_spin.config.grid import SweepPoint
from lowmem_spin.config.naming import plain
from lowmem_spin.report.theory import ExactGame, draw_theory, theory_table

AIMS = {False: "KL(data || policy), nats", True: "win-rate of the best answer against the policy, minus 1/2"}
REMEDIES = {  # by the field that says how strongly a loss holds to the reference
    "beta": "; try a larger game.loss.beta",
    "tau": "; try a larger game.loss.tau",
    "eta": "; try a smaller game.loss.eta",
}


def show_theory(points: Sequence[SweepPoint], iterations: int, picture: Path, display: Display) -> None:
    """Play every point for as many iterations; print the table, draw the picture.

    Raises:
        InputError: a recipe has what exact play does not.
    """
    space = six_answers()
    judged = points[0].recipe.game.algorithm == "sppo"
    games = [played(point, iterations, space, judged) for point in points]
    display.log("exact play on six made-up answers")
    display.console.print(theory_table(games, AIMS[judged]))
    for game in games:
        display.log(f"{game.name}: {game.verdict}")
    draw_theory(games, AIMS[judged], picture)
    display.log(
        "Every training ends in its minimum here; a real one stops long before, which keeps a small beta from oscillating."
    )
    display.log(f"picture  {picture}, and as .svg")


def played(point: SweepPoint, iterations: int, space: Space, judged: bool) -> ExactGame:
    """One point's game, named by what is varied."""
    varied = [f"{field.rpartition('.')[2]} {plain(value)}" for field, value in point.values.items() if field != "seed"]
    logps = np.stack([table.numpy() for table in play_exactly(lengthened(point.recipe, iterations), space)])
    policies, data, base = np.exp(logps), space.data.numpy(), space.base.numpy()
    wins, kl = (policies @ space.preferences.numpy().T).max(1), (np.exp(data) * (data - logps)).sum(1)
    drifts = (policies * (logps - base)).sum(1)
    remedy = next((REMEDIES[name] for name in point.recipe.game.loss.model_dump() if name in REMEDIES), "")
    return ExactGame(", ".join(varied) or "the recipe", iterations, policies, wins - 0.5 if judged else kl, drifts, remedy)
