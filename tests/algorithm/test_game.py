"""Algorithm 2, against the table of policies written out by hand and counts made independently."""

from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.draws import draw_rows
from lowmem_spin.algorithm.game import health_sampling, mixture, opponents, play, reference, sampling_params
from lowmem_spin.algorithm.pair_sources import Draw, OpponentPairs, logps_spec, shares
from lowmem_spin.algorithm.source_hashes import VERSIONS
from lowmem_spin.algorithm.stages import Evaluate, Generate, Inputs, Score, Stage, Train, TrainSampler
from lowmem_spin.algorithm.touches import HeldOutPlaces, each_sample, touches
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.recipe import Evaluation, Generation, Recipe
from lowmem_spin.config.training_config import WarmStart
from lowmem_spin.runner.game_rows import prompts_again
from lowmem_spin.runner.planning.counting import GAME_KINDS, Work

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


def recipe(alpha: float = 0.95, history: int | str = 2, **game: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name_or_path": "m"},
            "data": {"path": "d.jsonl", "resample": game.pop("resample", True), "prompt_sets": game.pop("prompt_sets", None)},
            "game": {"alpha": alpha, "history": history, "pairs": 1000, **game},
        }
    )


def trained(**options: Any) -> list[Train]:
    return [stage for stage in play(recipe(**options), INPUTS) if isinstance(stage, Train)]  # type: ignore[arg-type]


def test_a_game_is_played_in_the_order_of_the_algorithm() -> None:
    stages = list(play(recipe(iterations=2), INPUTS))
    kinds = [type(stage) for stage in stages]
    assert kinds == [Evaluate, Generate, Score, Train, Evaluate, Generate, Score, Score, Train, Evaluate]
    first, second = (stage for stage in stages if isinstance(stage, Train))
    assert first.reference == {B: 1.0}
    assert first.init == B
    assert second.reference == pytest.approx({first.policy: 0.95, B: 0.05})
    assert isinstance(second.pairs, OpponentPairs)
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

    runner/planning/counting.py, which `plan` shows, has to come to the same numbers.
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
    work, held = Work(), HeldOutPlaces(np.arange(2000, 2010), np.arange(2000, 2010))
    for stages in plays:
        for stage in stages:
            work.add(stage, touches(stage, recipe(), INPUTS, held=held))
    shared = {
        kind: sum(len(unit.places) for unit in work.distinct() if unit.kind == kind) for kind in GAME_KINDS if kind != "judge"
    }
    return {kind: (shared[kind] / 1000, work.independent[kind] / 1000) for kind in GAME_KINDS if kind != "judge"}


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


def test_a_thousand_answers_to_each_row_have_numbers_of_their_own() -> None:
    """As many as game.samples may be, of rows of any of many files."""
    assert len(np.unique(each_sample(np.array([0, 1, 2**45]), 1000))) == 3000


# What each option changes, and nothing else.

# Keys of before there were other games than alpha-SPIN's: three iterates, then plain SFT on the same rows.
EARLIER = {
    "plain": (
        {},
        "5788b86f20ef0c28b306 1464484e0fa752fd1197 5cf3171ca640c5c27b51 8011f548b71269f11acb 285586e4ea2779083831 "
        "af61c982facb9e547fc2",
    ),
    "arithmetic": ({"reference": "arithmetic"}, "5788b86f20ef0c28b306 e531efbb812ad1e40f8e 9508529214cfbbc50506"),
    "slic": ({"loss": {"name": "slic"}}, "e1e7ceabdef4a5936815 c09b564cf0610e30af57 8d87772aafabb6827994"),
    "concatenated": (
        {"pairing": "concatenate", "history": "inf", "resample": False},
        "b2ad173be994b995008b 72a21fd78c785f9ba78a 7225f141c0a5d74303b5",
    ),
    "distinct": (
        {"history": 3, "weights": "distinct", "init": "base", "loss": {"name": "ipo"}},
        "49c4ca81614fc55a61fe fffe8ecd47a083b4f6b1 99c617cdbec7205cdc37",
    ),
}


@pytest.mark.parametrize("name", EARLIER)
def test_what_was_played_before_there_were_other_games_keeps_its_keys(name: str) -> None:
    options, keys = EARLIER[name]
    asked = recipe(**options).model_copy(update={"evaluation": Evaluation(compare_sft=True)})  # type: ignore[arg-type]
    inputs = Inputs("b", "data", {"engine": "hf", "dtype": "float32"}, {"engine": "hf", "dtype": "float32"})
    found = [stage.policy for stage in play(asked, inputs) if isinstance(stage, Train)]
    assert found[: len(keys.split())] == keys.split()
    assert digest(sampling_params(asked, inputs).spec("p")) == "61a822b26dce30e67d12"
    assert digest(logps_spec("p", inputs.learner)) == "7c0c7e89322b949e14ed"


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"alpha": 1.0, "loss": "sppo"}, "95513052e2b120053614 011958c3ade021427c5e aaddb1e14b2ac1414973"),
        ({"alpha": 0.5, "loss": {"name": "ipo", "tau": 0.2}}, "3635f0093624b77d828c 3628aded4263d52e1696 0acc7b417635bd43586a"),
    ],
)
def test_judged_games_of_before_a_mixture_could_answer_keep_their_keys(options: dict[str, Any], keys: str) -> None:
    asked = recipe(**CONTEST | options)
    assert [stage.policy for stage in play(asked, JUDGED) if isinstance(stage, Train)] == keys.split()


def test_drift_is_measured_on_samples_of_the_whole_policy() -> None:
    """Else the mean of their log-ratios is no KL."""
    cool = recipe().model_copy(update={"generation": Generation(temperature=0.5, top_p=0.9, top_k=3, max_new_tokens=9)})
    plain = recipe().model_copy(update={"generation": Generation(max_new_tokens=9)})
    assert health_sampling(cool, INPUTS).spec("p") == sampling_params(plain, INPUTS).spec("p")
    assert sampling_params(cool, INPUTS).spec("p") != sampling_params(plain, INPUTS).spec("p")


def changed(before: Recipe, after: Recipe, inputs: Inputs = INPUTS) -> list[bool]:
    """Which iterates are others."""
    one, two = ([s.policy for s in play(asked, inputs) if isinstance(s, Train)] for asked in (before, after))
    return [a != b for a, b in zip(one, two, strict=True)]


ORACLE = {"oracle": "function", "name": "exact_match", "content": "built in"}
JUDGED = Inputs(B, "data", INPUTS.generator, INPUTS.learner, ORACLE)
CONTEST: dict[str, Any] = {"algorithm": "sppo", "oracle": "function", "alpha": 1.0, "history": 1, "loss": "sppo"}


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"oracle": "function"}, [False, False, False]),  # it only measures
        ({"stop_when": {"kl_to_base": 1}}, [False, False, False]),
        ({"win_rates": "aggregated"}, [False, False, False]),  # of sppo
        ({"samples": 3}, [False, False, False]),
        ({"ema": "exact"}, [False, False, False]),  # of ema
        ({"reference": "ema"}, [False, True, True]),
        ({"weights": [1, 1]}, [False, False, False]),  # is uniform
        ({"weights": [3, 1]}, [False, True, True]),
        ({"base_weight": 0.25}, [False, True, True]),  # at t = 0 the base answers anyway
        ({"sampler": "rejection"}, [False, True, True]),
        ({"sampler": {"name": "rejection", "proposals": 5}}, [False, True, True]),
        ({"algorithm": "offline"}, [True, True, True]),
        ({"algorithm": "sppo", "oracle": "function"}, [True, True, True]),
    ],
)
def test_an_option_changes_the_keys_of_what_it_concerns(option: dict[str, object], expected: list[bool]) -> None:
    inputs = JUDGED if "oracle" in option else INPUTS
    assert changed(recipe(), recipe(**option), inputs) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"alpha": 0.5, "normalizer": "estimated"}, [False, True, True]),
        ({"samples": 3}, [True, True, True]),
        ({"win_rates": "aggregated"}, [True, True, True]),
        ({"loss": {"name": "sppo", "targets": "hard"}}, [True, True, True]),
        ({"loss": {"name": "sppo", "targets": "head_to_head"}}, [True, True, True]),
        ({"regularizer": {"chi2_smoothed": 0.1}}, [True, True, True]),
        ({"regularizer": {"chi2_smoothed": 0.0}}, [False, False, False]),
        ({"regularizer": {"chi2": 0.1}}, [True, True, True]),
        ({"regularizer": {"clamp": 3, "importance": "corrected"}}, [False, False, False]),  # of penalties, which there are not
        ({"regularizer": {"chi2": 0.0}}, [False, False, False]),
        ({"init": "base"}, [False, True, True]),
    ],
)
def test_an_option_of_sppo_changes_the_keys_of_what_it_concerns(option: dict[str, Any], expected: list[bool]) -> None:
    assert changed(recipe(**CONTEST), recipe(**CONTEST | option), JUDGED) == expected


def test_other_keys_are_told_apart_too() -> None:
    judged = [stage.policy for stage in play(recipe(**CONTEST), JUDGED) if isinstance(stage, Train)]
    other = Inputs(B, "data", INPUTS.generator, INPUTS.learner, {**ORACLE, "content": "edited"})
    assert not {stage.policy for stage in play(recipe(**CONTEST), other) if isinstance(stage, Train)} & set(judged)
    penalised = [recipe(**CONTEST, regularizer={"chi2": 1, **more}) for more in ({}, {"clamp": 3}, {"importance": "corrected"})]
    assert all(changed(one, two, JUDGED) == [True] * 3 for one, two in combinations(penalised, 2))
    online = {**CONTEST, "loss": "dpo", "alpha": 0.5}
    assert changed(recipe(**online), recipe(**online, normalizer="estimated"), JUDGED) == [False, True, True]
    averaged = [recipe(reference="ema", ema=kind) for kind in ("svd", "exact")]
    assert changed(averaged[0], averaged[1]) == [False, True, True]
    drawn = [recipe(sampler={"name": "smc", "proposals": count}) for count in (4, 8)]
    assert changed(drawn[0], drawn[1]) == [False, True, True]
    mixed = {digest(stage.pairs.sampling.spec(B)) for stage in play(drawn[0], INPUTS) if isinstance(stage, Generate)}
    assert mixed == {digest(sampling_params(recipe(), INPUTS).spec(B))}  # the base answers as it always does
    assert changed(recipe(sampler="smc", alpha=1.0), recipe(alpha=1.0)) == [False] * 3  # the mixture is the iterate
    warm = recipe().model_copy(update={"warm_start": WarmStart(rows=10)})
    assert next(stage.name for stage in play(warm, INPUTS) if isinstance(stage, Train)) == "warm start"
    assert not {s.policy for s in play(warm, INPUTS) if isinstance(s, Train)} & set(EARLIER["plain"][1].split())


def test_weights_and_the_bases_share_are_those_of_the_table_by_hand() -> None:
    """Of history 3 with weights 5, 3, 2, the newest first; missing iterates' parts are the base's."""
    assert opponents([T0], B, 3, [5, 3, 2]) == pytest.approx({T0: 0.5, B: 0.5})
    assert opponents([T0, T1], B, 3, [5, 3, 2]) == pytest.approx({T1: 0.5, T0: 0.3, B: 0.2})
    assert opponents([T0, T1, T2, "th3"], B, 3, [5, 3, 2]) == pytest.approx({"th3": 0.5, T2: 0.3, T1: 0.2})
    assert opponents([T0, T1], B, 2, [0, 1]) == {T0: 1.0}
    assert opponents([], B, 2, [0, 1]) == {B: 1.0}
    options: dict[str, Any] = {"base_weight": 0.25, "weights": [3, 1], "pairs": 1600}
    pairs = [stage.pairs for stage in play(recipe(**options), INPUTS) if isinstance(stage, Generate)]
    t0, t1 = (stage.policy for stage in trained(**options)[:2])
    assert isinstance(pairs[2], OpponentPairs)
    assert [pair.opponents for pair in pairs] == [  # type: ignore[union-attr]
        {B: 1.0},
        pytest.approx({t0: 0.75 * 0.75, B: 0.75 * 0.25 + 0.25}),
        pytest.approx({t1: 0.75 * 0.75, t0: 0.75 * 0.25, B: 0.25}),
    ]
    assert [(policy, len(places)) for policy, places in pairs[2].assign()] == [(t1, 900), (t0, 300), (B, 400)]
    only = [stage.pairs for stage in play(recipe(base_weight=1), INPUTS) if isinstance(stage, Generate)]
    assert [pair.opponents for pair in only] == [{B: 1.0}] * 3  # type: ignore[union-attr]


def test_no_prompt_is_in_two_iterations_of_a_split() -> None:
    ids = [f"row {n}" for n in range(60)]
    draws = [stage.pairs.draw for stage in trained(resample="split", pairs=[30, 10, 20])]
    drawn = [draw_rows(ids, asked) for asked in draws]
    assert [len(places) for places in drawn] == [30, 10, 20]
    assert sorted(place for places in drawn for place in places) == list(range(60))
    assert [place for places in drawn for place in places] == draw_rows(ids, Draw("data", 42, None, 60))
    with pytest.raises(
        InputError,
        match=r"^game.pairs: 60 prompts, 40 of them for other draws .* are needed, but there are only 59 usable rows",
    ):
        draw_rows(ids[:59], draws[2])
    assert changed(recipe(resample=False), recipe(resample="split")) == [False, True, True]  # the first takes the same rows


def launched(sets: list[list[int]], iterations: int) -> list[list[int]]:
    """The prompts of each iteration as RSPO's launchers take them, whose sets and iterations are counted from 1."""
    named = {f"iter{number}": prompts for number, prompts in enumerate(sets, 1)}
    return [named[f"iter{(i - 1) % len(sets) + 1}"] for i in range(1, iterations + 1)]


def test_prompt_sets_come_again_in_order() -> None:
    ids, options = [f"row {n}" for n in range(60)], {"resample": "split", "iterations": 7, "pairs": 20}
    cycled = [stage.pairs.draw for stage in trained(**options, prompt_sets=3)]
    drawn = [draw_rows(ids, draw) for draw in cycled]
    order = draw_rows(ids, Draw("data", 42, None, 60))
    assert drawn == launched([order[:20], order[20:40], order[40:]], 7)
    apart = [stage.pairs.draw for stage in trained(**options)]
    assert cycled[:3] == apart[:3]  # whatever comes later
    with pytest.raises(InputError, match=r"or give more data, or let those of a split come again with data.prompt_sets$"):
        draw_rows(ids, apart[3])
    assert trained(**options, prompt_sets=7) == trained(**options)


def test_sets_of_iterations_with_other_numbers_of_pairs_do_not_overlap() -> None:
    ids = [f"row {n}" for n in range(60)]
    sizes = [10, 20, 25, 5, 15]
    drawn = [draw_rows(ids, stage.pairs.draw) for stage in trained(resample="split", iterations=5, pairs=sizes, prompt_sets=2)]
    assert [len(places) for places in drawn] == sizes
    for one, other in combinations(range(5), 2):
        common = len({*drawn[one]} & {*drawn[other]})
        assert common == (min(sizes[one], sizes[other]) if one % 2 == other % 2 else 0)


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({}, [10, 25]),  # an order for each iteration
        ({"resample": False}, [25, 25]),
        ({"resample": "split"}, [55, 55]),
        ({"resample": "split", "prompt_sets": 2}, [35, 35]),
    ],
)
def test_a_samplers_own_prompts_are_not_played_with(options: dict[str, Any], starts: list[int]) -> None:
    """Neither in its iteration nor, where iterations draw from one order, in another."""
    ids, sampler = [f"row {n}" for n in range(80)], {"name": "gflownet", "prompts": 12}
    asked = {"iterations": 3, "pairs": [20, 10, 25], "history": 1, **options}
    own = list(play(recipe(**asked, sampler={**sampler, "own_prompts": True}), INPUTS))
    samplers = [stage.draw for stage in own if isinstance(stage, TrainSampler)]
    assert [draw.start for draw in samplers] == starts
    played = [{*draw_rows(ids, stage.pairs.draw)} for stage in own if isinstance(stage, Train)]
    together = {place for places in played for place in places}
    for draw, places in zip(samplers, played[1:], strict=True):
        learned = draw_rows(ids, draw)
        assert len(learned) == 12
        assert not {*learned} & (together if "resample" in options else places)
    shared = [stage for stage in play(recipe(**asked, sampler=sampler), INPUTS) if isinstance(stage, TrainSampler)]
    assert [stage.draw.start for stage in shared] == [0, 0]


def test_a_samplers_samples_are_in_its_key_unless_it_is_one() -> None:
    def samplers(**options: int) -> list[TrainSampler]:
        asked = recipe(history=1, sampler={"name": "gflownet", "epochs": 3, **options})
        return [stage for stage in play(asked, INPUTS) if isinstance(stage, TrainSampler)]

    assert samplers() == samplers(samples=1)
    assert samplers()[0].policy != samplers(samples=4)[0].policy
    assert [samplers(samples=count)[0].passes for count in (1, 4)] == [3, 12]


def test_prompts_that_come_again_are_counted() -> None:
    asked = recipe(resample="split", iterations=5, pairs=[10, 20, 25, 5, 15], prompt_sets=2, history=1)
    (line,) = prompts_again(asked, list(play(asked, INPUTS)))
    assert line == "data.prompt_sets: 2, so from iteration 2 on prompts come again: 30 of 75"  # 25 + 20 others
    for sets in (None, 5):
        plain = recipe(resample="split", iterations=5, prompt_sets=sets)
        assert prompts_again(plain, list(play(plain, INPUTS))) == []
