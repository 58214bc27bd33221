"""The steps of many games: in what order one worker takes them, and what each needs of the others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Average, Evaluate, Generate, Judge, Score, Stage, Train, TrainSampler
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.runner.planning.forecast import Ahead
from lowmem_spin.runner.schedule import Node, Schedule, own_needs

TOGETHER = 256  # rows from which on it pays that another worker opens its engines for a part of them
ORDER: list[type] = [Average, TrainSampler, Generate, Judge, Score, Train, Evaluate]


def numbered(stages: Sequence[Stage]) -> list[tuple[int, Stage]]:
    """Each stage with the iteration for which it is played: that of the next policy to be trained or measured.

    The bases and a warm start come before the first, plain fine-tuning after the last.
    """
    last = max(stage.iteration for stage in stages if isinstance(stage, Evaluate) and stage.iteration is not None)
    outside = {Role.UNQUANTIZED: -3, Role.BASE: -2, Role.WARM_START: -1, Role.BASELINE: last + 1}
    iteration, found = last, []
    for stage in reversed(stages):
        match stage:
            case Train(role=Role.ITERATE, iteration=int(t)) | Evaluate(role=Role.ITERATE, iteration=int(t)):
                iteration = t
            case Train(role=role) | Evaluate(role=role):
                iteration = outside[role]
        found.append((iteration, stage))
    return found[::-1]


@dataclass(frozen=True)
class Step:
    """One stage of one game. An evaluation is two: its samples first, then what is made of them."""

    game: int
    stage: Stage
    samples_only: bool = False


def in_step(games: Sequence[Sequence[tuple[int, Stage]]], engines: Sequence[str]) -> list[Step]:
    """All stages of all games, every game's own order kept: by iteration, then by what is done, then by engines.

    So the generator answers for all games before the learner scores for all of them, and games whose engines are
    opened alike (`engines`, one name for each game) come one after the other.
    """
    ranked: list[tuple[tuple[int, int, str, int, int], Step]] = []
    for number, stages in enumerate(games):
        for place, (iteration, stage) in enumerate(stages):
            rank = ORDER.index(type(stage))
            if isinstance(stage, Evaluate):
                ranked.append(((iteration, rank, engines[number], number, place), Step(number, stage, samples_only=True)))
                rank += 1
            ranked.append(((iteration, rank, engines[number], number, place), Step(number, stage)))
    return [step for _, step in sorted(ranked, key=lambda entry: entry[0])]


def places_of(steps: Sequence[Step], games: int) -> list[list[tuple[int, Stage]]]:
    """Of each game (place among the steps of all games, stage), in order."""
    found: list[list[tuple[int, Stage]]] = [[] for _ in range(games)]
    for place, step in enumerate(steps):
        found[step.game].append((place, step.stage))
    return found


def scheduled(recipes: Sequence[Recipe], engines: Sequence[str], steps: Sequence[Step], ahead: Sequence[Ahead]) -> Schedule:
    """The steps as workers take them: each needs those of its own game, and whoever makes what it asks for too.

    Args:
        recipes: of each game.
        engines: what each game's engines are opened with, in a word.
        steps: of all games, in the order of one worker.
        ahead: what each of them makes.
    """
    found: dict[int, Node] = {}
    for recipe, opened, places in zip(recipes, engines, places_of(steps, len(recipes)), strict=True):
        stops = any(bound is not None for bound in recipe.game.stop_when.model_dump().values())
        for (place, stage), node in zip(places, own_needs(places, stops), strict=True):
            opens = f"{opened} {getattr(stage, 'policy', '')}"
            found[place] = replace(node, needs=node.needs | ahead[place].after, opens=opens)
    made = {place for place, step in enumerate(ahead) if not step.makes}
    return Schedule([found[place] for place in range(len(steps))], made)


def shared_rows(ahead: Sequence[Ahead]) -> dict[int, int]:
    """Rows of the steps that several workers may compute together: of what is answered and scored, not trained or judged."""
    rows = {place: sum(step.rows.values()) for place, step in enumerate(ahead)}
    kinds = [{kind for kind, count in step.rows.items() if count} for step in ahead]
    return {place: count for place, count in rows.items() if count >= TOGETHER and kinds[place] <= {"generate", "score"}}
