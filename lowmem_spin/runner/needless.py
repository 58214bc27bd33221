"""Which stages a game that goes on passes over: what only served trainings whose adapters are stored.

A stored adapter needs nothing of what it was made from. So a game that is finished reads none of the answers and log-probs
that it learned from, however many they are; what is missing or damaged among them is found, and made again, when a training
asks for it.
"""

from collections.abc import Sequence

from lowmem_spin.algorithm.stages import Generate, Judge, Score, Stage, Train
from lowmem_spin.runner.open import OpenGame


def needless(games: Sequence[OpenGame]) -> set[int]:
    """The id() of every stage of these games that nothing waits for; the adapters are verified for it."""
    found: set[int] = set()
    for game in games:
        trainings = [stage for stage in game.stages if isinstance(stage, Train) and stage.loss["name"] != "sft"]
        to_come = [stage.pairs for stage in trainings if game.store.adapter(stage.policy) is None]
        served = [stage for stage in game.stages if isinstance(stage, Generate | Judge | Score)]
        found |= {id(stage) for stage in served if stage.pairs not in to_come and not _summarised(stage)}
    return found


def _summarised(stage: Stage) -> bool:
    """Whether the results say how its answers were sampled, so that they are read in the end."""
    return isinstance(stage, Generate) and stage.pairs.sampling.mixture is not None
