"""A loss, opponents and a reference of your own, which quickstart_own.yaml plays with. Change them, or write others."""

import torch.nn.functional as F
from torch import Tensor

from lowmem_spin.algorithm.losses import Sides


def loss(sides: Sides, beta: float, lam: float) -> Tensor:
    """DPO-Positive ("Smaug", arXiv 2402.13228), per pair, shape (B,): the chosen answer pays for becoming less likely.

    The reference has to be normalised: where the chosen answer's log-ratio is 0 depends on its constant.
    """
    chosen, rejected = sides.chosen - sides.ref_chosen, sides.rejected - sides.ref_rejected
    return -F.logsigmoid(beta * (chosen - rejected - lam * F.relu(-chosen)))


def opponents(iterates: list[str], base: str) -> dict[str, float]:
    """The newest iterate answers half of the prompts, the one before it a quarter, and so on; the base has what is left."""
    shares = {policy: 0.5 ** (age + 1) for age, policy in enumerate(reversed(iterates))}
    return {**shares, base: 0.5 ** len(iterates)}


def reference(iterates: list[str], base: str) -> dict[str, float]:
    """The base and the two newest iterates, in equal parts."""
    held_to = [base, *iterates[-2:]]
    return {policy: 1 / len(held_to) for policy in held_to}
