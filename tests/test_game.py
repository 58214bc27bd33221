"""Algorithm 2, against the table of policies written out by hand and counts made independently."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_spin.counting import GAME_KINDS, Held, Work, needs
from lowmem_spin.game import (
    VERSIONS,
    Evaluate,
    Generate,
    Inputs,
    Score,
    Stage,
    Train,
    mixture,
    opponents,
    play,
    reference,
    sampling,
    shares,
)
from lowmem_spin.recipe import Recipe

B, T0, T1, T2 = "b", "th0", "th1", "th2"
THIRD, HALF = Fraction(1, 3), Fraction(1, 2)
TABLE = {  # t: what each history plays against
    0: {1: {B: 1}, 2: {B: 1}, 3: {B: 1}, None: {B: 1}},
    1: {1: {T0: 1}, 2: {T0: HALF, B: HALF}, 3: {T0: THIRD, B: 2 * THIRD}, None: {T0: 1}},
    2: {1: {T1: 1}, 2: {T1: HALF, T0: HALF}, 3: {T1: THIRD, T0: THIRD, B: THIRD}, None: {T1: HALF, T0: HALF}},
    3: {1: {T2: 1}, 2: {T2: HALF, T1: HALF}, 3: dict.fromkeys([T2, T1, T0], THIRD), None: dict.fromkeys([T2, T1, T0], THIRD)},
}
INPUTS = Inputs(B, "data", {"engine": "hf", "dtype": "float32"}, {"engine": "hf", "dtype": "float32"})


@pytest.mark.parametrize(("t", "history"), [*product(range(4), [1, 2, 3, None])])
def test_opponents_are_those_of_the_table(t: int, history: int | None) -> None:
    expected = {policy: float(weight) for policy, weight in TABLE[t][history].items()}
    assert opponents([T0, T1, T2][:t], B, history) == pytest.approx(expected)


def test_distinct_weights_count_the_base_once_and_differ_only_for_long_histories() -> None:
    assert opponents([T0], B, 3, "distinct") == {T0: 0.5, B: 0.5}
    assert opponents([T0], B, 2, "distinct") == opponents([T0], B, 2)


def test_reference_is_canonical() -> None:
    assert reference(T0, B, 0.75) == {T0: 0.75, B: 0.25}
    assert reference(T0, B, 1.0) == {T0: 1.0}  # SPIN: the base is not even scored
    assert reference(T0, B, 0.0) == {B: 1.0}
    assert reference(B, B, 0.3) == {B: 1.0}  # before the first iterate alpha means nothing
    assert mixture([("a", 0.5), ("b", 0.0), ("a", 0.5)]) == {"a": 1.0}


def test_opponents_refuse_no_history() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        opponents([T0], B, 0)


@given(st.integers(0, 5000), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_shares_are_exact_and_cover_every_place_once(count: int, counts: list[int]) -> None:
    weights = {f"p{index}": value / sum(counts) for index, value in enumerate(counts)}
    cut = shares(count, weights)
    assert [place for _, places in cut for place in places] == list(range(count))
    for policy, places in cut:
        assert abs(len(places) - count * weights[policy]) < 1


def recipe(alpha: float = 0.95, history: int | str = 2, **game: object) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name_or_path": "m"},
            "data": {"path": "d.jsonl", "resample": game.pop("resample", True)},
            "game": {"alpha": alpha, "history": history, "pairs": 1000, **game},
        }
    )


def trained(**options: object) -> list[Train]:
    return [stage for stage in play(recipe(**options), INPUTS) if isinstance(stage, Train)]  # type: ignore[arg-type]


def test_a_game_is_played_in_the_order_of_the_algorithm() -> None:
    stages = list(play(recipe(iterations=2), INPUTS))
    kinds = [type(stage) for stage in stages]
    assert kinds == [Evaluate, Generate, Score, Train, Evaluate, Generate, Score, Score, Train, Evaluate]
    first, second = (stage for stage in stages if isinstance(stage, Train))
    assert first.reference == {B: 1.0}
    assert first.init == B
    assert second.reference == pytest.approx({first.policy: 0.95, B: 0.05})
    assert second.pairs.opponents == {first.policy: 0.5, B: 0.5}
    assert second.init == first.policy


def test_keys_name_what_was_asked_and_nothing_else() -> None:
    keys = {(a, h): [t.policy for t in trained(alpha=a, history=h)] for a in (0.5, 1.0) for h in (1, 2, "inf")}
    assert len({key[0] for key in keys.values()}) == 1  # at t = 0 neither alpha nor history matters
    assert keys[0.5, 1][1] == keys[0.5, "inf"][1]  # at t = 1 fictitious play has one past iterate
    assert keys[0.5, 1][1] != keys[0.5, 2][1]
    assert keys[0.5, 2][1] != keys[1.0, 2][1]
    split = recipe().model_dump()
    split["training"] |= {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 1, "gradient_checkpointing": True}
    split["runtime"] |= {"scoring_batch_size": 7}
    other = [stage.policy for stage in play(Recipe.model_validate(split), INPUTS) if isinstance(stage, Train)]
    assert other == [stage.policy for stage in trained()]


def test_a_new_version_of_a_stage_kind_makes_new_iterates(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [stage.policy for stage in trained()]
    for kind in ("generate", "score", "train"):
        with monkeypatch.context() as patch:
            patch.setitem(VERSIONS, kind, 99)
            assert not set(before) & {stage.policy for stage in trained()}, kind


def test_concatenate_trains_on_the_rows_asked_for() -> None:
    last = trained(history="inf", pairing="concatenate", iterations=3)[2]
    assert last.pairs.draw.prompts == 500
    assert [len(places) for _, places in last.pairs.assign()] == [500, 500]


def work_of(stages: list[Stage]) -> dict[str, list[tuple[object, ...]]]:
    """Every unit of work of one game, at the granularity of half a prompt set: an independent count."""
    work: dict[str, list[tuple[object, ...]]] = {"generate": [], "score": [], "train": []}
    for stage in stages:
        if isinstance(stage, Generate):
            work["generate"] += _halves(stage)
        if isinstance(stage, Score):
            work["score"] += [(stage.policy, "chosen", 0), (stage.policy, "chosen", 1)]
            work["score"] += [(stage.policy, *half) for half in _halves(stage)]
        if isinstance(stage, Train):
            work["train"] += [(stage.policy, 0), (stage.policy, 1)]
    return work


def _halves(stage: Generate | Score) -> list[tuple[object, ...]]:
    return [(policy, half) for policy, rows in stage.pairs.assign() for half in sorted({row * 2 // 1000 for row in rows})]


def test_a_sweep_shares_what_it_can() -> None:
    """4 alphas, h in {1, 2}, 3 iterations, the same prompts each time: passes of the prompt set, shared of independent.

    counting.py, which `plan` shows, has to come to the same numbers.
    """
    plays = [list(play(recipe(a, h, resample=False), INPUTS)) for a in (0.8, 0.9, 0.95, 1.0) for h in (1, 2)]
    games = [work_of(stages) for stages in plays]
    counts = {}
    for kind in ("generate", "score", "train"):
        each = [game[kind] for game in games]
        counts[kind] = (len(set().union(*each)) / 2, sum(map(len, each)) / 2)  # independent runs reuse nothing
    assert counts == {"generate": (8, 24), "score": (26, 72), "train": (17, 24)}
    assert counted(plays) == counts


def counted(plays: list[list[Stage]]) -> dict[str, tuple[float, float]]:
    work, held = Work(), Held(np.arange(2000, 2010), np.arange(2000, 2010), None)
    for stages in plays:
        for _, asked in needs(stages, lambda draw: np.arange(draw.prompts), held, sampling(recipe(), INPUTS), B, {}):
            work.add(asked)
    shared = {kind: sum(len(unit.places) for unit in work.distinct() if unit.kind == kind) for kind in GAME_KINDS}
    return {kind: (shared[kind] / 1000, work.independent[kind] / 1000) for kind in GAME_KINDS}


@pytest.mark.parametrize("histories", [(1,), (2,), ("inf",), (1, 2, "inf")])
def test_counting_agrees_with_the_independent_count(histories: tuple[int | str, ...]) -> None:
    """Rows cut in sixths for this: with h = inf the third iteration has thirds, and counts in halves would not do."""
    plays = [list(play(recipe(a, h, resample=False, pairs=1200), INPUTS)) for a in (0.5, 1.0) for h in histories]
    rows: dict[str, set[tuple[object, ...]]] = {"generate": set(), "score": set(), "train": set()}
    for stages in plays:
        for stage in stages:
            if isinstance(stage, Train):
                rows["train"] |= {(stage.policy, row) for row in range(1200)}
            if isinstance(stage, Generate):
                rows["generate"] |= {(policy, row) for policy, share in stage.pairs.assign() for row in share}
            if isinstance(stage, Score):
                rejected = {(stage.policy, policy, row) for policy, share in stage.pairs.assign() for row in share}
                rows["score"] |= rejected | {(stage.policy, "chosen", row) for row in range(1200)}
    for kind, (shared, _) in counted(plays).items():
        assert shared * 1000 == len(rows[kind])
