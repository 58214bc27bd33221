"""Sub-trajectory balance: the loss whose zero is a policy that samples a reward R.

The sequences are those of sampling/: a completion with its end token, or as many tokens as there may be without one.
A policy pi is at zero when log pi(z) - log R(z) is one number for all sequences z of a prompt. It then is -log Z.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class StepLogps:
    """Log-probs along a batch of sequences, a step for every token, right-padded with anything finite.

    Those of R are the log-factors that it is the product of, such as alpha log p + (1 - alpha) log b of each token.
    """

    tokens: Tensor  # (B, L): of the token that the step takes, the end token included
    ends: Tensor  # (B, L, E): of every end token there is, at the same step


def subtb_loss(policy: StepLogps, reward: StepLogps, lengths: Tensor, capped: Tensor, lam: float) -> Tensor:
    """Sum over all sub-trajectories s_i .. s_j of lam^(j - i - 1) * (delta_i + ... + delta_(j-1))^2, per row, shape (B,).

    The modified form of "Amortizing intractable inference in large language models" (arXiv 2310.04363), after Madan et al.
    (arXiv 2209.12782) and Deleu et al. (arXiv 2202.13903). With s_i the first i tokens and T the act of stopping,

        delta_i = log R(s_i T) + log pi(s_(i+1) | s_i) + log pi(T | s_(i+1)) - log R(s_(i+1) T) - log pi(T | s_i).

    The deltas telescope: their sum is u_j - u_i, where u_i = log pi(s_i T) - log R(s_i T) is the log-ratio of the sequence
    that leaves the row after i tokens. That is how it is computed, from the differences of single steps.

    Two places where a sequence is not a prefix and an act of stopping:

    - At the cap nothing is left to choose. That prefix is a sequence already, so its log-ratio has no factor for an end.
      With one, pi(T | s) there would be free, and the loss falls to zero at policies that do not sample R.
    - Several end tokens make several sequences s_i e. Each has a log-ratio u_(i,e), and all of them have to be equal. A
      prefix stands for one of its ends, drawn with the share w_(i,e) that it has in R; the loss is the mean over these
      draws, sum over e, f of w_(i,e) w_(j,f) (u_(j,f) - u_(i,e))^2. With a single end token it is the square above.

    Args:
        policy: of the policy that is trained; gradients flow through it.
        reward: of R, up to a constant of the prompt.
        lengths: tokens in each row, its end token included, shape (B,).
        capped: whether a row was cut at the cap, and so has no end token, bool (B,).
        lam: weight of a sub-trajectory relative to one shorter by a token.
    """
    taken = F.pad((policy.tokens - reward.tokens).cumsum(1), (1, 0))  # (B, L + 1): log-ratio of the first i tokens
    places = torch.arange(taken.shape[1], device=taken.device)
    forced = (places == lengths[:, None]) & capped[:, None]
    ends = F.pad(policy.ends - reward.ends, (0, 0, 0, 1)).masked_fill(forced[..., None], 0.0)
    shares = F.pad(reward.ends, (0, 0, 0, 1)).softmax(-1)
    mean = (shares * ends).sum(-1)
    spread = (shares * (ends - mean[..., None]) ** 2).sum(-1)
    ratios = taken + mean
    inside = places < states(lengths, capped)[:, None]
    squares = (ratios[:, None, :] - ratios[:, :, None]) ** 2 + spread[:, None, :] + spread[:, :, None]
    apart = places[None, :] - places[:, None]
    counted = inside[:, None, :] & inside[:, :, None] & (apart > 0)
    return torch.where(counted, lam ** (apart - 1).clamp(min=0).to(squares.dtype) * squares, 0.0).sum((1, 2))


def states(lengths: Tensor, capped: Tensor) -> Tensor:
    """Prefixes of each row after which a sequence can end, the empty one included, shape (B,)."""
    return lengths + capped


def weighted_count(lengths: Tensor, capped: Tensor, lam: float) -> Tensor:
    """Sum of lam^(j - i - 1) over the sub-trajectories of each row, shape (B,): what the mean loss is divided by."""
    count = states(lengths, capped)
    apart = torch.arange(1, max(2, int(count.max())), device=lengths.device)
    return ((count[:, None] - apart).clamp(min=0) * lam ** (apart - 1).float()).sum(1)
