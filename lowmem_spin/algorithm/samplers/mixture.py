"""Samplers of the geometric mixture of two policies, as sequences: R(y) = p(y)^alpha b(y)^(1 - alpha), up to a constant.

That is alpha-SPIN's reference as an opponent (arXiv 2404.04291, appendix A). It is not the product of its token-wise
mixtures, so it cannot be drawn token by token: each sampler here draws from that product, and corrects.

What is sampled from, precisely: p and b are the policies that stop at `max_new_tokens`, so a sequence is either a
completion with its end token or `max_new_tokens` tokens without one ("length"), and p(y) is the product over the
tokens that are in y. A sequence at the cap takes no further step, so it has no factor for an end token. The completions
and the capped sequences together are all sequences, and R is the mixture of two distributions over exactly these.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.errors import InputError

SAMPLERS = {
    "token_level": "lowmem_spin.algorithm.samplers.proposal:token_level",
    "rejection": "lowmem_spin.algorithm.samplers.rejection:rejection",
    "snis": "lowmem_spin.algorithm.samplers.importance:snis",
    "smc": "lowmem_spin.algorithm.samplers.smc:smc",
}


def sampler(name: str) -> Callable[..., "list[MixtureSample]"]:
    """Import a sampler: f(next_token_logps, prompts, seeds, target, proposals, batch) -> one MixtureSample per prompt."""
    module, _, attribute = SAMPLERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True)
class Target:
    """The mixture to sample.

    Args:
        alpha: weight of p, in [0, 1]; b has the rest.
        sampling: of which only `max_new_tokens` is left to choose.
        ends: tokens that end a completion.

    Raises:
        InputError: sampling changes the policies, so that their log-probs are not those of what is drawn.
    """

    alpha: float
    sampling: Sampling
    ends: frozenset[int]

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a weight between 0 and 1, not {self.alpha}")
        for field, needed, written in (("temperature", 1.0, "1"), ("top_p", 1.0, "1"), ("top_k", None, "null")):
            value = getattr(self.sampling, field)
            if value != needed:
                raise InputError(f"generation.{field}: {value}, but a mixture is sampled from whole policies; use {written}")

    @property
    def cap(self) -> int:
        return self.sampling.max_new_tokens


@dataclass(frozen=True)
class MixtureSample:
    """What a sampler answers to one prompt, and how hard it was to get."""

    tokens: list[int] | None  # None: every proposal was rejected, so there is no sample
    finish_reason: str  # "stop", "length" or, without a sample, "rejected"
    log_c: list[float]  # log C of each of its steps; their sum is the log of its importance weight
    proposals: int  # sequences that were proposed for it
    ess: float  # effective sample size of those proposals
    log_z: float | None  # log of the mean weight of its proposals, an estimate of Z; None where weights are not kept


@dataclass(frozen=True, kw_only=True)
class SamplingSummary:
    """How a stage of sampling went."""

    sampler: str
    alpha: float
    prompts: int
    proposals: int
    rejected: int  # prompts without a sample
    acceptance: float | None  # accepted share of the proposals, of the sampler that accepts
    ess: float  # mean over prompts
    log_z: float  # log of the mean over prompts of the estimates of Z; for rejection, of the share of first tries accepted


def sampling_summary(name: str, alpha: float, draws: Sequence[MixtureSample]) -> SamplingSummary:
    """Sum up the draws of a stage.

    The acceptance is what rejection cost; over unlike prompts it is lower than the mean of Z, which `log_z` is about.
    """
    proposals = sum(draw.proposals for draw in draws)
    rejected = sum(draw.tokens is None for draw in draws)
    acceptance = (len(draws) - rejected) / proposals if name == "rejection" else None
    first = [float(draw.tokens is not None and draw.proposals == 1) for draw in draws]
    mean = float(
        np.mean([once if draw.log_z is None else math.exp(draw.log_z) for once, draw in zip(first, draws, strict=True)])
    )
    log_z = math.log(mean) if mean > 0 else -math.inf
    return SamplingSummary(
        sampler=name,
        alpha=alpha,
        prompts=len(draws),
        proposals=proposals,
        rejected=rejected,
        acceptance=acceptance,
        ess=float(np.mean([draw.ess for draw in draws])),
        log_z=log_z,
    )
