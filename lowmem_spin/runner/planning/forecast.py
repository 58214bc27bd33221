"""What lies ahead of games that are about to be played: the rows of each of their steps, counted once, whoever asks first.

Rows that an earlier run has stored are not known to be there before they are looked for: these counts are the most that it is.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lowmem_spin.algorithm.stages import Average, Stage, Train, TrainSampler
from lowmem_spin.algorithm.touches import Gathered, HeldOutPlaces, Touch, touches
from lowmem_spin.runner.open import OpenGame

ROOM = 2**40  # between the numbers of the rows of two data files
KINDS = {"completions": "generate", "mixtures": "generate", "judgements": "judge", "logps": "score"}


class Ahead(NamedTuple):
    """One step of one game, as those before it leave it."""

    rows: dict[str, int]  # by kind of work as a display counts them, at most
    makes: bool  # whether there is anything that no earlier step makes
    after: frozenset[int]  # places of the earlier steps that make what it asks for too, or write where it writes


def steps_ahead(steps: Sequence[tuple[OpenGame, Stage, bool]], needless: Collection[int] = ()) -> list[Ahead]:
    """What each of the steps makes: (game, stage, whether only the samples of an evaluation), in the order of one worker.

    Those of `needless`, see needless.py, make nothing.
    """
    files: dict[str, int] = {}
    touched = ([] if id(stage) in needless else _touches(game, stage, files) for game, stage, _ in steps)
    return ahead_of((stage, of_step(some, only)) for (_, stage, only), some in zip(steps, touched, strict=True))


def of_step(touched: Iterable[Touch], samples_only: bool) -> list[Touch]:
    """Of what an evaluation touches the samples, if only those are a step's."""
    return [touch for touch in touched if not samples_only or touch.kind in ("completions", "mixtures")]


def ahead_of(steps: Iterable[tuple[Stage, Iterable[Touch]]]) -> list[Ahead]:
    """What each step makes, by what it touches."""
    seen: dict[tuple[str, str], Gathered] = {}
    writers: dict[tuple[str, str], int] = {}  # the last step so far that adds to a table, or to a part with a lock of its own
    found = []
    for step, (stage, touched) in enumerate(steps):
        rows: dict[str, int] = {}
        after: set[int] = set()
        makes = False
        for touch in touched:
            place, written = (touch.key, touch.side), (touch.key, touch.side.partition("/")[0])
            unknown = place not in seen
            fresh = seen.setdefault(place, Gathered()).add(touch.places)
            if written in writers:
                after.add(writers[written])
            if fresh or unknown:
                makes = True
                writers[written] = step
            if not isinstance(stage, Average):
                kind = _work(stage, touch)
                rows[kind] = rows.get(kind, 0) + fresh * _epochs(stage)
        found.append(Ahead(rows, makes, frozenset(after - {step})))
    return found


def _touches(game: OpenGame, stage: Stage, files: dict[str, int]) -> list[Touch]:
    """What a stage touches, the rows of every data file with numbers of their own."""
    names = game.resolved.data_files()
    train, held = (ROOM * files.setdefault(name, len(files)) for name in (names[0], names[-1]))
    measured = game.rows.held
    scored, health = (held + np.array(measured.places, np.int64)[some] for some in (measured.scored, measured.health))
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
