"""Judged answers that come from a mixture, in a game on a base so small that every answer can be listed."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from helpers.games import Plain, Row, data_rows, make_micro_base, stored
from helpers.references import updates
from lowmem_spin.algorithm.pair_sources import JudgedSamples, Sampling
from lowmem_spin.algorithm.samplers.mixture import Target, sampler
from lowmem_spin.algorithm.stages import Train
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import Tokens
from lowmem_spin.common.keys import number
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.load import load_recipe
from lowmem_spin.engines.hf import HF
from lowmem_spin.report.load import read_run_results
from lowmem_spin.report.summary import verdict
from lowmem_spin.runner.open import OpenGame, SharedResources, open_game
from lowmem_spin.runner.pairs import training_pairs
from lowmem_spin.runner.run import Player
from lowmem_spin.store.rows import Prompt

PAIRS, ALPHA, TAU, CAP, END = 40, 0.6, 0.5, 2, 2
RECIPE = """
model: {{name_or_path: {folder}/base, quantization: none}}
data: {{path: {folder}/rows.jsonl}}
game:
  algorithm: sppo
  oracle: {{function: '{folder}/mine.py:score'}}
  sampler: {{name: rejection, proposals: 1}}
  mixture_alpha: 0.6
  alpha: 0.8
  samples: 3
  history: 1
  iterations: 2
  pairs: 40
  loss: {{name: ipo, tau: 0.5, targets: soft}}
generation: {{max_new_tokens: 2}}
training:
  learning_rate: 0.1
  per_device_train_batch_size: 40
  num_train_epochs: 8
  lora: {{r: 4, lora_alpha: 8, dropout: 0}}
evaluation: {{health_prompts: 4}}
output: {{dir: {folder}/run, store: {folder}/store}}
"""
SCORE = """
def score(messages, answers, reference):
    return [answer.count("a") - answer.count("d") for answer in answers]
"""


def opened(folder: Path, *overrides: str) -> OpenGame:
    recipe = load_recipe(folder / "recipe.yaml", list(overrides))
    return open_game(recipe, folder, Display(Console(quiet=True)), SharedResources(trust=Trust(given=True)))


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> OpenGame:
    folder = tmp_path_factory.mktemp("nash")
    make_micro_base(folder / "base")
    rows = [{"prompt": " ".join(letters), "completion": letters[0]} for letters in product("abcd", repeat=3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(SCORE)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    game = opened(folder)
    player = Player(game, Display(Console(quiet=True)), {})
    for stage in game.stages:
        player.play(stage)
    player.finish()
    return game


@pytest.fixture(scope="module")
def second(game: OpenGame) -> Train:
    """The training that learns from the first iterate's mixture with the base."""
    _, second = (stage for stage in game.stages if isinstance(stage, Train))
    return second


def source(second: Train) -> JudgedSamples:
    assert isinstance(second.pairs, JudgedSamples)
    return second.pairs


def test_all_answers_that_are_judged_are_draws_of_the_mixture_each_with_a_seed_of_its_own(
    game: OpenGame, second: Train
) -> None:
    first, base = source(second).policy, game.inputs.base
    ((key, (asked, answers)),) = stored(game.store.root, "mixtures").items()
    assert (asked["policy"], asked["mixture"]["base"], asked["mixture"]["alpha"]) == (first, base, ALPHA)
    rows, found = data_rows(game.store.root), {(row["prompt_id"], row["sample"]): row for row in answers}
    assert len(found) == 3 * PAIRS
    engine = game.engines.generator()
    assert isinstance(engine, HF)
    draws = sampler("rejection")(
        engine.next_token_logps([game.store.root / "adapters" / first, None]),
        [rows[prompt]["prompt"] for prompt, _ in found],
        [number(key, *name) for name in found],
        Target(ALPHA, Sampling(1.0, 1.0, None, CAP, 0, {}), frozenset({END})),
        proposals=1,
    )
    assert [row["tokens"] for row in found.values()] == [draw.tokens or [] for draw in draws]
    assert [row["finish_reason"] for row in found.values()] == [draw.finish_reason for draw in draws]


def test_many_draws_have_the_listed_probabilities_and_know_nothing_of_each_other(game: OpenGame, second: Train) -> None:
    """3,000 answers to one prompt, as two answers to each of many are drawn; 43 answers there are."""
    first, base = source(second).policy, game.recipe.model.name_or_path
    prompt = ids(game.rows.train.prompt(0))
    others = [token for token in range(7) if token != END]
    space = [(END,), *((token, END) for token in others), *product(others, repeat=2)]
    policies = Plain(Path(base), updates(game.store.root / "adapters" / first)), Plain(Path(base))
    log_p, log_b = (np.array([policy.logp(prompt, answer) for answer in space]) for policy in policies)
    mixture = np.exp(ALPHA * log_p + (1 - ALPHA) * log_b)
    z, expected = mixture.sum(), mixture / mixture.sum()
    asked = [Prompt("many", prompt, sample) for sample in range(3000)]
    ((answers),) = game.tables.answers([(first, asked)], source(second).sampling, "many")
    accepted = [tuple(ids(answer.tokens)) for answer in answers if answer.finish_reason != "rejected"]
    missing = 1 - len(accepted) / len(answers)
    assert missing == pytest.approx(1 - z, abs=4 * math.sqrt(z * (1 - z) / len(answers))) and missing > 0.1

    observed = np.array([accepted.count(answer) for answer in space])
    assert observed.sum() == len(accepted)
    assert p_value(observed, expected) > 1e-3
    for other in (log_p, log_b):  # neither policy alone
        assert p_value(observed, np.exp(other)) < 1e-6
    places = [space.index(answer) for answer in accepted]
    common = np.argsort(-expected)[:3]
    together = np.zeros((4, 4))
    for one, two in zip(places[::2], places[1::2], strict=False):
        together[tuple(int(np.where(common == place)[0][0]) if place in common else 3 for place in (one, two))] += 1
    alone = np.outer(together.sum(1), together.sum(0)) / together.sum()  # as if the one said nothing of the other
    assert stats.chi2.sf(((together - alone) ** 2 / alone).sum(), 9) > 1e-3


def ids(tokens: Tokens) -> list[int]:
    return [int(token) for token in tokens]


def p_value(observed: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square; answers that are expected fewer than 5 times are one."""
    counts = expected * observed.sum()
    rare = counts < 5
    seen, awaited = (np.append(values[~rare], values[rare].sum()) for values in (observed, counts))
    return float(stats.chisquare(seen, awaited * seen.sum() / awaited.sum()).pvalue)


def test_pairs_are_the_best_and_the_worst_where_no_answer_is_missing(game: OpenGame, second: Train) -> None:
    """By hand from the files: who is left out, win-rates, references, and the loss of the first step."""
    store, base = game.store.root, game.recipe.model.name_or_path
    ((_, (_, answers)),) = ((key, one) for key, one in stored(store, "mixtures").items())
    by_prompt: dict[str, list[Row]] = {}
    for row in sorted(answers, key=lambda row: row["sample"]):
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    pairs = training_pairs(game, second)
    prompts = [game.rows.train.ids[place] for place in game.positions(source(second).draw)]
    lacking = [sum(row["finish_reason"] == "rejected" for row in by_prompt[prompt]) for prompt in prompts]
    whole = [prompt for prompt, lacks in zip(prompts, lacking, strict=True) if not lacks]
    assert max(lacking) > 1
    assert 0 < len(whole) == len(pairs) == game.store.manifest(second.policy)["rows"] < PAIRS
    policies = Plain(Path(base), updates(store / "adapters" / source(second).policy)), Plain(Path(base))
    losses, leads = [], []
    for prompt, pair in zip(whole, pairs, strict=True):
        some = by_prompt[prompt]
        scores = [row["text"].count("a") - row["text"].count("d") for row in some]
        rates = [sum((one > two) + 0.5 * (one == two) for two in scores) / 3 for one in scores]
        best, worst = rates.index(max(rates)), 2 - rates[::-1].index(min(rates))
        assert [list(pair.chosen), list(pair.rejected)] == [some[best]["tokens"], some[worst]["tokens"]]
        assert pair.win_rates == pytest.approx((rates[best], rates[worst]))
        mine, bases = ([one.logp(pair.prompt, some[k]["tokens"]) for k in (best, worst)] for one in policies)
        reference = [0.8 * p + 0.2 * b for p, b in zip(mine, bases, strict=True)]  # alpha, not the mixture's
        assert pair.ref_logps == pytest.approx(reference, abs=1e-4)
        leads.append(rates[best] - rates[worst])
        losses.append((mine[0] - reference[0] - mine[1] + reference[1] - leads[-1] / TAU) ** 2)
    assert 0 < np.count_nonzero(leads) < len(leads)
    assert game.store.manifest(second.policy)["metrics"][0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)

    (said,) = [line for line in verdict(read_run_results(game.folder)) if line.startswith("Answers")]
    assert said.startswith("Answers for iterate 1 were drawn from mixtures by rejection: ")
    assert f"proposals accepted, {PAIRS - len(whole)} prompts left out, log Z " in said


def test_a_game_whose_every_prompt_lacks_an_answer_is_one_line(game: OpenGame) -> None:
    """A thousand answers are asked of each prompt, of one try each."""
    none = opened(game.folder.parent, "game.samples=1000", "game.sampler.proposals=1", "game.pairs=1")
    judge = [stage for stage in none.stages if type(stage).__name__ in ("Generate", "Judge")][-2:]
    player = Player(none, Display(Console(quiet=True)), {})
    with pytest.raises(InputError, match=r"^game\.sampler: every proposal for one of the 1000 answers to every prompt was"):
        for stage in [*none.stages[: none.stages.index(judge[0])], *judge]:
            player.play(stage)
