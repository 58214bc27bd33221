"""Play recipes exactly on a few answers and show where they lead."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowmem_spin.algorithm.exact import Space, lengthened, play_exactly, six_answers
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
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

    Those that are judged aim at something else than those that learn from the data, and have a table and a picture of their
    own. Of several, those that exact play cannot handle are left out.

    Raises:
        InputError: a recipe, or each of several, has what exact play does not.
    """
    space, games = six_answers(), dict[bool, list[ExactGame]]()
    left_out: list[str] = []
    for point in points:
        judged = point.recipe.game.algorithm == "sppo"
        try:
            games.setdefault(judged, []).append(played(point, iterations, space, judged))
        except InputError as error:
            if len(left_out) + 1 == len(points):
                raise
            left_out.append(f"left out: {_name(point)}: {str(error).partition('; ')[0]}")
    display.log("exact play on six made-up answers")
    drawn = []
    for judged, alike in games.items():
        if not alike:
            continue
        display.console.print(theory_table(alike, AIMS[judged]))
        for game in alike:
            display.log(f"{game.name}: {game.verdict}")
        drawn.append(picture.with_stem(f"{picture.stem}_judged") if drawn else picture)
        draw_theory(alike, AIMS[judged], drawn[-1])
    display.log(
        "Every training ends in its minimum here; a real one stops long before, which keeps a small beta from oscillating."
    )
    for line in left_out:
        display.log(line, "yellow")
    for one in drawn:
        display.log(f"picture  {one}, and as .svg")


def _name(point: SweepPoint) -> str:
    """By what is varied."""
    varied = [f"{field.rpartition('.')[2]} {plain(value)}" for field, value in point.values.items() if field != "seed"]
    return ", ".join(varied).removeprefix("variant ") or "the recipe"


def played(point: SweepPoint, iterations: int, space: Space, judged: bool) -> ExactGame:
    """One point's game, named by what is varied."""
    logps = np.stack([table.numpy() for table in play_exactly(lengthened(point.recipe, iterations), space)])
    policies, data, base = np.exp(logps), space.data.numpy(), space.base.numpy()
    wins, kl = (policies @ space.preferences.numpy().T).max(1), (np.exp(data) * (data - logps)).sum(1)
    drifts = (policies * (logps - base)).sum(1)
    remedy = next((REMEDIES[name] for name in point.recipe.game.loss.model_dump() if name in REMEDIES), "")
    return ExactGame(_name(point), iterations, policies, wins - 0.5 if judged else kl, drifts, remedy)
