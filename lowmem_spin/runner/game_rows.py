"""The rows of a game: which may be learned from, which are measured on, and which a draw takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lowmem_spin.algorithm.pair_sources import Draw
from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Stage, Train, TrainSampler
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.rows import Rows, fixed_sample, hold_out, shuffled, take
from lowmem_spin.runner.health import HeldOut


def split_rows(recipe: Recipe, train: Rows, held_rows: Rows | None = None) -> tuple[Sequence[int], HeldOut]:
    """(places that may be learned from, what policies are measured on). `held` are held-out rows of their own."""
    if held_rows is None:
        health, pool = hold_out(train.ids, recipe.evaluation.health_prompts)
        rows, every = train.only(health), list(range(len(health)))
        return pool, HeldOut(rows, health, rows.answered(every), every, exact_match=False)
    health = fixed_sample(held_rows.ids, recipe.evaluation.health_prompts)
    places = range(len(held_rows))
    scored, exact_match = held_rows.answered(places), recipe.evaluation.metric == "exact_match"
    return range(len(train)), HeldOut(held_rows, places, scored, health, exact_match)


def prompts_again(recipe: Recipe, stages: Sequence[Stage]) -> list[str]:
    """A line if the sets that prompts are shared out in are fewer than the iterations, so that prompts come again."""
    sets = recipe.data.prompt_sets
    if sets is None or sets >= recipe.game.iterations:
        return []
    draws = [stage.pairs.draw for stage in stages if isinstance(stage, Train) and stage.role is Role.ITERATE]
    prompts = sum(draw.prompts for draw in draws)
    again = prompts - len({index for draw in draws for index in range(draw.start, draw.start + draw.prompts)})
    return [f"data.prompt_sets: {sets}, so from iteration {sets} on prompts come again: {again:,} of {prompts:,}"]


@dataclass
class Orders:
    """The shuffled orders that draws are heads of; each is sorted once for all games of a sweep."""

    known: dict[tuple[str, int, int | None], list[int]] = field(default_factory=dict)

    def of(self, draw: Draw, rows: Rows, pool: Sequence[int]) -> list[int]:
        """Places of `rows`, those of `pool` shuffled."""
        name = (draw.data, draw.seed, draw.round)
        if name not in self.known:
            order = shuffled([rows.ids[position] for position in pool], draw.seed, draw.round)
            self.known[name] = [pool[position] for position in order]
        return self.known[name]


@dataclass(kw_only=True)
class GameRows:
    """Rows to learn from and rows to measure on."""

    train: Rows
    pool: Sequence[int]  # places of `train` that may be learned from
    held: HeldOut
    orders: Orders
    drawn: dict[Draw, list[int]] = field(default_factory=dict)

    @property
    def set_aside(self) -> int:
        """How many of `train` are not learned from."""
        return len(self.train) - len(self.pool)

    def positions(self, draw: Draw, field: str = "game.pairs") -> list[int]:
        """Places of `train`: the rows of a draw, in its order; `field` is the recipe's that asks for them.

        Raises:
            InputError: the pool has too few.
        """
        if draw not in self.drawn:
            self.drawn[draw] = take(self.orders.of(draw, self.train, self.pool), draw, field)
        return self.drawn[draw]


def asked_rows(stages: Sequence[Stage]) -> Iterator[tuple[Draw, str]]:
    """The rows that trainings learn from, each with the recipe's field that asks for them."""
    for stage in stages:
        if isinstance(stage, TrainSampler):
            yield stage.draw, "game.sampler.prompts"
        elif isinstance(stage, Train):
            yield stage.pairs.draw, "warm_start.rows" if stage.role is Role.WARM_START else "game.pairs"
