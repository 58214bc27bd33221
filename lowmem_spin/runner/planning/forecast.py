"""What lies ahead of games that are about to be played: the rows of each of their steps, counted once, whoever asks first.

Rows that an earlier run has stored are not known to be there before they are looked for: these counts are the most that it is.
"""

from collections.abc import Sequence

import numpy as np

from lowmem_spin.algorithm.stages import Average, Stage, Train, TrainSampler
from lowmem_spin.algorithm.touches import HeldOutPlaces, Places, Touch, touches
from lowmem_spin.runner.open import OpenGame

ROOM = 2**40  # between the numbers of the rows of two data files
KINDS = {"completions": "generate", "mixtures": "generate", "judgements": "judge", "logps": "score"}


def steps_ahead(steps: Sequence[tuple[OpenGame, Stage | None]]) -> list[dict[str, int]]:
    """Of each step, in their order, rows by kind of work as a display counts them; a step without a stage adds nothing."""
    seen: dict[tuple[str, str], Places] = {}
    files: dict[str, int] = {}
    found = []
    for game, stage in steps:
        rows: dict[str, int] = {}
        for touch in [] if stage is None or isinstance(stage, Average) else _touches(game, stage, files):
            place = (touch.key, touch.side)
            known = seen.get(place, touch.places[:0])
            kind, fresh = _work(stage, touch), len(np.setdiff1d(touch.places, known)) * _epochs(stage)
            seen[place] = np.union1d(known, touch.places)
            rows[kind] = rows.get(kind, 0) + fresh
        found.append(rows)
    return found


def _touches(game: OpenGame, stage: Stage, files: dict[str, int]) -> list[Touch]:
    """What a stage touches, the rows of every data file with numbers of their own."""
    names = game.resolved.data_files()
    train, held = (ROOM * files.setdefault(name, len(files)) for name in (names[0], names[-1]))
    measured = game.rows.held
    scored, health = (held + np.array(places, np.int64) for places in (measured.scored, measured.health))
    places = HeldOutPlaces(scored, health)
    return list(touches(stage, game.recipe, game.inputs, lambda draw: train + np.array(game.positions(draw), np.int64), places))


def _epochs(stage: Stage | None) -> int:
    match stage:
        case Train():
            return stage.settings["num_train_epochs"]
        case TrainSampler():
            return stage.passes
        case _:
            return 1


def _work(stage: Stage | None, touch: Touch) -> str:
    if touch.kind == "adapters":
        return "amortise" if isinstance(stage, TrainSampler) else "train"
    return KINDS[touch.kind]
