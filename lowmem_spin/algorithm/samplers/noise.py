"""Sampling whose noise belongs to the row: the same row gives the same draw in any batch.

The Gumbel-max trick: argmax(logits + Gumbel noise) is an exact draw from softmax(logits). The noise is a hash of
(row seed, step, token), so nothing about the other rows, their number or their padding enters it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

IN_CACHE = 2**17  # numbers
_GOLDEN, _MIX1, _MIX2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # splitmix64's, as int64


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, which torch shifts arithmetically."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """splitmix64's finaliser: every bit of the result depends on every bit of the value."""
    value = value ^ _shift(value, 30)
    value *= _MIX1
    value ^= _shift(value, 27)
    value *= _MIX2
    value ^= _shift(value, 31)
    return value


def uniform(seeds: Tensor, step: int, count: int) -> Tensor:
    """Uniform numbers (rows, count), float64, from int64 row seeds; every step has its own, and may be negative.

    They have 53 bits and lie strictly inside (0, 1): with 24 bits one in 2^24 is 1.0 and its Gumbel noise infinite.
    """
    return torch.cat([_uniform(some, step, count) for some in _few(seeds, count)])


def gumbel(seeds: Tensor, step: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise (rows, vocabulary), float64, from int64 row seeds."""
    return torch.cat([_uniform(some, step, vocabulary).log_().neg_().log_().neg_() for some in _few(seeds, vocabulary)])


def _few(seeds: Tensor, count: int) -> Sequence[Tensor]:
    """The seeds, on a CPU as many together as have their numbers in its cache: a third of the time, or less."""
    return seeds.split(max(1, IN_CACHE // count)) if seeds.is_cpu else [seeds]


def _uniform(seeds: Tensor, step: int, count: int) -> Tensor:
    rows = _mix(_mix(seeds + _GOLDEN) + torch.full_like(seeds, step) * _GOLDEN)
    tokens = torch.arange(1, count + 1, device=seeds.device) * _GOLDEN
    bits = _shift(_mix(rows[:, None] + tokens), 11)
    return bits.double().add_(0.5).mul_(2.0**-53)


def fork(seeds: Tensor, branches: Tensor) -> Tensor:
    """Seeds for several draws of one row, shape (rows,); branch 0 keeps the row's own."""
    return torch.where(branches == 0, seeds, _mix(_mix(seeds) + branches * _GOLDEN))
