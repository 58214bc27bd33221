"""What lies ahead of a game, against what it computed."""

from pathlib import Path

import pytest

from helpers.games import opened
from lowmem_spin.algorithm.stages import Train
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


def test_rows_that_are_kept_to_measure_on_are_none_of_those_that_are_learned_from(tmp_path: Path) -> None:
    """The base answers all of them, at the same temperature."""
    game = opened(tmp_path, "game.iterations=1", "game.pairs=196")
    steps = steps_ahead([(game, stage, False) for stage in game.stages])
    assert [step.rows["generate"] for step in steps[:2]] == [4, 196] == [len(game.rows.held.rows), len(game.rows.pool)]


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
