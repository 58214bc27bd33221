"""Self-normalised importance resampling: of N proposals, one is kept with probability proportional to its weight."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowmem_spin.algorithm.samplers.mixture import MixtureSample, Target
from lowmem_spin.algorithm.samplers.noise import fork, gumbel
from lowmem_spin.algorithm.samplers.proposal import NextTokenLogps, Walk
from lowmem_spin.common.files import Tokens

CHOICE = -1  # the noise of a step before the first


def snis(
    logps: NextTokenLogps, prompts: Sequence[Tokens], seeds: Sequence[int], target: Target, proposals: int = 16, batch: int = 64
) -> list[MixtureSample]:
    """One of `proposals` independent proposals per prompt, drawn by the product of C.

    Its distribution is that of R up to a bias of the order of (relative variance of the weights) / proposals.

    Args:
        logps: log-probs of both policies.
        prompts: token ids.
        seeds: one for each prompt.
        target: the mixture.
        proposals: how many of them each prompt gets.
        batch: sequences that are in one forward, but never fewer than one prompt's proposals.
    """
    draws = []
    size = max(1, batch // proposals)
    for start in range(0, len(prompts), size):
        own = torch.tensor(seeds[start : start + size])
        walk = particles(logps, prompts[start : start + size], own, target, proposals)
        while walk.open.any():
            walk.step()
        log_weights = walk.log_weights.view(-1, proposals)
        draws += chosen(walk, own, log_weights, effective(log_weights))
    return draws


def particles(logps: NextTokenLogps, prompts: Sequence[Tokens], seeds: Tensor, target: Target, count: int) -> Walk:
    """`count` rows for each prompt, side by side; the first has the prompt's own seed."""
    rows = [prompt for prompt in prompts for _ in range(count)]
    forked = fork(seeds.repeat_interleave(count), torch.arange(count).repeat(len(prompts)))
    return Walk(logps, rows, forked, target)


def effective(log_weights: Tensor) -> Tensor:
    """Effective sample sizes (sum w)^2 / sum w^2 of log-weights (prompts, particles), shape (prompts,).

    Raises:
        ValueError: all weights of a prompt are 0: nothing that was proposed is in the mixture.
    """
    if (log_weights.amax(1) == -math.inf).any():
        raise ValueError("no proposal has any probability under both policies; is one of them masked where the other is not?")
    return (2 * log_weights.logsumexp(1) - (2 * log_weights).logsumexp(1)).exp()


def chosen(walk: Walk, seeds: Tensor, log_weights: Tensor, ess: Tensor) -> list[MixtureSample]:
    """One row per prompt, drawn by weight. `log_weights` (prompts, particles), `seeds` and `ess` (prompts,)."""
    count = log_weights.shape[1]
    picked = (log_weights + gumbel(seeds, CHOICE, count)).argmax(1).tolist()
    log_z = (log_weights.logsumexp(1) - math.log(count)).tolist()
    return [walk.draw(place * count + pick, count, ess[place].item(), log_z[place]) for place, pick in enumerate(picked)]
