"""Preference oracles and win rates, against closed forms and a second implementation."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

from helpers.judging_models import make_reward_model
from lowmem_spin.algorithm.preferences import Comparison, best_and_worst, of_rewards, of_scores, win_rates
from lowmem_spin.common.errors import InputError
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.oracles.function import Function
from lowmem_spin.engines.oracles.reward_model import RewardModel

ROCK_PAPER_SCISSORS = np.array([[0.5, 0.1, 0.9], [0.9, 0.5, 0.1], [0.1, 0.9, 0.5]])  # each beats the one before it
MESSAGES = [{"role": "user", "content": "a b"}]


def test_win_rates_are_means_over_all_answers_and_the_aggregated_ones_forget_cycles() -> None:
    """A fourth answer beats rock surely and else draws. Pairwise it is best; by mean log-odds too; but among the three in a
    cycle the aggregated rates differ only through it, though who beats whom is as one-sided as before."""
    assert win_rates(ROCK_PAPER_SCISSORS, "pairwise") == pytest.approx([0.5] * 3)
    assert win_rates(ROCK_PAPER_SCISSORS, "aggregated") == pytest.approx([0.5] * 3)
    lopsided = np.array([[0.5, 0.55, 0.55, 0.001], [0.45, 0.5, 0.5, 0.5], [0.45, 0.5, 0.5, 0.5], [0.999, 0.5, 0.5, 0.5]])
    by_hand = lopsided.sum(1) / 4
    assert win_rates(lopsided, "pairwise") == pytest.approx(by_hand)
    strengths = [np.mean([np.log(p / (1 - p)) for p in row]) for row in lopsided]
    expected = [np.mean([1 / (1 + np.exp(s - mine)) for s in strengths]) for mine in strengths]
    assert win_rates(lopsided, "aggregated") == pytest.approx(expected)
    transitive = of_rewards([0.3, -0.2, 1.0])
    assert win_rates(transitive, "aggregated") == pytest.approx(win_rates(transitive, "pairwise"))
    assert abs(win_rates(lopsided, "aggregated") - by_hand).max() > 0.1  # the transitive-score defect


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_scores_and_rewards_give_preferences(values: list[float]) -> None:
    for matrix in (of_scores(values), of_rewards(values)):
        assert matrix + matrix.T == pytest.approx(np.ones_like(matrix))
        best, worst = best_and_worst(win_rates(matrix, "pairwise"))
        assert best != worst
        assert values[best] >= max(values) - 1e-9 and values[worst] <= min(values) + 1e-9


def test_rounding_breaks_no_tie() -> None:
    """Rows of tenths with one sum: as floats, 2.3 in one order and a little more in another."""
    matrix = np.array([[0.5, 0.3, 0.5, 0.2], [0.7, 0.5, 0.1, 0.6], [0.5, 0.9, 0.5, 0.4], [0.8, 0.4, 0.6, 0.5]])
    rates = win_rates(matrix, "pairwise")
    assert rates[3] > rates[2] == pytest.approx(rates[3])
    assert best_and_worst(rates) == (2, 0)
    assert best_and_worst(np.full(4, 0.5)) == (0, 3)


def test_a_function_scores_or_prefers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def longer(messages, answers, reference):\n    return [len(a) for a in answers]\n"
        "def cycle(messages, answers, reference):\n    return [[.5, .1, .9], [.9, .5, .1], [.1, .9, .5]]\n"
        "def wrong(messages, answers, reference):\n    return [[.5, .4], [.4, .5]]\n"
        "def broken(messages, answers, reference):\n    return 1 / 0\n"
    )
    question = Comparison(MESSAGES, ["x", "xyz", "xy"], "xy")
    (matrix,) = Function("mine.py:longer", tmp_path).prefer([question])
    assert matrix.tolist() == [[0.5, 0, 0], [1, 0.5, 1], [1, 0, 0.5]]
    assert Function("exact_match", tmp_path).prefer([question])[0].tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 1, 0.5]]
    assert Function("mine.py:cycle", tmp_path).prefer([question])[0].tolist() == ROCK_PAPER_SCISSORS.tolist()
    before = Function("mine.py:longer", tmp_path).spec()
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "\n")
    assert Function("mine.py:longer", tmp_path).spec() != before
    for name, line in [
        ("mine.py:wrong", "for 3 answers it gave an array of shape"),
        ("mine.py:broken", "failed in line 8: ZeroDivisionError"),
        ("mine.py:missing", "has no function 'missing'"),
        ("nowhere.py:f", "is neither exact_match nor file.py:function"),
    ]:
        with pytest.raises(InputError, match=f"^game.oracle.function: .*{line}") as error:
            Function(name, tmp_path).prefer([question])
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reward_model(tmp_path_factory.mktemp("reward"))


def test_a_reward_model_is_bradley_terry_on_its_own_scores(reward_folder: Path) -> None:
    """Batched and padded, against one conversation at a time through the plain model."""
    answers = ["c", "d d d", "a b c d", "b"]
    oracle = RewardModel(Source(str(reward_folder), None, "r"), "cpu", "float32", batch_size=3, max_length=64)
    (matrix,) = oracle.prefer([Comparison(MESSAGES, answers, "c")])
    model = LlamaForSequenceClassification.from_pretrained(reward_folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(reward_folder)
    rewards = []
    for answer in answers:
        text = f"user a b assistant {answer} "
        with torch.no_grad():
            rewards.append(model(**tokenizer(text, return_tensors="pt")).logits.item())
    expected = [[1 / (1 + np.exp(theirs - mine)) for theirs in rewards] for mine in rewards]
    assert matrix == pytest.approx(np.array(expected), abs=1e-5)
    assert len({round(reward, 3) for reward in rewards}) == 4
    assert oracle.model(torch.ones(1, 3, dtype=torch.long)).past_key_values is None  # nobody reads them


@pytest.mark.parametrize(
    ("template", "line"), [("{{ 1 / 0 }}", "division by zero"), ("{{ 'a' * 10 ** 10 }}", "1 GB of memory")]
)
def test_a_reward_models_template_that_fails_is_one_line(reward_folder: Path, tmp_path: Path, template: str, line: str) -> None:
    folder = shutil.copytree(reward_folder, tmp_path / "reward")
    (folder / "chat_template.jinja").write_text(template)
    oracle = RewardModel(Source(str(folder), None, "r"), "cpu", "float32", 3, 64)
    with pytest.raises(InputError, match=rf"^game\.oracle\.model: .*{line}"):
        oracle.prefer([Comparison(MESSAGES, ["a"], "a")])


def test_what_is_no_reward_model_is_one_line(quickstart: Path) -> None:
    with pytest.raises(InputError, match=r"^game\.oracle\.model: ") as error:
        RewardModel(Source(str(quickstart / "base"), None, "r"), "cpu", "float32", 4, 64).prefer(
            [Comparison(MESSAGES, ["a"], "a")]
        )
    assert "\n" not in str(error.value)
