"""Answers drawn from mixtures of policies, by an engine that says what they think of every next token."""

from collections.abc import Sequence
from pathlib import Path

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.samplers.mixture import MixtureSample, Target, sampler
from lowmem_spin.engines.base import MixtureSampler, Request


def draw_mixture(
    generator: MixtureSampler, base: Path | None, requests: Sequence[Request], sampling: Sampling, batch: int
) -> list["MixtureSample"]:
    """For each request a draw from the mixture of its policy, the same for all, with the base.

    Args:
        generator: says what policies think of every next token.
        base: the base policy's adapter, if it has one.
        requests: of one policy.
        sampling: with the mixture that is asked.
        batch: sequences that are in one forward.
    """
    mixed = dict(sampling.mixture or {})
    (adapter,) = {request.adapter for request in requests}
    options = {name: value for name, value in mixed["sampler"].items() if name != "name"}
    draw = sampler(mixed["sampler"]["name"])
    target = Target(mixed["alpha"], sampling, frozenset(generator.ends))
    prompts, seeds = [request.prompt for request in requests], [request.seed for request in requests]
    return draw(generator.next_token_logps([adapter, base]), prompts, seeds, target, batch=batch, **options)
