"""Means with intervals: over held-out rows within a run, over seeds within a configuration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Z = 1.96  # normal quantile of a 95% interval
# Student's t, two-sided 95%, for 1, 2, ... degrees of freedom.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def quantile(freedom: int) -> float:
    """Half-width of a 95% interval in standard errors; beyond the table by Cornish and Fisher's expansion around Z."""
    if freedom <= len(T):
        return T[freedom - 1]
    return Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)


@dataclass(frozen=True)
class Value:
    """A mean, its standard error (nan if unknown), and how many of those a 95% interval reaches to either side."""

    mean: float
    error: float
    reach: float = Z

    @classmethod
    def read(cls, mean: Any, error: Any) -> "Value":
        """From JSON, in which null is a number that is not known. Raises TypeError or ValueError of what is no number."""
        return cls(*(math.nan if number is None else float(number) for number in (mean, error)))

    @property
    def half(self) -> float:
        """Half the width of the 95% interval."""
        return self.reach * self.error

    def text(self, percent: bool, digits: int, sign: str = "") -> str:
        """The mean, and the half-width of its interval where that is known."""
        if math.isnan(self.mean):
            return "?"
        scale = 100 if percent else 1
        mean = f"{scale * self.mean:{sign}z.{digits}f}"
        return mean if math.isnan(self.half) else f"{mean} ±{scale * self.half:.{digits}f}"


def over(values: Sequence[Value]) -> Value:
    """The mean over seeds, its error from their spread; one seed's value keeps its own error, over held-out rows."""
    if len(values) == 1:
        return values[0]
    means = [value.mean for value in values]
    return Value(fmean(means), stdev(means) / math.sqrt(len(means)), quantile(len(means) - 1))


def difference(one: Mapping[Any, Value], other: Mapping[Any, Value]) -> Value:
    """`one` minus `other`, both by seed: over the seeds that both have, in pairs, if there are two or more.

    Otherwise the errors are taken as independent: for the same held-out rows that makes the interval too wide.
    """
    common = [seed for seed in one if seed in other]
    if len(common) > 1:
        return over([Value(one[seed].mean - other[seed].mean, math.nan) for seed in common])
    a, b = (values[common[0]] if common else over(list(values.values())) for values in (one, other))
    return Value(a.mean - b.mean, math.hypot(a.error, b.error), max(a.reach, b.reach))


def within_noise(value: Value) -> bool:
    """Whether 0 is in the interval of a difference, or the interval unknown."""
    return not abs(value.mean) > value.half
