"""Preference oracles: which of several answers to a prompt is better, and how often.

An oracle gives P, a matrix (K, K) for K answers to one prompt: P[i, j] is how likely i is to be preferred to j. A new one is
a class in a file of its own, one line in `ORACLES`, and one section in config/choices.py with its name and options.
"""

import importlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from lowmem_spin.algorithm.preferences import Comparison
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Sources
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import Terms

ORACLES = {
    "function": "lowmem_spin.engines.oracles.function:Function",
    "reward_model": "lowmem_spin.engines.oracles.reward_model:RewardModel",
    "pairrm": "lowmem_spin.engines.oracles.pairrm:PairRM",
    "judge": "lowmem_spin.engines.oracles.judge:LLMJudge",
}


@dataclass(frozen=True)
class OracleContext:
    """What an oracle of a recipe is opened with, beside its section."""

    sources: Sources  # where models and files are looked for
    machine: Machine  # where it computes
    cache: Path  # folder for replies that cost money or time
    notify: Callable[[str], None]  # told in one line what a person should know


def open_oracle(section: Any, context: OracleContext) -> "Oracle | None":
    """The oracle that a recipe's `game.oracle` names, if it names one; nothing is loaded or asked yet."""
    if section is None:
        return None
    module, _, attribute = ORACLES[section.name].partition(":")
    return getattr(importlib.import_module(module), attribute).from_recipe(section, context)


class Oracle(Protocol):
    """Compares answers."""

    @classmethod
    def from_recipe(cls, section: Any, context: OracleContext) -> Self:
        """Opened as a recipe's section says, without loading anything."""
        ...

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

    def memory(self, recipe: Recipe, dtype: str) -> Terms:
        """Bytes of every term on a GPU, of rows as long as the recipe allows; empty of one without weights, or if not known."""
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

    def memory(self, recipe: Recipe, dtype: str) -> Terms:
        """None."""
        return {}

    def release(self) -> None:
        """Nothing to let go of."""

    def close(self) -> None:
        """Nothing to let go of."""
