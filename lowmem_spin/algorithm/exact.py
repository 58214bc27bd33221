"""A game played exactly: a few possible answers, every expectation a sum, every training brought to its minimum.

The stages are game.play's, on policies that are tables of log-probs (K,), in nats. It shows where an alpha, a history, a loss
and its strength lead, or that they lead nowhere, without a model. A real training stops long before its minimum, which is what
keeps games with a small beta from oscillating as they do here.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.losses import LOSSES, Sides
from lowmem_spin.algorithm.pair_sources import DatasetPairs, JudgedSamples, OpponentPairs
from lowmem_spin.algorithm.preferences import best_and_worst, compared, win_rates
from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Average, Evaluate, Inputs, Train, TrainSampler
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe

BASE = "base"
SMOOTH = ("dpo", "ipo", "ipo_length_normalized", "sppo")
MOST = 6  # samples of which every draw is taken
FAR = 300.0  # nats: a policy that gives an answer less than exp(-FAR) has left the game; the numbers end soon after
TOLERANCE = 1e-12  # nats


@dataclass(frozen=True, eq=False)
class Space:
    """What can be answered to the one prompt there is, and how likely that is."""

    data: Tensor  # log-probs of the data's answers, (K,)
    base: Tensor  # log-probs under the base, (K,)
    preferences: Tensor  # P[i, j]: how likely answer i is preferred to answer j, (K, K)


def six_answers() -> Space:
    """Six of which the data's likeliest is the base's least likely; what people prefer has a cycle (1 over 2 over 3 over 1)."""
    data, base = (
        torch.tensor(shares, dtype=torch.float64).log()
        for shares in ([0.40, 0.25, 0.15, 0.10, 0.06, 0.04], [0.05, 0.10, 0.15, 0.20, 0.20, 0.30])
    )
    preferences = torch.full((6, 6), 0.3, dtype=torch.float64).triu(1)
    preferences = (1 - preferences).triu(1) + preferences.T + 0.5 * torch.eye(6, dtype=torch.float64)
    preferences[0, 2], preferences[2, 0] = 0.3, 0.7
    return Space(data, base, preferences)


class TooFarError(Exception):
    """A training has no minimum within reach."""


@dataclass(frozen=True)
class _Pairs:
    """Every pair that a training may meet, and how often; all (rows,)."""

    weights: Tensor
    chosen: Tensor  # answers
    rejected: Tensor
    chosen_win_rates: Tensor
    rejected_win_rates: Tensor
    head_to_head: Tensor


def play_exactly(recipe: Recipe, space: Space) -> Iterator[Tensor]:
    """The base, then each iterate, (K,) log-probs; a training that leads too far ends the game early.

    Raises:
        InputError: the recipe has what exact play does not; one line.
    """
    _check(recipe)
    inputs = Inputs(BASE, "data", {}, {}, {"oracle": "exact"} if recipe.game.algorithm == "sppo" else None)
    tables = {BASE: space.base}
    for stage in play(recipe, inputs):
        if isinstance(stage, Average):
            tables[stage.policy] = _geometric([(w, tables[p]) for p, w in stage.policies.items()]).log_softmax(0)
        elif isinstance(stage, TrainSampler):
            tables[stage.policy] = _mixed(tables[stage.previous], tables[stage.base], stage.alpha)
        elif isinstance(stage, Train) and stage.role is not Role.BASELINE:
            try:
                tables[stage.policy] = _trained(stage, tables, space)
            except TooFarError:
                return
        elif isinstance(stage, Evaluate) and stage.role in (Role.BASE, Role.ITERATE):
            yield tables[stage.policy]


def _check(recipe: Recipe) -> None:
    loss, algorithm = recipe.game.loss.name, recipe.game.algorithm
    if loss not in SMOOTH:
        called = "a loss of your own, whose minimum it does not know" if loss == "function" else f"{loss}, which many minimise"
        raise InputError(f"game.loss.name: exact play cannot handle {called}; use {', '.join(SMOOTH)}: --set game.loss=dpo")
    if algorithm == "offline":
        raise InputError(
            "game.algorithm: exact play has no offline, whose pairs are the data's own; use alpha-spin or sppo: "
            "--set game.algorithm=alpha-spin"
        )
    if algorithm == "sppo" and recipe.game.samples > MOST:
        raise InputError(
            f"game.samples: {recipe.game.samples}, and exact play draws at most {MOST}, as it takes every draw there is: "
            f"--set game.samples={MOST}"
        )
    if recipe.game.opponents is not None:
        raise InputError(
            "game.opponents: exact play calls no functions of your own; leave yours out: --set game.opponents=null"
        )
    if not isinstance(recipe.game.reference, str):
        raise InputError(
            "game.reference: exact play calls no functions of your own; use a built-in one: --set game.reference=geometric"
        )


def _geometric(weighted: list[tuple[float, Tensor]]) -> Tensor:
    return torch.stack([weight * logps for weight, logps in weighted]).sum(0)


def _mixed(policy: Tensor, base: Tensor, alpha: float) -> Tensor:
    return _geometric([(alpha, policy), (1 - alpha, base)]).log_softmax(0)


def _trained(stage: Train, tables: dict[str, Tensor], space: Space) -> Tensor:
    """The policy with the smallest expected loss."""
    if stage.loss["name"] == "sft":
        return space.data
    reference = _reference(stage, tables)
    if isinstance(stage.pairs, OpponentPairs) and stage.loss["name"] == "dpo":
        return dpo_minimum(reference, space.data, _opponents(stage.pairs, tables), stage.loss["beta"])
    pairs = _pairs(stage, tables, space)
    penalty_reference = tables[stage.penalty_reference or BASE]
    options = {name: value for name, value in stage.loss.items() if name != "name"}
    ones = torch.ones_like(pairs.weights)

    def loss(logits: Tensor) -> Tensor:
        logps = logits.log_softmax(0)
        sides = Sides(
            chosen=logps[pairs.chosen],
            rejected=logps[pairs.rejected],
            ref_chosen=reference[pairs.chosen],
            ref_rejected=reference[pairs.rejected],
            chosen_lengths=ones,
            rejected_lengths=ones,
            chosen_win_rates=pairs.chosen_win_rates,
            rejected_win_rates=pairs.rejected_win_rates,
            head_to_head=pairs.head_to_head,
            base_chosen=penalty_reference[pairs.chosen],
            base_rejected=penalty_reference[pairs.rejected],
        )
        return (pairs.weights * LOSSES[stage.loss["name"]](sides, **options)).sum()

    return minimum(loss, tables[stage.init])


def _reference(stage: Train, tables: dict[str, Tensor]) -> Tensor:
    weighted = [(weight, tables[policy]) for policy, weight in stage.reference.items()]
    if stage.combine == "arithmetic":
        return torch.stack([math.log(weight) + logps for weight, logps in weighted]).logsumexp(0)
    together = _geometric(weighted)
    return together.log_softmax(0) if stage.normalise else together


def _pairs(stage: Train, tables: dict[str, Tensor], space: Space) -> _Pairs:
    if isinstance(stage.pairs, DatasetPairs):
        raise TypeError("pairs of the data have no opponent")
    if isinstance(stage.pairs, JudgedSamples):
        return _judged(stage.pairs, tables, space)
    size = len(space.data)
    chosen, rejected = torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size)
    weights = (space.data[chosen] + _opponents(stage.pairs, tables)[rejected]).exp()  # each as likely as both together
    ones = torch.ones_like(weights)
    return _Pairs(weights, chosen, rejected, ones, torch.zeros_like(weights), ones)


def _opponents(source: OpponentPairs, tables: dict[str, Tensor]) -> Tensor:
    """Log-probs of an opponent's answer."""
    answers = []
    for policy, weight in source.opponents.items():
        logps = _answers(source, policy, tables)
        answers.append(math.log(1 / len(source.opponents) if source.concatenate else weight) + logps)
    return torch.stack(answers).logsumexp(0)


def _answers(source: OpponentPairs | JudgedSamples, policy: str, tables: dict[str, Tensor]) -> Tensor:
    """Log-probs of what a policy answers: its own, or those of its mixture with the base."""
    mixture = source.sampling.mixture
    if mixture is None or not source.sampling.mixes(policy):
        return tables[policy]
    return _mixed(tables[policy], tables[mixture["base"]], mixture["alpha"])


def _judged(source: JudgedSamples, tables: dict[str, Tensor], space: Space) -> _Pairs:
    """The best against the worst of all that several samples can be."""
    drawn, pairs = _judged_draws(space, source.samples, source.win_rates)
    return replace(pairs, weights=_answers(source, source.policy, tables)[drawn].sum(1).exp())


@lru_cache(maxsize=1)
def _judged_draws(space: Space, samples: int, how: str) -> tuple[Tensor, _Pairs]:
    """Every draw of several answers in its order, which decides between equals, (draws, samples), and its pair."""
    preferences = space.preferences.numpy()
    drawn = list(product(range(len(preferences)), repeat=samples))
    contests = [preferences[np.ix_(answers, answers)] for answers in drawn]
    rates = [win_rates(contest, how) for contest in contests]
    ends = torch.tensor([best_and_worst(some) for some in rates])
    answers, level = torch.tensor(drawn), torch.tensor(np.stack(rates))
    chosen, rejected = (answers.gather(1, ends[:, place : place + 1])[:, 0] for place in (0, 1))
    best, worst = (level.gather(1, ends[:, place : place + 1])[:, 0] for place in (0, 1))
    beats = [compared(contest, how)[tuple(pair)] for contest, pair in zip(contests, ends.tolist(), strict=True)]
    return answers, _Pairs(torch.empty(0), chosen, rejected, best, worst, torch.tensor(beats))


def dpo_minimum(reference: Tensor, data: Tensor, opponents: Tensor, beta: float) -> Tensor:
    """reference * (data / opponents)^(1 / beta): the minimum of the logistic loss over pairs of the data's and the opponents'
    answers, exact also where that is flat.

    Raises:
        TooFarError: it gives some answer less than exp(-FAR).
    """
    found = (reference + (data - opponents) / beta).log_softmax(0)
    if found.min() < -FAR:
        raise TooFarError
    return found


def minimum(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Log-probs that minimise a loss of logits, by Newton's steps, damped until they go down (Levenberg and Marquardt).

    Raises:
        TooFarError: they lead further and further away, or go on for ever.
    """
    logits, damping = start, 1e-9
    slope_of, curvature_of = torch.func.grad(loss), torch.func.hessian(loss)
    for _ in range(1000):
        slope = slope_of(logits)
        curvature, here = curvature_of(logits), loss(logits)
        while True:
            step = torch.linalg.lstsq(curvature + damping * torch.eye(len(slope), dtype=slope.dtype), -slope).solution
            there = (logits + step).log_softmax(0)
            if there.isfinite().all() and loss(there) <= here:
                break
            damping *= 10
            if damping > 1e12:  # no step goes down any more: rounding is all that is left
                return logits.log_softmax(0)
        if there.min() < -FAR:
            raise TooFarError
        damping, moved, logits = max(damping / 10, 1e-12), (there - logits.log_softmax(0)).abs().max(), there
        if moved < TOLERANCE:
            return logits
    raise TooFarError


def lengthened(recipe: Recipe, iterations: int) -> Recipe:
    """The same game with more or fewer iterations; what it lists for each goes on with its last number."""
    old, content = recipe.game.iterations, recipe.model_dump(mode="json")
    for section in (content["game"], content["game"]["loss"], content["training"]):
        for name, value in section.items():
            if isinstance(value, list) and len(value) == old and name != "weights":
                section[name] = [*value, *value[-1:] * iterations][:iterations]
    content["game"]["iterations"] = iterations
    return Recipe.model_validate(content)
