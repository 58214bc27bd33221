"""Policies against each other: win-rates, Bradley-Terry strengths, and how far both can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000  # bootstrap samples of the prompts
POINTS = 400 / np.log(10)  # of a chess rating per nat of log-odds: 400 points are odds of ten to one
STEPS, CLOSE = 50, 1e-10  # of Newton's method: at most so many, and when its step is too small to matter


@dataclass(frozen=True)
class ArenaTable:
    """What N prompts say of K policies.

    Attributes:
        names: of the policies, the first of which has strength 0.
        wins: (K, K), how often the row's policy is preferred to the column's; 1/2 on the diagonal.
        errors: (K, K), its standard error over prompts.
        strengths: (K,), in points.
        low, high: (K,), the 95% interval of each strength over the bootstrap's prompts.
    """

    names: list[str]
    wins: np.ndarray
    errors: np.ndarray
    strengths: np.ndarray
    low: np.ndarray
    high: np.ndarray
    prompts: int


def arena_table(names: Sequence[str], preferences: np.ndarray, seed: int) -> ArenaTable:
    """All numbers from the preferences (N, K, K) of an oracle, P[n, i, j] = P(i's answer to prompt n beats j's)."""
    count = len(preferences)
    mean = preferences.mean(0)
    spread = preferences.std(0, ddof=1) / count**0.5 if count > 1 else np.full(mean.shape, np.nan)
    drawn = np.random.default_rng(seed).integers(0, count, (DRAWS, count))
    weights = np.stack([np.bincount(row, minlength=count) for row in drawn])  # (draws, prompts)
    again = np.einsum("dn,nij->dij", weights, preferences) / count
    low, high = np.quantile(strengths(again, count), [0.025, 0.975], axis=0)
    return ArenaTable(list(names), mean, spread, strengths(mean, count), low, high, count)


def strengths(wins: np.ndarray, prompts: int) -> np.ndarray:
    """Bradley-Terry strengths (..., K) in points, the first policy's 0: the likeliest ones, by Newton's method.

    Each pair of policies has one tie more than was seen, without which one that never loses would be infinitely strong.

    Args:
        wins: (..., K, K), the share of `prompts` that the row's policy wins against the column's; a tie is half a win.
        prompts: how many were judged for each pair.
    """
    others = 1 - np.eye(wins.shape[-1])
    games, won = (prompts + 1) * others, (wins * prompts + 0.5) * others
    nats = np.zeros(wins.shape[:-1])
    for _ in range(STEPS):
        expected = 1 / (1 + np.exp(nats[..., None, :] - nats[..., :, None]))
        slope = (won - games * expected).sum(-1)
        bend = games * expected * (1 - expected)
        curve = bend.sum(-1)[..., None] * np.eye(wins.shape[-1]) - bend
        step = np.zeros(nats.shape)
        step[..., 1:] = np.linalg.solve(curve[..., 1:, 1:], slope[..., 1:, None])[..., 0]
        nats += step
        if np.abs(step).max() < CLOSE:
            break
    return nats * POINTS
