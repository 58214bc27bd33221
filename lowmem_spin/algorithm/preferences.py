"""Preferences between answers to one prompt, as matrices, and the win-rates that come of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lowmem_spin.common.errors import InputError


@dataclass(frozen=True)
class Comparison:
    """A prompt and the answers that are compared."""

    messages: list[dict[str, str]]  # the conversation that the answers continue
    answers: list[str]
    reference: str  # the data's own answer


def check_preferences(matrix: np.ndarray, answers: int, field: str) -> np.ndarray:
    """The matrix, if it is one of preferences.

    Raises:
        InputError: it is not; the line names `field`.
    """
    whole = np.asarray(matrix, np.float64)
    if whole.shape != (answers, answers):
        raise InputError(
            f"{field}: for {answers} answers it gave an array of shape {whole.shape}; ({answers}, {answers}) is needed"
        )
    if not np.isfinite(whole).all() or whole.min() < 0 or whole.max() > 1 or not np.allclose(whole + whole.T, 1):
        raise InputError(f"{field}: its preferences are not probabilities with P[i, j] + P[j, i] = 1")
    return whole


def of_scores(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """P of a scorer without noise: the higher score always wins, equal ones share."""
    s = np.asarray(scores, np.float64)
    return (s[:, None] > s[None, :]) + 0.5 * (s[:, None] == s[None, :])


def of_rewards(rewards: Sequence[float]) -> np.ndarray:
    """P of a Bradley-Terry reward model: sigmoid of the difference."""
    r = np.asarray(rewards, np.float64)
    return 1 / (1 + np.exp(r[None, :] - r[:, None]))


def of_pairs(answers: Sequence[str], wins: Callable[[str, str], float]) -> np.ndarray:
    """P of an oracle that sees two answers at a time: wins(a, b) is how likely a is to be preferred. Equal answers share."""
    matrix = np.full((len(answers), len(answers)), 0.5)
    for i, j in combinations(range(len(answers)), 2):
        if answers[i] != answers[j]:
            matrix[i, j] = wins(answers[i], answers[j])
            matrix[j, i] = 1 - matrix[i, j]
    return matrix


def compared(preferences: np.ndarray, how: str) -> np.ndarray:
    """How likely each of K answers beats each, (K, K), as the oracle has it or made transitive.

    pairwise: as it has it, as in SPPO's paper (arXiv 2405.00675, section 4). aggregated: as its official code has it: each
    answer's mean log-odds is its strength, and strengths are compared by Bradley-Terry. That makes any preference
    transitive: where each of three beats the next, it calls all of them equal to all. Log-odds end at those of 1e-6, which
    the code's do not: an oracle may be sure, where that code's is a PairRM with scores.
    """
    if how == "pairwise":
        return preferences
    clipped = np.clip(preferences, 1e-6, 1 - 1e-6)
    return of_rewards(np.log(clipped / (1 - clipped)).mean(1))


def win_rates(preferences: np.ndarray, how: str) -> np.ndarray:
    """How often each of K answers wins against a random one of them, itself included: (K,)."""
    return compared(preferences, how).mean(1)


def best_and_worst(rates: np.ndarray) -> tuple[int, int]:
    """The pair to learn from. Of equal ones the first is best and the last is worst, so that the two are never one."""
    level = rates.round(9)  # equal ones that were summed in another order are equal
    return int(level.argmax()), len(level) - 1 - int(level[::-1].argmin())
