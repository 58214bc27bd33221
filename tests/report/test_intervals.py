"""How an uncertain number is written: nothing impossible, and no interval from two values."""

import math

import pytest
from scipy import stats

from lowmem_spin.report.intervals import Value, difference, notation, over, over_seeds, within_noise


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


def test_a_title_says_what_its_table_has() -> None:
    assert notation(["96.9 ±0.7", "iterate 2"]) == ""
    assert notation(["80.0 (79.1..80.9)"]) == "; (a..b): both of two seeds"
    assert notation(["+1.0 (-0.1..+2.1), within noise", "98.7 [94.9..100]"]).count(";") == 2
    assert over_seeds([3, 5]) == "95% intervals over seeds" and "of two seeds both" in over_seeds([2, 3])
