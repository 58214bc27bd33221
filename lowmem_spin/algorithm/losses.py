"""Every loss: a pure function of tensors that says where it comes from.

All log-probs are in nats, summed over a completion's tokens, its end of turn included; every tensor is a float (B,), and so
is every result: one term per pair, or per completion where the docstring says so. Gradients flow through what the policy
being trained gave; references, lengths and win-rates are constants.

A new loss of pairs is one function here, one line in `LOSSES`, and one section in config/loss_choices.py with its options.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Concatenate

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """-log sigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))), per pair, shape (B,).

    DPO (arXiv 2305.18290, equation 7); with the opponent's completions as the rejected ones it is SPIN's
    logistic loss (arXiv 2401.01335, equation 4.7) and alpha-SPIN's (arXiv 2404.04291).
    """
    return -F.logsigmoid(beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)))


def ipo(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    tau: float,
    lead: Tensor | float = 0.5,
) -> Tensor:
    """((chosen - ref_chosen) - (rejected - ref_rejected) - lead / tau)^2 on sequence sums, per pair, shape (B,).

    IPO (arXiv 2310.12036, equation 17) as alpha-SPIN's paper has it (arXiv 2404.04291, section 2.3). The margin aimed at,
    1 / (2 tau), is in nats per completion. TRL's loss of this name is `ipo_length_normalized`.

    `lead`, (B,), is by how much the win-rate of the chosen answer is higher. For two samples of one policy that is P - 1/2,
    P being how likely the chosen one is preferred, and the loss is, but for a constant, what INPO (arXiv 2407.00617) and
    IPO-MD (arXiv 2403.08635) minimise: the expectation over which of the two an oracle prefers.
    """
    return ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps) - lead / tau) ** 2


def ipo_length_normalized(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    tau: float,
) -> Tensor:
    """IPO with each side's log-ratio divided by its length in tokens, per pair, shape (B,): TRL's `loss_type="ipo"`.

    The margin aimed at, 1 / (2 tau), is in nats per token. A constant added to both references, such as the normaliser
    of a geometric mixture, cancels only between sides of equal length.
    """
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths.clamp(min=1)
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths.clamp(min=1)
    return (chosen - rejected - 1 / (2 * tau)) ** 2


def hinge(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """max(0, 1 - beta * ((chosen - ref_chosen) - (rejected - ref_rejected))), per pair, shape (B,).

    The `hinge` of TRL and of SPIN's code (RSO, arXiv 2309.06657). Relative to a reference, unlike `slic`.
    """
    return F.relu(1 - beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)))


def slic(chosen_logps: Tensor, rejected_logps: Tensor, target_logps: Tensor, delta: float, lam: float) -> Tensor:
    """max(0, delta - chosen + rejected) - lam * target, per pair, shape (B,). There is no reference.

    SLiC-HF (arXiv 2305.10425) as in arXiv 2404.04291, section 2.3. `target_logps` are the policy's log-probs of the answer
    that keeps it from drifting, in self-play the data's, which is also the chosen one. `delta` is in nats per completion.
    """
    return F.relu(delta - chosen_logps + rejected_logps) - lam * target_logps


def sppo(logps: Tensor, ref_logps: Tensor, win_rates: Tensor, eta: float) -> Tensor:
    """(logps - ref_logps - eta * (win_rates - 1/2))^2, per COMPLETION, shape (B,).

    SPPO (arXiv 2405.00675, equation 4.4, its log-normaliser set to eta / 2). `win_rates`, in [0, 1], are the estimated
    probabilities that a completion beats the policy that is the reference; the paper's eta is 1e3. The reference has to
    be normalised: nothing cancels here. SPPO's code takes the mean over the two completions of a prompt, TRL's
    `sppo_hard` their sum with win-rates 1 and 0 and eta = 1 / beta.
    """
    return (logps - ref_logps - eta * (win_rates - 0.5)) ** 2


CLAMP = 10.0  # the largest exponent of the exponential penalties, as in RSPO's code

PENALTIES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "reverse_kl": lambda logps, base, clamp: (logps - base) ** 2,
    "forward_kl": lambda logps, base, clamp: torch.exp((base - logps).clamp(max=clamp)),
    "chi2": lambda logps, base, clamp: torch.exp((logps - base).clamp(max=clamp)),
    "chi2_smoothed": lambda logps, base, clamp: torch.sigmoid((logps - base).clamp(max=clamp)),
    "reverse_kl_no_entropy": lambda logps, base, clamp: -logps * base,
    "entropy": lambda logps, base, clamp: logps**2,
}


def rspo_penalty(
    kind: str, logps: Tensor, base_logps: Tensor, clamp: float | None = None, importance_logps: Tensor | None = None
) -> Tensor:
    """RSPO's regulariser, per COMPLETION, shape (B,), to be added to `sppo` times a coefficient.

    "Game-Theoretic Regularized Self-Play Alignment" (arXiv 2503.00030) and its code. With D = logps - base_logps, and y
    drawn from the policy itself, the gradient's expectation is

    kind                   term               expected gradient
    reverse_kl             D^2                2 grad KL(policy || base)
    forward_kl             exp(min(-D, c))    grad KL(base || policy)
    chi2                   exp(min(D, c))     1/2 grad chi2(policy | base)
    chi2_smoothed          r / (1 + r)        grad sum base f(policy / base), f(u) = log(1 + u) + 1 / (1 + u)
    reverse_kl_no_entropy  -logps * base      grad of the cross-entropy -E log base
    entropy                logps^2            -2 grad entropy(policy)

    with r = exp(min(D, c)). chi2_smoothed is that code's `chisqsm1`. Its f is convex below u = 1 alone, so that it is no
    divergence: what has become likelier than under the base it does not bring back.

    Args:
        kind: which divergence, or part of one.
        logps: under the policy being trained.
        base_logps: under the base that it is held to, not under the last iterate.
        clamp: c, the largest exponent of forward_kl, of both chi2 and of a weight; None is 10, as in RSPO's code. Beyond it
            a completion has no gradient of these.
        importance_logps: log-probs under the policy that y was drawn from. RSPO's code draws from the last iterate and
            corrects for nothing (None), which biases the expectations above as soon as the policy moves. Given, every
            term is weighted with policy / sampler, through which no gradient flows, and they hold, as far as the weight
            is below exp(c): beyond it stays there, for it would soon be infinite. Answers have to be draws: the best and
            the worst of more than two are not.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in PENALTIES:
        raise ValueError(f"{kind!r} is no penalty; known: {', '.join(PENALTIES)}")
    largest = CLAMP if clamp is None else clamp
    penalty = PENALTIES[kind](logps, base_logps, largest)
    if importance_logps is None:
        return penalty
    return torch.exp((logps - importance_logps).clamp(max=largest)).detach() * penalty


def rspo_penalties(
    weights: Mapping[str, float],
    logps: Tensor,
    base_logps: Tensor,
    clamp: float | None = None,
    importance_logps: Tensor | None = None,
) -> Tensor:
    """The weighted sum of penalties {kind: weight}, per COMPLETION, shape (B,); the arguments are rspo_penalty's.

    The best model of arXiv 2503.00030 adds a forward and a reverse KL; its code's runs are named for weights 0.1 and 0.5.
    """
    terms = [weight * rspo_penalty(kind, logps, base_logps, clamp, importance_logps) for kind, weight in weights.items()]
    return torch.stack(terms).sum(0) if terms else torch.zeros_like(logps)


ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)


@dataclass(frozen=True, kw_only=True)
class Sides:
    """A batch of pairs as a loss sees it. Every tensor is (B,)."""

    chosen: Tensor  # log-probs under the policy being trained
    rejected: Tensor
    ref_chosen: Tensor  # log-probs under the reference, up to a constant of the prompt; 0 where a loss has no reference
    ref_rejected: Tensor
    chosen_lengths: Tensor  # in tokens
    rejected_lengths: Tensor
    chosen_win_rates: Tensor = ONE  # as an oracle has judged; 1 and 0 where nothing has
    rejected_win_rates: Tensor = ZERO
    head_to_head: Tensor = ONE  # how likely the chosen one beats the rejected one, likewise
    base_chosen: Tensor = ZERO  # log-probs under the base; 0 where nothing reads them
    base_rejected: Tensor = ZERO

    @property
    def logps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.chosen, self.rejected, self.ref_chosen, self.ref_rejected

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        return self.chosen_lengths, self.rejected_lengths


def judged_ipo(sides: Sides, tau: float, targets: str = "hard") -> Tensor:
    """`ipo` with the oracle's win-rates for `targets` "soft"; for "hard" the chosen answer has won, as IPO has it: (B,)."""
    lead = sides.chosen_win_rates - sides.rejected_win_rates if targets == "soft" else 0.5
    return ipo(*sides.logps, tau, lead)


def regularized_sppo(
    sides: Sides,
    eta: float,
    targets: str,
    penalties: Mapping[str, float] | None = None,
    clamp: float | None = None,
    importance: str = "none",
) -> Tensor:
    """The mean of a pair's two `sppo` terms, as in SPPO's code, and the sum of their penalties, as in RSPO's: (B,).

    With `targets` "hard" the better answer's win-rate is 1 and the worse one's 0, whatever was judged. With "head_to_head"
    they are how likely the one beats the other, and its complement: `sppo_single` of SPPO's code.
    """
    better, worse = {
        "soft": (sides.chosen_win_rates, sides.rejected_win_rates),
        "hard": (ONE, ZERO),
        "head_to_head": (sides.head_to_head, 1 - sides.head_to_head),
    }[targets]
    chosen = sppo(sides.chosen, sides.ref_chosen, better, eta)
    rejected = sppo(sides.rejected, sides.ref_rejected, worse, eta)
    loss = (chosen + rejected) / 2
    for logps, base, ref in (
        (sides.chosen, sides.base_chosen, sides.ref_chosen),
        (sides.rejected, sides.base_rejected, sides.ref_rejected),
    ):
        loss = loss + rspo_penalties(penalties or {}, logps, base, clamp, None if importance == "none" else ref)
    return loss


# By the name in a recipe's game.loss, whose other fields are the options.
LOSSES: dict[str, Callable[Concatenate[Sides, ...], Tensor]] = {
    "dpo": lambda sides, beta: dpo(*sides.logps, beta),
    "ipo": judged_ipo,
    "ipo_length_normalized": lambda sides, tau: ipo_length_normalized(*sides.logps, *sides.lengths, tau),
    "hinge": lambda sides, beta: hinge(*sides.logps, beta),
    "slic": lambda sides, delta, lam: slic(sides.chosen, sides.rejected, sides.chosen, delta, lam),
    "sppo": regularized_sppo,
}
