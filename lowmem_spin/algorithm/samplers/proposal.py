"""The proposal of every sampler: token by token from p(v|s)^alpha b(v|s)^(1 - alpha) / C(s).

C(s) is the sum over v of the numerator, at most 1 (Hölder). The product of C over the steps of a sequence is its
importance weight, because proposal times product is R; its mean over proposals is therefore Z, the sum of R.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowmem_spin.algorithm.samplers.mixture import MixtureSample, Target
from lowmem_spin.algorithm.samplers.noise import gumbel
from lowmem_spin.common.files import Tokens

State = tuple[int, ...]
"""A prompt and what of its completion there is."""

NextTokenLogps = Callable[[Sequence[State]], Sequence[Tensor]]
"""Log-probs of every next token under p and under b: two tensors (states, vocabulary)."""


def geometric(log_p: Tensor, log_b: Tensor, alpha: float) -> Tensor:
    """alpha log p + (1 - alpha) log b, not normalised; a policy without weight has no say, not even by a zero."""
    if alpha in (0, 1):
        return log_p if alpha else log_b
    return alpha * log_p + (1 - alpha) * log_b


class Walk:
    """Completions that grow side by side, each by the proposal's tokens, until all have ended.

    Args:
        seeds: one int64 per row. A row's draws depend on its seed and its prompt alone.
    """

    def __init__(self, logps: NextTokenLogps, prompts: Sequence[Tokens], seeds: Tensor, target: Target) -> None:
        self.logps, self.seeds, self.target = logps, seeds, target
        self.states: list[State] = [tuple(int(token) for token in prompt) for prompt in prompts]
        self.begins = [len(state) for state in self.states]
        self.open = torch.ones(len(prompts), dtype=torch.bool)
        self.log_c = torch.zeros(len(prompts), target.cap, dtype=torch.float64)
        self.steps = 0

    def step(self) -> Tensor:
        """Draw a token for every open row; the log C of the step, shape (rows,), 0 where none was taken."""
        rows = self.open.nonzero()[:, 0]
        log_p, log_b = self.logps([self.states[row] for row in rows.tolist()])
        mixed = geometric(log_p.double(), log_b.double(), self.target.alpha)
        noise = gumbel(self.seeds[rows].to(mixed.device), self.steps, mixed.shape[-1])
        drawn = (mixed + noise).argmax(-1).tolist()
        self.log_c[rows, self.steps] = mixed.logsumexp(-1).cpu()
        for row, token in zip(rows.tolist(), drawn, strict=True):
            self.states[row] = (*self.states[row], token)
        self.steps += 1
        ended = torch.tensor([self.steps == self.target.cap or token in self.target.ends for token in drawn])
        self.open[rows[ended]] = False
        return self.log_c[:, self.steps - 1]

    def select(self, ancestors: Tensor) -> None:
        """Row i goes on as row ancestors[i] of the same prompt, with its own noise."""
        self.states = [self.states[row] for row in ancestors.tolist()]
        self.open, self.log_c = self.open[ancestors], self.log_c[ancestors]

    @property
    def log_weights(self) -> Tensor:
        """Log of the product of C so far, shape (rows,)."""
        return self.log_c.sum(1)

    def draw(self, row: int, proposals: int, ess: float, log_z: float | None) -> MixtureSample:
        """The completion of a row that has ended."""
        tokens = list(self.states[row][self.begins[row] :])
        reason = "stop" if tokens[-1] in self.target.ends else "length"
        return MixtureSample(tokens, reason, self.log_c[row, : len(tokens)].tolist(), proposals, ess, log_z)


def token_level(
    logps: NextTokenLogps, prompts: Sequence[Tokens], seeds: Sequence[int], target: Target, proposals: int = 1, batch: int = 64
) -> list[MixtureSample]:
    """The proposal itself, uncorrected: what Nash-MD samples (Munos et al., arXiv 2312.00886).

    Distribution over sequences: R(y) divided by the product of C over y's steps.

    Args:
        logps: log-probs of both policies.
        prompts: token ids.
        seeds: one for each prompt.
        target: the mixture.
        proposals: there is always one.
        batch: sequences that are in one forward.
    """
    draws = []
    for start in range(0, len(prompts), batch):
        walk = Walk(logps, prompts[start : start + batch], torch.tensor(seeds[start : start + batch]), target)
        while walk.open.any():
            walk.step()
        draws += [walk.draw(row, 1, 1.0, log_weight) for row, log_weight in enumerate(walk.log_weights.tolist())]
    return draws
