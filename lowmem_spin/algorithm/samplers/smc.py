"""Sequential Monte Carlo: N proposals side by side, and where C has told against some, the others take their places."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowmem_spin.algorithm.samplers.importance import chosen, effective, particles
from lowmem_spin.algorithm.samplers.mixture import MixtureSample, Target
from lowmem_spin.algorithm.samplers.noise import uniform
from lowmem_spin.algorithm.samplers.proposal import NextTokenLogps
from lowmem_spin.common.files import Tokens

RESAMPLE = -2  # the noise of step -2 - t, which no token has


def smc(
    logps: NextTokenLogps, prompts: Sequence[Tokens], seeds: Sequence[int], target: Target, proposals: int = 16, batch: int = 64
) -> list[MixtureSample]:
    """One of `proposals` particles per prompt, drawn by weight after the last step.

    Particles are resampled, those that have ended included, when their effective sample size falls below half of their
    number and some still go on. `log_z` estimates Z without bias; `ess` is the smallest of all steps.

    Args:
        logps: log-probs of both policies.
        prompts: token ids.
        seeds: one for each prompt.
        target: the mixture.
        proposals: how many particles each prompt gets.
        batch: sequences that are in one forward, but never fewer than one prompt's particles.
    """
    draws = []
    size = max(1, batch // proposals)
    for start in range(0, len(prompts), size):
        own = torch.tensor(seeds[start : start + size])
        draws += _populations(logps, prompts[start : start + size], own, target, proposals)
    return draws


def _populations(
    logps: NextTokenLogps, prompts: Sequence[Tokens], seeds: Tensor, target: Target, count: int
) -> list[MixtureSample]:
    walk = particles(logps, prompts, seeds, target, count)
    log_weights = torch.zeros(len(prompts), count, dtype=torch.float64)
    least = torch.full((len(prompts),), float(count), dtype=torch.float64)
    while walk.open.any():
        log_weights = log_weights + walk.step().view_as(log_weights)
        ess = effective(log_weights)
        least = least.minimum(ess)
        again = (ess < count / 2) & walk.open.view_as(log_weights).any(1)
        if again.any():
            ancestors = torch.arange(log_weights.numel()).view_as(log_weights)
            places = systematic(log_weights[again], uniform(seeds[again], RESAMPLE - walk.steps, 1))
            ancestors[again] = ancestors[again].gather(1, places)
            walk.select(ancestors.flatten())
            log_weights[again] = (log_weights[again].logsumexp(1, keepdim=True) - math.log(count)).expand(-1, count)
    return chosen(walk, seeds, log_weights, least)


def systematic(log_weights: Tensor, uniforms: Tensor) -> Tensor:
    """Places (prompts, particles) of the particles that go on: each as often as its share, to within one.

    Args:
        log_weights: (prompts, particles).
        uniforms: one number in (0, 1) for each prompt, shape (prompts, 1).
    """
    count = log_weights.shape[1]
    reached = log_weights.softmax(1).cumsum(1)
    points = ((torch.arange(count) + uniforms) / count).clamp(max=1 - 2**-53)  # rounding must not reach past the last
    return torch.searchsorted(reached / reached[:, -1:], points, right=True)
