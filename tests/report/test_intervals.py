"""How an uncertain number is written: nothing impossible, and no interval from two values."""

import math

import numpy as np
import pytest
from scipy import stats

from lowmem_spin.report.intervals import RowNumbers, Value, difference, notation, over, over_seeds, within_noise


def share(mean: float, count: int) -> Value:
    return Value.read(mean, math.sqrt(mean * (1 - mean) / (count - 1)), count)


@pytest.mark.parametrize(
    ("mean", "count"), [(0.0, 64), (1.0, 64), (0.02, 50), (0.99, 200), (0.5, 64), (0.97, 2400), (0.975, 40)]
)
def test_a_share_and_what_stands_beside_it_are_possible(mean: float, count: int) -> None:
    """The ends by scipy's Wilson interval."""
    low, high = stats.binomtest(round(mean * count), count, mean).proportion_ci(method="wilson")
    text = share(mean, count).text(percent=True, digits=1)
    if "±" in text:
        middle, half = map(float, text.split(" ±"))
        assert middle - half >= 0 and middle + half <= 100
    else:
        ends = text.split("[")[1].rstrip("]").split("..")
        assert text.startswith(f"{100 * mean:.1f} [") and float(ends[0]) >= 0 and float(ends[1]) <= 100
        assert [float(end) for end in ends] == pytest.approx([100 * low, 100 * high], abs=0.06)


def test_the_ends_of_what_is_no_count_are_cut_at_what_is_possible() -> None:
    assert Value(0.99, 0.01).text(percent=True, digits=1) == "99.0 [97.0..100]"
    assert Value(0.01, 0.02).text(percent=True, digits=1) == "1.0 [0..4.9]"
    assert over([Value(mean, 0.01) for mean in (0.99, 0.97, 1.0)]).text(True, 1) == "98.7 [94.9..100]"  # Student's t
    assert Value(0.99, 0.01).text(percent=True, digits=1, sign="+") == "+99.0 ±2.0"  # a difference may be anything
    assert Value(-3.0, 5.0).text(percent=False, digits=2) == "-3.00 ±9.80"
    assert Value(1.0, math.nan).text(percent=True, digits=1) == "100.0"


def test_of_two_seeds_both_values_are_shown_and_noise_is_as_before() -> None:
    two, other = over([Value(0.809, 0.01), Value(0.791, 0.01)]), {0: Value(0.7, 0), 1: Value(0.71, 0)}
    assert two.text(percent=True, digits=1) == "80.0 (79.1..80.9)" and two.interval == (0.791, 0.809)
    assert two.half == pytest.approx(stats.t.ppf(0.975, 1) * 0.009, rel=1e-4)
    apart = difference({0: Value(0.71, 0), 1: Value(0.70, 0)}, other)
    assert apart.text(percent=True, digits=1, sign="+") == "+0.0 (-1.0..+1.0)" and within_noise(apart)
    assert "±" in over([Value(mean, 0.01) for mean in (0.5, 0.6, 0.7)]).text(percent=True, digits=1)


def test_two_policies_are_compared_row_by_row_where_the_rows_are_the_same() -> None:
    """Rows that are hard for both say nothing of which is better: by scipy's standard errors."""
    rows = np.random.default_rng(0).normal(-50, 20, 48)
    better = rows + np.random.default_rng(1).normal(2, 1, 48)

    def value(numbers: np.ndarray, held_out: str = "a") -> Value:
        return Value.read(numbers.mean(), stats.sem(numbers), len(numbers), RowNumbers(held_out, numbers.tolist()))

    for seeds in ((0, 0), (0, 1)):  # held-out rows are the same for every seed
        apart = difference({seeds[0]: value(better)}, {seeds[1]: value(rows)})
        assert (apart.mean, apart.error) == pytest.approx(((better - rows).mean(), stats.sem(better - rows)))
        assert not within_noise(apart)
    for other in (value(rows, "b"), value(rows[:40]), Value(rows.mean(), float(stats.sem(rows)))):
        apart = difference({0: value(better)}, {0: other})
        assert apart.error == pytest.approx(math.hypot(stats.sem(better), other.error)) and within_noise(apart)
    alone = [Value.read(2.0, None, 1, RowNumbers("a", [2.0])), Value.read(1.0, None, 1, RowNumbers("a", [1.0]))]
    assert math.isnan(difference({0: alone[0]}, {0: alone[1]}).error)


def test_a_title_says_what_its_table_has() -> None:
    assert notation(["96.9 ±0.7", "iterate 2"]) == ""
    assert notation(["80.0 (79.1..80.9)"]) == "; (a..b): both of two seeds"
    assert notation(["+1.0 (-0.1..+2.1), within noise", "98.7 [94.9..100]"]).count(";") == 2
    assert over_seeds([3, 5]) == "95% intervals over seeds" and "of two seeds both" in over_seeds([2, 3])
