"""Means with intervals: over held-out rows within a run, over seeds within a configuration."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


# The numbers of metrics.jsonl and of benchmarks.jsonl that are shares of rows with yes or no.
YES_OR_NO = {"exact_match", "final_number", "regex", "contains", "truncated", "identical", "acc", "acc_norm", "acc_bytes", "em"}


def is_yes_or_no(name: str) -> bool:
    """Whether a number is one, by its name: exact_match/sort of a category, acc_norm,none of the harness."""
    return name.partition("/")[0].partition(",")[0] in YES_OR_NO


def rows_of(record: Mapping[str, Any], name: str) -> int | None:
    """How many yes-or-no outcomes a number of a line of metrics.jsonl is the share of; None if it is no such share."""
    return record.get(f"{name}_n") if is_yes_or_no(name) else None


def row_numbers(record: Mapping[str, Any]) -> dict[str, "RowNumbers"]:
    """What the scores in a line of metrics.jsonl are the means of, by name; earlier versions did not write it.

    Raises:
        KeyError, TypeError, ValueError: it is not whole.
    """
    rows = dict(record.get("rows", {}))
    found = {n: [math.nan if one is None else float(one) for one in numbers] for n, numbers in rows.items()}
    if any(len(numbers) != record[f"{name}_n"] for name, numbers in found.items()):
        raise ValueError("rows")
    return {name: RowNumbers(str(record["held_out"]), numbers) for name, numbers in found.items()}


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of `count` independent yes-or-no outcomes (Wilson 1927).

    Standard errors will not do near 0 and 1: of 50 outcomes all alike they are 0, whatever the probability was.
    """
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return min(low, share), max(high, share)  # which rounding may pass


@dataclass(frozen=True)
class RowNumbers:
    """What a mean over held-out rows is of."""

    held_out: str  # a hash of the rows' ids
    numbers: Sequence[float]

    def are_of_the_rows_of(self, other: "RowNumbers") -> bool:
        """Whether both are of the same rows."""
        return (self.held_out, len(self.numbers)) == (other.held_out, len(other.numbers))


@dataclass(frozen=True)
class Value:
    """A mean, its standard error (nan if unknown), and how many of those a 95% interval reaches to either side."""

    mean: float
    error: float
    reach: float = Z
    count: int | None = None  # of yes-or-no outcomes, of which the mean is the share
    both: tuple[float, float] | None = None  # the lower and the higher of the two that the mean is of, if it is of two seeds
    by_row: RowNumbers | None = field(default=None, compare=False, repr=False)  # None if that is not known, or of several seeds

    @classmethod
    def read(cls, mean: Any, error: Any, count: int | None = None, by_row: RowNumbers | None = None) -> "Value":
        """From JSON, in which null is a number that is not known. Raises TypeError or ValueError of what is no number.

        Args:
            mean: of `count` rows.
            error: its standard error. That of yes-or-no outcomes follows from their share, and so they are known.
            count: rows; None if that is not known.
            by_row: what it is the mean of.
        """
        known = [math.nan if number is None else float(number) for number in (mean, error)]
        yes_or_no = False
        if count is not None and count > 1 and 0 <= known[0] <= 1:
            yes_or_no = math.isclose(known[1] ** 2, known[0] * (1 - known[0]) / (count - 1), rel_tol=1e-6, abs_tol=1e-15)
        return cls(known[0], known[1], count=count if yes_or_no else None, by_row=by_row)

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95% interval, as it is drawn; both the mean where it is not known, and of two seeds both values."""
        if self.both is not None:
            return self.both
        if self.count is not None:
            return wilson(self.mean, self.count)
        half = 0.0 if math.isnan(self.error) else self.reach * self.error
        return self.mean - half, self.mean + half

    @property
    def half(self) -> float:
        """How far the 95% interval reaches, as it is written: of a share's two arms the longer."""
        if self.count is None:
            return self.reach * self.error
        low, high = self.interval
        return max(self.mean - low, high - self.mean)

    def text(self, percent: bool, digits: int, sign: str = "") -> str:
        """The mean, and the half-width of its interval where that is known.

        Of two seeds it is both values, as 80.0 (79.1..80.9), for an interval from two is 12.7 standard errors wide. A share
        whose interval by its half-width would pass 0 or 100% has its ends, as 98.6 [94.4..100].
        """
        if math.isnan(self.mean):
            return "?"
        scale = 100 if percent else 1
        mean = f"{scale * self.mean:{sign}z.{digits}f}"
        if self.both is not None:
            low, high = (f"{scale * end:{sign}z.{digits}f}" for end in self.both)
            return f"{mean} ({low}..{high})"
        if percent and not sign and not (self.mean - self.half >= 0 and self.mean + self.half <= 1):
            low, high = self.interval
            ends = [
                f"{scale * end:z.{digits}f}" if 0 < end < 1 else f"{scale * end:.0f}" for end in (max(low, 0), min(high, 1))
            ]
            return mean if math.isnan(self.half) else f"{mean} [{'..'.join(ends)}]"
        return mean if math.isnan(self.half) else f"{mean} ±{scale * self.half:.{digits}f}"


def over(values: Sequence[Value]) -> Value:
    """The mean over seeds, its error from their spread; one seed's value keeps its own error, over held-out rows."""
    if len(values) == 1:
        return values[0]
    means = [value.mean for value in values]
    both = (min(means), max(means)) if len(means) == 2 else None
    return Value(fmean(means), stdev(means) / math.sqrt(len(means)), quantile(len(means) - 1), both=both)


def over_seeds(counts: Iterable[int]) -> str:
    """What bars and bands are in a picture of configurations with so many seeds, if one has several."""
    return "95% intervals over seeds" + ", of two seeds both values" * (2 in counts)


def notation(cells: Iterable[str]) -> str:
    """What a table's title adds on how its numbers are written, if some of them have no ±; see Value.text."""
    found = [cell for cell in cells if ".." in cell]
    seeds = "; (a..b): both of two seeds" * any(cell.endswith(")") or "), " in cell for cell in found)
    return seeds + "; [a..b]: the interval where ± would pass 0 or 100" * any(cell.endswith("]") for cell in found)


def difference(one: Mapping[Any, Value], other: Mapping[Any, Value]) -> Value:
    """`one` minus `other`, both by seed: over the seeds that both have, in pairs, if there are two or more; else row by row.

    Where the rows are others, or not known, the errors are taken as independent: for the same rows the interval is too wide.
    """
    common = [seed for seed in one if seed in other]
    if len(common) > 1:
        return over([Value(one[seed].mean - other[seed].mean, math.nan) for seed in common])
    a, b = (values[common[0]] if common else over(list(values.values())) for values in (one, other))
    if a.by_row is None or b.by_row is None or not a.by_row.are_of_the_rows_of(b.by_row):
        return Value(a.mean - b.mean, math.hypot(a.half, b.half) / Z)
    apart = [mine - theirs for mine, theirs in zip(a.by_row.numbers, b.by_row.numbers, strict=True)]
    return Value(fmean(apart), stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan)


def within_noise(value: Value) -> bool:
    """Whether 0 is in the interval of a difference, or the interval unknown."""
    return not abs(value.mean) > value.half
