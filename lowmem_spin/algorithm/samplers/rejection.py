"""Exact samples of the mixture: propose token by token, accept with the product of C."""

from collections.abc import Sequence

import torch

from lowmem_spin.algorithm.samplers.mixture import MixtureSample, Target
from lowmem_spin.algorithm.samplers.noise import fork, uniform
from lowmem_spin.algorithm.samplers.proposal import NextTokenLogps, Walk
from lowmem_spin.common.files import Tokens

ACCEPT = -1  # the noise of a step before the first


def rejection(
    logps: NextTokenLogps,
    prompts: Sequence[Tokens],
    seeds: Sequence[int],
    target: Target,
    proposals: int = 100,
    batch: int = 64,
) -> list[MixtureSample]:
    """For each prompt the first of its proposals that is accepted, or a MixtureSample without tokens after `proposals` of them.

    A proposal is accepted with probability prod C, which makes the accepted ones exact draws from R and Z the share
    of them. As C is at most 1, the product only falls: a proposal is given up in the step in which it falls below the
    uniform number that it will be compared with.

    Giving up on a prompt leaves the other prompts' draws exact; dropping such prompts is up to the caller.

    Args:
        logps: log-probs of both policies.
        prompts: token ids.
        seeds: one for each prompt.
        target: the mixture.
        proposals: how many tries a prompt has.
        batch: sequences that are in one forward; prompts that are left try several times at once.
    """
    draws: list[MixtureSample | None] = [None] * len(prompts)
    tried = [0] * len(prompts)
    pending = list(range(len(prompts)))
    while pending:
        now = pending[:batch]
        tries = [
            (place, tried[place] + extra)
            for place in now
            for extra in range(min(max(1, batch // len(now)), proposals - tried[place]))
        ]
        for (place, number), draw in zip(tries, _try(logps, prompts, seeds, target, tries), strict=True):
            tried[place] = number + 1
            if draws[place] is None:  # tries are in order: the first accepted one counts, however many ran beside it
                draws[place] = draw
        for place in now:
            if draws[place] is None and tried[place] == proposals:
                draws[place] = MixtureSample(None, "rejected", [], proposals, 0.0, None)
        pending = [place for place in pending if draws[place] is None]
    return [draw for draw in draws if draw is not None]


def _try(
    logps: NextTokenLogps,
    prompts: Sequence[Tokens],
    seeds: Sequence[int],
    target: Target,
    tries: Sequence[tuple[int, int]],
) -> list[MixtureSample | None]:
    """One proposal per (place of a prompt, number of the try): the draw, or None if it was rejected."""
    places, numbers = (torch.tensor(column) for column in zip(*tries, strict=True))
    walk = Walk(logps, [prompts[place] for place, _ in tries], fork(torch.tensor(seeds)[places], numbers), target)
    bar = uniform(walk.seeds, ACCEPT, 1)[:, 0].log()
    accepted = torch.ones(len(tries), dtype=torch.bool)
    while walk.open.any():
        walk.step()
        accepted &= bar < walk.log_weights
        walk.open &= accepted
    return [walk.draw(row, tries[row][1] + 1, 1.0, None) if fine else None for row, fine in enumerate(accepted.tolist())]
