"""How a reference is made of several policies: arithmetic on summed log-probs of whole completions, shape (rows,).

A new kind is one function here and one line in `REFERENCES`; the recipe names it in `game.reference`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Logps = NDArray[np.float64]


def geometric(weights: Sequence[float], logps: Sequence[Logps]) -> Logps:
    """log prod_i p_i(y)^w_i = sum_i w_i log p_i(y): alpha-SPIN's reference (arXiv 2404.04291, section 3.1).

    Its normaliser is left out: it depends on the prompt alone and cancels between two completions of one prompt.
    """
    total = np.zeros(len(logps[0]))
    for weight, values in zip(weights, logps, strict=True):
        total = total + weight * values
    return total


def arithmetic(weights: Sequence[float], logps: Sequence[Logps]) -> Logps:
    """log sum_i w_i p_i(y), a policy of its own when the weights sum to 1: y is answered whole by policy i, drawn by w_i.

    The policies' probabilities of the whole completion are averaged. Averaging those of each next token would be
    another policy, one that draws i anew for every token.
    """
    return np.logaddexp.reduce([np.log(weight) + values for weight, values in zip(weights, logps, strict=True)], axis=0)


REFERENCES: dict[str, Callable[[Sequence[float], Sequence[Logps]], Logps]] = {
    "geometric": geometric,
    "arithmetic": arithmetic,
}
