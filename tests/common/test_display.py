"""What a person is told of work under way, with and without a terminal."""

import io
import re
import time

import pytest
from rich.console import Console

from lowmem_spin.common import display as displays
from lowmem_spin.common.display import Display


class Clock:
    """time.perf_counter, as a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_the_time_left_is_arithmetic_on_what_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    display = Display(Console(file=io.StringIO()))
    display.expect([{"generate": 100}, {"train": 40}, {"generate": 100, "score": 50}, {"score": 10}])
    assert display.left() is None
    with display.stage("generate", "by base", 100) as meter:
        meter.skip(20)  # stored: neither ahead nor a measure of speed
        clock.now += 8
        meter.advance(40, 400)
        assert meter.left == 8 / 40 * 40
        assert display.left() is None  # of training and scoring nothing is known yet
        clock.now += 8
        meter.advance(40, 400)
    display.begin_step(1)
    with display.stage("train", "iterate 0", 40) as meter:
        clock.now += 6
        meter.advance(20, 900, 0.51)
        assert meter.speed() == ["loss 0.510", "150 tok/s"]
    display.begin_step(2)
    with display.stage("score", "by base", 50) as meter:
        clock.now += 5
        meter.advance(10)
        generate, score = 100 * 16 / 80, (40 + 10) * 5 / 10
        assert display.left() == pytest.approx(generate + score)
        assert meter.line() == "score by base: 10 of 50 rows, 20 s left, at most 45 s in all"
        meter.advance(40)
    with display.stage("generate", "by iterate 0", 100) as meter:
        clock.now += 1
        meter.advance(100)
    display.begin_step(3)
    with display.stage("score", "by iterate 0", 10) as meter:
        meter.skip(10)
        assert display.left() == 0
    assert "100 rows, 20 of them stored already, 16 s, 50 tok/s" in display.console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_left_of_a_game_is_no_less_than_of_the_stage_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a machine that became ten times slower: what follows goes at the average pace, what is under way at its own."""
    clock = Clock(monkeypatch)
    display = Display(Console(file=io.StringIO()))
    display.expect([{"generate": 100}, {"generate": 100}, {"generate": 50}])
    with display.stage("generate", "by base", 100) as meter:
        clock.now += 10
        meter.advance(100)
    display.begin_step(1)
    with display.stage("generate", "by iterate 0", 100) as meter:
        clock.now += 50
        meter.advance(50)
        assert meter.left == 50
        assert display.left() == pytest.approx(50 + 50 * (10 + 50) / 150)
        assert meter.line() == "generate by iterate 0: 50 of 100 rows, 50 s left, at most 70 s in all"
        meter.advance(50)


def test_without_a_terminal_a_long_stage_is_told_of_while_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(displays, "EVERY", 0.01)
    out = io.StringIO()
    display = Display(Console(file=out, width=500), gauge=lambda: ["GPU 7.1 GB"])
    with display.stage("train", "iterate 0 [x]", 50) as meter:
        meter.advance(10, 1000, 0.693)
        for _ in range(1000):  # long enough for a busy machine
            if out.getvalue().count("\n") >= 3:
                break
            time.sleep(0.01)
    lines = out.getvalue().splitlines()
    assert re.match(r"train iterate 0 \[x\]: 10 of 50 rows, loss 0\.693, [\d,]+ tok/s, GPU 7\.1 GB, (< )?\d+ s left$", lines[0])
    assert lines[-1].startswith("train iterate 0 [x]: 10 rows, < 1 s, loss 0.693")


def test_a_terminal_has_one_bar_with_the_time_left_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    display = Display(Console(file=out, width=80, force_terminal=True, color_system=None))
    display.expect([{"train": 100}])
    with display.stage("train", "iterate 0", 100) as meter:
        clock.now += 60
        meter.advance(25, 1000, 0.693)
    assert "25/100 3 min, 3 min in all, loss 0.693, 17 tok/s" in out.getvalue()


@pytest.mark.parametrize(
    ("label", "whole"),
    [
        ("iterate 0", True),
        ("held-out answers by iterate 1 of alpha-0.9", True),
        ("held-out answers by iterate 1 of alpha-0.95_seed-42_b", False),
    ],
)
def test_a_narrow_terminal_cuts_neither_the_count_nor_the_times(
    label: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    display = Display(Console(file=out, width=80, force_terminal=True, color_system=None), gauge=lambda: ["GPU 7.1 GB"])
    display.expect([{"train": 2400}])
    with display.stage("train", label, 2400) as meter:
        clock.now += 60
        meter.advance(1200, 100_000, 0.693)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", out.getvalue()).split("train ")[-1].split("\n")[0].rstrip()
    assert "1200/2400 60 s, 60 s in all" in last and len(f"train {last}") <= 80
    assert last.startswith(f"{label} ") == whole
    assert ("━" in last) == ("loss 0.693" in last) == (label == "iterate 0")  # what has room


@pytest.mark.parametrize(
    ("seconds", "said", "estimated"),
    [
        (0, "0 s", "about 0 s"),
        (0.0004, "< 1 s", "less than a second"),
        (0.99, "< 1 s", "less than a second"),
        (1, "1 s", "about 1 s"),
        (89, "89 s", "about 89 s"),
        (120, "2 min", "about 2 min"),
        (float("nan"), "?", "about ?"),
    ],
)
def test_no_time_that_is_some_is_said_to_be_none(seconds: float, said: str, estimated: str) -> None:
    assert (displays.clock(seconds), displays.about(seconds)) == (said, estimated)
