"""Preference oracles: which of several answers to a prompt is better, and how often.

An oracle gives P, a matrix (K, K) for K answers to one prompt: P[i, j] is how likely i is to be preferred to j.
"""

import importlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import numpy as np

from lowmem_spin.algorithm.preferences import Comparison

ORACLES = {
    "function": "lowmem_spin.engines.oracles.function:Function",
    "reward_model": "lowmem_spin.engines.oracles.reward_model:RewardModel",
    "pairrm": "lowmem_spin.engines.oracles.pairrm:PairRM",
    "judge": "lowmem_spin.engines.oracles.judge:LLMJudge",
}


def oracle(name: str) -> Callable[..., "Oracle"]:
    """Import the class of an oracle; each takes arguments of its own."""
    module, _, attribute = ORACLES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


class Oracle(Protocol):
    """Compares answers."""

    @property
    def undecided(self) -> Collection[int]:
        """Questions of the last `prefer` that may be decided otherwise when they are asked again."""
        ...

    def spec(self) -> dict[str, Any]:
        """All that decides its judgements: a part of the keys of what is built on them."""
        ...

    def located(self) -> dict[str, Any]:
        """Fields of `game.oracle` by which it is found from any folder."""
        ...

    def prefer(self, questions: Sequence[Comparison]) -> list[np.ndarray]:
        """P (K, K) for each question, float64, P[i, j] + P[j, i] = 1 and 1/2 on the diagonal."""
        ...

    def release(self) -> None:
        """Nothing to judge for a while: let go of what takes memory."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class NoWeights:
    """An oracle that holds no memory."""

    undecided: Collection[int] = ()

    def release(self) -> None:
        """Nothing to let go of."""

    def close(self) -> None:
        """Nothing to let go of."""
