"""Every loss: a pure function of tensors that says where it comes from.

All log-probs are sums over a completion's tokens, shape (B,). A new loss is one function here and one line
in `LOSSES`; the recipe names it in `game.loss.name`.
"""

from collections.abc import Callable

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


LOSSES: dict[str, Callable[..., Tensor]] = {"dpo": dpo}
