"""What lies ahead of a game, against what it computed; and what a person is told of it, with and without a terminal."""

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from helpers.games import opened
from lowmem_spin.algorithm.stages import Train
from lowmem_spin.common import display as displays
from lowmem_spin.common.display import Display
from lowmem_spin.data.formats import Conversation, conversations
from lowmem_spin.data.sources import Source
from lowmem_spin.runner.planning import estimates
from lowmem_spin.runner.planning.estimates import Lengths, Sample, find_tokenizer
from lowmem_spin.runner.planning.forecast import steps_ahead
from lowmem_spin.runner.run import Player

SPPO = ["game.algorithm=sppo", "game.alpha=1", "game.oracle=function", "game.history=1", "game.loss={name: sppo, eta: 10}"]


@pytest.mark.parametrize("overrides", [[], [*SPPO, "game.regularizer={forward_kl: 0.1}", "evaluation.compare_sft=true"]])
def test_what_is_expected_is_what_is_computed(overrides: list[str], tmp_path: Path) -> None:
    """Every step's rows by kind, in an empty store; and nothing at all once it is full."""
    game = opened(tmp_path, "game.iterations=2", "training.num_train_epochs=2", *overrides)
    expected = [step.rows for step in steps_ahead([(game, stage, False) for stage in game.stages])]
    display = game.tables.progress
    assert isinstance(display, Display)
    player = Player(game, display, {})
    for stage, rows in zip(game.stages, expected, strict=True):
        before = dict(display.rows)
        player.play(stage)
        computed = {kind: count - before.get(kind, 0) for kind, count in display.rows.items() if count > before.get(kind, 0)}
        assert computed == {kind: count for kind, count in rows.items() if count}, stage
    game.engines.pool.close()


def test_two_games_are_expected_to_share(tmp_path: Path) -> None:
    one, other = (opened(tmp_path, "game.iterations=2", f"game.alpha={alpha}") for alpha in (0.5, 0.9))
    alone = steps_ahead([(one, stage, False) for stage in one.stages])
    both = steps_ahead([(game, stage, False) for game in (one, other) for stage in game.stages])
    assert both[: len(alone)] == alone
    total = [sum(step.rows.get("train", 0) for step in steps) for steps in (alone, both)]
    first = next(step.rows["train"] for step in alone if step.rows.get("train"))
    assert total[1] == 2 * total[0] - first  # iterate 0 does not depend on alpha
    shared = next(place for place, stage in enumerate(one.stages) if isinstance(stage, Train))
    again = both[len(alone) + shared]
    assert alone[shared].makes and not again.makes and again.after == {shared}, "who asks for it too waits for who makes it"
    known = {place for place, step in enumerate(both) if step.makes}
    assert all(step.makes or step.after <= known for step in both)
    assert all(max(step.after, default=-1) < place for place, step in enumerate(both))


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
    assert "100 rows, 20 of them stored before, 16 s, 50 tok/s" in display.console.file.getvalue()  # type: ignore[attr-defined]


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
    assert re.match(r"train iterate 0 \[x\]: 10 of 50 rows, loss 0\.693, [\d,]+ tok/s, GPU 7\.1 GB, \d+ s left$", lines[0])
    assert lines[-1].startswith("train iterate 0 [x]: 10 rows, 0 s, loss 0.693")


def test_a_terminal_has_one_bar_with_the_time_left_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    display = Display(Console(file=out, width=80, force_terminal=True, color_system=None))
    display.expect([{"train": 100}])
    with display.stage("train", "iterate 0", 100) as meter:
        clock.now += 60
        meter.advance(25, 1000, 0.693)
    assert "25/100 3 min, 3 min in all, loss 0.693, 17 tok/s" in out.getvalue()


def test_lengths_of_rows_that_are_not_prepared_are_nearly_those_of_rows_that_are(tmp_path: Path) -> None:
    found, path = opened(tmp_path), tmp_path / "train.jsonl"
    prepared = Lengths.of(found.recipe, found.rows.train)
    sample = Sample()
    read = conversations(Source(str(path), None, ""), found.recipe.data, "data.path", "train", "category")
    assert len(list(sample.passing(read))) == sample.seen == len(found.rows.train)
    by_tokenizer = Lengths.sampled(found.recipe, sample, find_tokenizer(found.resolved.model))
    assert by_tokenizer.prompt == pytest.approx(prepared.prompt, rel=0.2)
    assert by_tokenizer.chosen == pytest.approx(prepared.chosen, rel=0.05)
    letters = sum(len(row.answer or "") for row in sample) / len(sample)
    assert Lengths.sampled(found.recipe, sample, None).chosen == pytest.approx(letters / 4 + 1)


def test_a_sample_is_drawn_from_the_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "SAMPLED", 50)
    sample = Sample()
    rows = [Conversation(str(number), [], "a", None, None) for number in range(1000)]
    assert list(sample.passing(rows)) == rows
    places = sorted(int(row.place) for row in sample)
    assert len(set(places)) == 50
    assert 350 < sum(places) / 50 < 650
