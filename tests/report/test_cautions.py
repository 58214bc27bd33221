"""Each caution on made-up numbers that deserve it and on such that do not, the quickstart's own among these."""

import math
from pathlib import Path
from typing import Any

import pytest

from lowmem_spin.algorithm.roles import role_of_name
from lowmem_spin.report.cautions import FAR, caution_lines
from lowmem_spin.report.intervals import Value
from lowmem_spin.report.results import PointStatus, PolicyResults, RunResults, SweepFile, SweepResults

# As the quickstart has them: log-prob of the data's answers, KL to the base, tokens; and one training's reward accuracies.
QUICKSTART = {"base": (-1.41, 0.0, 6.4), "iterate 0": (-1.07, 0.05, 5.8), "iterate 1": (-0.58, 0.41, 4.9)}
QUICKSTART |= {"iterate 2": (-0.24, 1.32, 4.1), "plain SFT": (-0.11, 1.13, 4.1)}
ACCURACIES = [
    0.0,
    0.0,
    0.91,
    0.97,
    0.88,
    0.91,
    0.97,
    0.94,
    1.0,
    0.72,
    0.66,
    0.84,
    0.91,
    0.75,
    0.94,
    0.84,
    0.91,
    0.62,
    0.94,
    0.84,
]
ACCURACIES += [0.94, 0.91, 0.78, 1.0, 0.84, 0.94, 0.97, 1.0, 0.91, 0.94, 0.66, 0.75]


def policy(
    name: str, numbers: tuple[float, float, float], cut: float = 0.0, exact: bool = True, gain: Value | None = None
) -> Any:
    logp, kl, tokens = numbers
    values = {"chosen_logp": Value(logp, 0.02), "kl_to_base": Value(kl, 0.05), "length": Value(tokens, 0.1)}
    values |= {"truncated": Value(cut, 0.01), "gain": gain or Value(0.1, 0.01)} | (
        {"exact_match": Value(0.5, 0.01)} if exact else {}
    )
    return PolicyResults(name, name, role_of_name(name), values, {}, [])


def run(policies: list[PolicyResults], accuracies: list[float] | None = None, tokens: int | None = None) -> RunResults:
    steps = [{"step": place + 1, "loss": 0.5, "rewards/accuracies": one} for place, one in enumerate(accuracies or [])]
    trainings: dict[str, Any] = {"iterate 0": {"metrics": steps}} if accuracies else {}
    recipe = {"generation": {"max_new_tokens": 64}}
    return RunResults(
        folder=Path("run"),
        recipe=recipe,
        recipe_text="",
        record={},
        policies=policies,
        trainings=trainings,
        missing=[],
        benchmarks=[],
        answer_tokens=tokens,
    )


def quickstart(**changed: Any) -> RunResults:
    """The quickstart's game, the numbers of some of its policies changed."""
    return run([changed.get(name.replace(" ", "_"), policy(name, numbers)) for name, numbers in QUICKSTART.items()], ACCURACIES)


def test_the_quickstart_deserves_none() -> None:
    assert caution_lines(quickstart()) == []


def trained(margins: list[float], last: list[float], beta: float | None = 0.1) -> RunResults:
    """A training with these margins, in nats, of whole answers from the reference and of their last tokens."""
    records = [
        {"step": step, "loss": 0.5, "logps/chosen_last": end - 3, "logps/rejected_last": -3, "rewards/margins": margin}
        for step, (margin, end) in enumerate(zip([(beta or 1.0) * margin for margin in margins], last, strict=True))
    ]
    loss = {"name": "x"} | ({} if beta is None else {"beta": beta})
    results = quickstart()
    results.trainings["iterate 1"] = {"metrics": records, "asked": {"loss": loss}}
    return results


@pytest.mark.parametrize(
    ("margins", "last", "said"),
    [
        ([0, 2, 4, 4], [-7, -5.2, -3.5, -3.5], True),  # grown by 4, of which 3.5 is theirs
        ([0, 2, 4, 4], [-7, -6, -5, -5], False),
        ([5, 7, 9, 9], [0, 0, 3.9, 3.9], True),  # from a reference that is not where the training began
        ([0, 0.1, 0.5, 0.9], [0, 0, 0.9, 0.9], False),  # little has been learned of anything
        ([0], [0], False),
    ],
)
@pytest.mark.parametrize("beta", [0.1, None])
def test_last_tokens_that_alone_win_the_game_are_said(
    margins: list[float], last: list[float], said: bool, beta: float | None
) -> None:
    lines = caution_lines(trained(margins, last, beta))
    assert len(lines) == said
    grown, own = margins[-1] - margins[0], last[-1] - last[0]
    assert all(f"grew by {grown:.1f} nats" in line and f"last tokens alone by {own:.1f}:" in line for line in lines)


def test_samples_that_are_cut_are_said_with_the_length_that_would_do() -> None:
    policies = [policy("base", (-120, 0, 60), cut=0.94), policy("iterate 0", (-96, 9, 64), cut=1.0)]
    (line,) = caution_lines(run(policies, tokens=212))
    assert "truncated at generation.max_new_tokens 64 (94% of base's, 100% of iterate 0's)" in line
    assert line.endswith("95% of the data's answers have up to 212 tokens: set it to 212.")
    (short,) = caution_lines(run(policies, tokens=40))
    assert "up to 40 tokens: so it is not too short, but these policies do not end; a warm_start teaches that" in short
    (unknown,) = caution_lines(run(policies))
    assert "raise it" in unknown
    (barely,) = caution_lines(run([policy("base", (-120, 0, 60), cut=0.31), policy("iterate 0", (-96, 9, 64), cut=0.3)]))
    assert "(31% of base's)" in barely
    assert caution_lines(run([policy("base", (-120, 0, 60), cut=0.3), policy("iterate 0", (-96, 9, 64), cut=0.29)])) == []


@pytest.mark.parametrize(
    ("accuracies", "first"),
    [
        ([0.0, 0.6, *[1.0] * 6], 3),  # what a real model's game on cut samples had
        ([0.5, 1.0, *[1.0] * 38], 2),
        ([*[0.5] * 3, *[1.0] * 37], 4),
        ([*[0.5] * 4, *[1.0] * 36], None),  # a tenth is over
        ([0.0, *[1.0] * 30, 0.9, *[1.0] * 8], None),
        ([0.0, 1.0, 1.0, 1.0], None),  # too few steps to say
        ([1.0, *ACCURACIES], None),
    ],
)
def test_pairs_that_are_all_told_apart_at_once_are_said(accuracies: list[float], first: int | None) -> None:
    lines = caution_lines(run([policy("base", (-5, 0, 9)), policy("iterate 0", (-4, 1, 9))], accuracies))
    assert len(lines) == (first is not None)
    if first is not None:
        assert f"iterate 0 tells all pairs apart from step {first} of {len(accuracies)} on (reward accuracy 1)" in lines[0]


def test_steps_without_an_accuracy_do_not_count() -> None:
    told = run([policy("base", (-5, 0, 9)), policy("iterate 0", (-4, 1, 9))], [0.0, 0.5, *[1.0] * 8])
    told.trainings["iterate 0"]["metrics"].append({"step": 10, "rewards/accuracies": None})
    assert len(caution_lines(told)) == 1


def test_a_drift_that_the_datas_answers_have_not_gained_by_is_said() -> None:
    (line,) = caution_lines(quickstart(iterate_2=policy("iterate 2", (-0.9, 15.3, 4.1))))
    assert line.startswith("iterate 2 is 15.3 nats from the base, and the data's answers are 0.5 nats likelier to it")
    assert caution_lines(quickstart(iterate_2=policy("iterate 2", (-0.9, 9.9, 4.1)))) == []
    learned = [policy("base", (-120, 0, 60)), policy("iterate 0", (-78, 60, 64))]  # twice as far as the data's answers gained
    assert caution_lines(run(learned)) == []
    assert len(caution_lines(run([learned[0], policy("iterate 0", (-110, 60, 64))]))) == 1
    count = 60_000
    assert math.log(count) - (count - 1) / count == pytest.approx(FAR, abs=0.01)


def test_a_drift_on_prompts_alone_is_held_against_the_answers_length() -> None:
    def alone(kl: float) -> list[str]:
        policies = [policy("base", (-1, 0, 20), exact=False), policy("iterate 0", (-1, kl, 20), exact=False)]
        for one in policies:
            one.values.pop("chosen_logp")
            one.values["win_rate_to_base"] = Value(0.5, 0.01)
        return caution_lines(run(policies))

    assert alone(19.0) == []
    (line,) = alone(21.0)
    assert "iterate 0 is 21.0 nats from the base, over a nat for each of its 20 tokens" in line


def test_answers_of_the_data_that_become_less_likely_are_said() -> None:
    (line,) = caution_lines(quickstart(iterate_2=policy("iterate 2", (-1.9, 1.3, 4.1))))
    assert "less likely than they are to the base (in nats: iterate 2 -0.49 ±0.06)" in line
    assert caution_lines(quickstart(iterate_2=policy("iterate 2", (-1.43, 1.3, 4.1)))) == []  # within noise
    gains = {"noise": Value(-3.0, 2.0), "fall": Value(-3.0, 1.0)}  # row by row, where the log-prob is the score
    found = {
        name: caution_lines(
            run([policy("base", (-120, 0, 60), exact=False), policy("iterate 0", (-123, 1, 60), exact=False, gain=gain)])
        )
        for name, gain in gains.items()
    }
    assert found["noise"] == [] and "iterate 0 -3.00 ±1.96" in found["fall"][0]


def test_a_game_with_a_warm_start_is_held_against_that_and_not_against_the_base() -> None:
    """The base has no part in it: that its samples are cut harms no game, and what was learned before is no gain of one."""
    policies = [policy("base", (-54, 0, 45), cut=0.4), policy("warm start", (-41, 9, 15)), policy("iterate 0", (-45, 9, 15))]
    (line,) = caution_lines(run(policies, tokens=29))
    assert "less likely than they are to the warm start (in nats: iterate 0 -4.00 ±0.06)" in line
    policies[1:] = [policy("warm start", (-41, 9, 15), cut=0.4), policy("iterate 0", (-41, 9, 15))]
    (line,) = caution_lines(run(policies, tokens=29))
    assert "(40% of warm start's)" in line and "; a longer warm_start teaches that" in line


def test_the_first_game_of_a_sweep_with_a_trouble_stands_for_the_others() -> None:
    fallen = quickstart(iterate_2=policy("iterate 2", (-1.9, 1.3, 4.1)))
    games = {"a": quickstart(), "b": fallen, "c": fallen}
    points = [PointStatus(name=name, values={"seed": 0}, dir=name, status="finished") for name in games]
    sweep = SweepResults(Path(), SweepFile(recipe="r", axes={}, seeds=[0], points=points), games)
    (line,) = caution_lines(sweep)
    assert line.startswith("b: The data's own") and line.endswith("So in 2 of 3 games.")
