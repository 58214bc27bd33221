"""Games whose opponents, reference and loss are somebody's own: the stages that these make, against the built-in rules'."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_spin.algorithm.game import opponents, play, reference, reference_over_history
from lowmem_spin.algorithm.own_functions import check_inputs, in_place, iterates_before, read_opponents, read_reference
from lowmem_spin.algorithm.pair_sources import OpponentPairs
from lowmem_spin.algorithm.stages import Evaluate, Generate, Inputs, Score, Train
from lowmem_spin.config.game_config import rules_in_words
from lowmem_spin.config.loss_choices import in_words
from lowmem_spin.config.recipe import Recipe

ENGINE = {"engine": "hf", "dtype": "float32"}
OWN_OPPONENTS, OWN_REFERENCE = {"function": "own.py:f"}, {"name": "function", "function": "own.py:g"}
OWN_LOSS = {"name": "function", "function": "own.py:loss", "options": {"margin": 2.0}}


def recipe(compare_sft: bool = False, **game: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name_or_path": "m"},
            "data": {"path": "d.jsonl"},
            "game": {"pairs": 1000, "iterations": 4, **game},
            "evaluation": {"compare_sft": compare_sft},
        }
    )


def inputs(**own: Any) -> Inputs:
    return Inputs("b", "data", ENGINE, ENGINE, **own)


def said(rule: Any, *arguments: Any, iterations: int = 4) -> list[dict[str, float]]:
    """What a function that is the built-in rule would say, in another order than play's."""
    found = [rule(iterates_before(t), "base", *arguments) for t in range(iterations)]
    return [dict(sorted(mixture.items())) for mixture in found]


def previous(iterates: list[str], base: str, alpha: float) -> dict[str, float]:
    return reference(iterates[-1] if iterates else base, base, alpha)


@pytest.mark.parametrize("history", [1, 2, 3, None])
def test_own_opponents_that_say_what_history_says_are_the_same_stages(history: int | None) -> None:
    built_in = recipe(history="inf" if history is None else history, compare_sft=True)
    own = recipe(opponents=OWN_OPPONENTS, compare_sft=True)
    stages = list(play(own, inputs(opponents=said(opponents, history))))
    assert stages == list(play(built_in, inputs()))
    for one, other in zip(stages, play(built_in, inputs()), strict=True):  # the order too: it says who answers which prompts
        if isinstance(one, Generate) and isinstance(other, Generate) and isinstance(one.pairs, OpponentPairs):
            assert one.pairs.assign() == other.pairs.assign()  # type: ignore[union-attr]


@pytest.mark.parametrize("combine", ["geometric", "arithmetic"])
@pytest.mark.parametrize(("over", "rule"), [("previous", previous), ("history", reference_over_history)])
def test_an_own_reference_that_says_what_alpha_says_is_the_same_stages(combine: str, over: str, rule: Any) -> None:
    built_in = recipe(alpha=0.7, reference=combine, reference_over=over)
    own = recipe(reference={**OWN_REFERENCE, "combine": combine})
    assert list(play(own, inputs(reference=said(rule, 0.7)))) == list(play(built_in, inputs()))


def test_what_a_mixture_says_is_in_the_key_of_what_it_concerns_and_its_source_is_not() -> None:
    def trained(own: list[dict[str, float]], function: str = "own.py:f") -> list[str]:
        played = play(recipe(opponents={"function": function}), inputs(opponents=own))
        return [stage.policy for stage in played if isinstance(stage, Train)]

    words = said(opponents, 2)
    other = [*words[:3], {"base": 1.0}]
    assert trained(words) == trained(words, "elsewhere.py:h")
    assert [one == two for one, two in zip(trained(words), trained(other), strict=True)] == [True, True, True, False]


def test_exponents_are_taken_as_they_are() -> None:
    stages = list(
        play(recipe(reference=OWN_REFERENCE), inputs(reference=[{"base": 1.0}, *[{"base": 0.5, "iterate 0": 1}] * 3]))
    )
    first, *rest = [stage for stage in stages if isinstance(stage, Train)]
    assert first.reference == {"b": 1.0}
    assert [stage.reference for stage in rest] == [{first.policy: 1.0, "b": 0.5}] * 3


def losses(**changes: Any) -> list[Train]:
    known = {"content": "0" * 64, "reads": ["reference"], **changes.pop("known", {})}
    return [stage for stage in play(recipe(loss=OWN_LOSS | changes), inputs(loss=known)) if isinstance(stage, Train)]


def test_a_loss_is_known_by_its_source_its_name_and_its_options() -> None:
    first = losses()[0]
    assert losses(function="/somewhere/else/other.py:loss")[0].policy == first.policy
    for changed in (
        losses(known={"content": "1" * 64}),
        losses(function="own.py:other"),
        losses(options={"margin": 2.5}),
        [stage for stage in play(recipe(), inputs()) if isinstance(stage, Train)],
    ):
        assert changed[0].policy != first.policy
        assert changed[0].pairs.spec() == first.pairs.spec()  # only trainings are others; the base's answers are shared


def scored(*reads: str) -> list[str]:
    """Who scores the first iteration's pairs, and who the second's."""
    stages = list(play(recipe(iterations=2, loss=OWN_LOSS), inputs(loss={"content": "0" * 64, "reads": [*reads]})))
    names = {stage.policy: stage.name for stage in stages if isinstance(stage, Evaluate)}
    found, line = [], []
    for stage in stages:
        if isinstance(stage, Score):
            line.append(names[stage.policy])
        elif isinstance(stage, Train):
            found.append(" ".join(line))
            line = []
    return found


def test_only_what_a_loss_reads_is_scored() -> None:
    assert scored() == ["", ""]
    assert scored("reference") == ["base", "iterate 0 base"]
    assert scored("base") == ["base", "base"]
    assert scored("reference", "base") == ["base", "iterate 0 base"]


NAMES = ["base", "iterate 0", "iterate 1"]


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(1e-6, 1e6), min_size=1), st.permutations(NAMES))
def test_opponents_are_a_distribution_newest_first_whatever_the_order(weights: dict[str, float], order: list[str]) -> None:
    found = read_opponents({name: weights[name] for name in order if name in weights}, 2)
    assert list(found) == [name for name in ("iterate 1", "iterate 0", "base") if name in weights]
    assert sum(found.values()) == pytest.approx(1)
    total = sum(weights.values())
    assert all(found[name] == pytest.approx(weight / total) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (None, "gave None; return {policy: weight}"),
        ([("base", 1)], "gave [('base', 1)]; return {policy: weight}"),
        ({"iterate 2": 1}, "gave a weight to 'iterate 2'; the policies are base, iterate 0, iterate 1"),
        ({"": 1}, "gave a weight to ''; the policies are"),
        ({"base": -0.5}, "gave base the weight -0.5; give a finite number that is not negative"),
        ({"base": float("nan")}, "gave base the weight nan"),
        ({"base": float("inf")}, "gave base the weight inf"),
        ({"base": 10**400}, "gave base the weight 1000000000"),
        ({"base": True}, "gave base the weight True"),
        ({"base": "1"}, "gave base the weight '1'"),
        ({"base": 0, "iterate 0": 0.0}, "gave no policy a weight above 0"),
        ({}, "gave no policy a weight above 0"),
    ],
)
def test_what_is_no_mixture_is_one_line(given: Any, line: str) -> None:
    for read in (read_opponents, lambda mixture, t: read_reference(mixture, t, "geometric")):
        with pytest.raises(ValueError) as error:
            read(given, 2)
        assert str(error.value).startswith(line)


def test_an_arithmetic_reference_is_a_distribution() -> None:
    assert read_reference({"base": np.float64(0.25), "iterate 0": 0.75}, 1, "arithmetic") == {"iterate 0": 0.75, "base": 0.25}
    assert read_reference({"base": 0.25}, 1, "geometric") == {"base": 0.25}
    with pytest.raises(ValueError, match=r"gave weights that sum to 0\.5; those of an arithmetic mixture have to sum to 1"):
        read_reference({"base": 0.25, "iterate 0": 0.25}, 1, "arithmetic")


def test_a_record_without_what_functions_said_is_refused() -> None:
    for game, own in (
        (recipe(opponents=OWN_OPPONENTS), {}),
        (recipe(opponents=OWN_OPPONENTS), {"opponents": said(opponents, 2)[:3]}),
        (recipe(opponents=OWN_OPPONENTS), {"opponents": [{"iterate 7": 1}] * 4}),
        (recipe(reference=OWN_REFERENCE), {"opponents": said(opponents, 2)}),
        (recipe(reference=OWN_REFERENCE), {"reference": "words"}),
        (recipe(loss=OWN_LOSS), {}),
        (recipe(loss=OWN_LOSS), {"loss": {"content": "0" * 64}}),
    ):
        with pytest.raises(ValueError, match=r"^(inputs\.|gave a weight)"):
            check_inputs(game.game, inputs(**own))
    with pytest.raises(ValueError, match="returned nothing for iteration 0"):
        in_place(None, [], "b")
    check_inputs(recipe().game, inputs())


@pytest.mark.parametrize(
    ("game", "line"),
    [
        (
            {"opponents": OWN_OPPONENTS, "history": 3},
            "game.history: 3 has no effect, as game.opponents is a function of your own",
        ),
        ({"opponents": OWN_OPPONENTS, "weights": "distinct"}, "game.weights: 'distinct' has no effect, as game.opponents"),
        ({"opponents": OWN_OPPONENTS, "base_weight": 0.1}, "game.base_weight: 0.1 has no effect, as game.opponents"),
        ({"reference": OWN_REFERENCE, "alpha": 0.5}, "game.alpha: 0.5 has no effect, as game.reference is a function"),
        ({"reference": OWN_REFERENCE, "reference_over": "history"}, "game.reference_over: 'history' has no effect"),
        ({"reference": OWN_REFERENCE, "loss": "slic"}, "game.reference: a function has no effect, as game.loss slic"),
        ({"opponents": OWN_OPPONENTS, "algorithm": "offline"}, "game.opponents: a function has no effect, as offline has no"),
        ({"loss": OWN_LOSS, "regularizer": {"chi2": 1}}, "game.regularizer: chi2 can only be added to the sppo loss"),
    ],
)
def test_settings_without_effect_beside_own_functions_are_refused(game: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=r"no effect|can only be added") as error:
        recipe(**game)
    assert line in str(error.value)


def test_alpha_has_an_effect_beside_an_own_reference_where_opponents_are_mixtures() -> None:
    own = inputs(reference=said(previous, 0.95))
    one, other = (list(play(recipe(reference=OWN_REFERENCE, sampler="snis", alpha=a), own)) for a in (0.5, 0.6))
    assert one != other


def test_titles_name_own_functions() -> None:
    own = recipe(loss=OWN_LOSS | {"function": "/home/me/own.py:loss"}, opponents=OWN_OPPONENTS, reference=OWN_REFERENCE)
    game = own.game.model_dump()
    assert in_words(game["loss"]) == "own.py:loss, margin 2.0"
    assert rules_in_words(game) == ["reference own.py:g, combine geometric", "opponents own.py:f"]
    assert rules_in_words(recipe(alpha=0.5, history="inf").game.model_dump()) == ["alpha 0.5", "history inf"]
