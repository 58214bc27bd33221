"""Games of every kind, played small; what they learned from is computed again from the store's files alone."""

import json
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from helpers.forked import Command
from helpers.games import (
    PAIRS,
    Plain,
    Preference,
    Row,
    contests,
    data_rows,
    exact,
    judged,
    of_policy,
    open_hf,
    opened,
    pairwise_rates,
    played,
    save_slot,
    stored,
    tiny,
)
from helpers.references import updates
from lowmem_spin.algorithm.pair_sources import DatasetPairs, OpponentPairs, Sampling
from lowmem_spin.algorithm.samplers.mixture import Target, sampler
from lowmem_spin.algorithm.stages import Score, Train
from lowmem_spin.common.keys import number
from lowmem_spin.engines.oracles.function import Function
from lowmem_spin.engines.oracles.reward_model import RewardModel
from lowmem_spin.engines.pool import EnginePool
from lowmem_spin.report.load import read_run_results
from lowmem_spin.report.summary import verdict
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.pairs import training_pairs

ETA, K = 3.0, 4
CONTEST = [
    "game.algorithm=sppo",
    "game.alpha=1",
    "game.history=1",
    f"game.samples={K}",
    f"game.loss={{name: sppo, eta: {ETA}}}",
]
CYCLE = """
def cycle(messages, answers, reference):
    kinds = [len(answer) % 3 for answer in answers]
    return [[0.5 if a == b else 0.9 if (a - b) % 3 == 1 else 0.1 for b in kinds] for a in kinds]
"""


def cycle(mine: Row, other: Row, _: str) -> float:
    """Lengths play rock, paper, scissors."""
    beats = {(1, 0), (2, 1), (0, 2)}
    one, two = len(mine["text"]) % 3, len(other["text"]) % 3
    return 0.9 if (one, two) in beats else 0.1 if (two, one) in beats else 0.5


def strengths_of(matrix: list[list[float]]) -> list[float]:
    odds = [[math.log(min(max(p, 1e-6), 1 - 1e-6) / (1 - min(max(p, 1e-6), 1 - 1e-6))) for p in row] for row in matrix]
    return [sum(row) / len(row) for row in odds]


def aggregated_rates(matrix: list[list[float]]) -> list[float]:
    """The official code's: a strength for each answer, then Bradley-Terry."""
    strengths = strengths_of(matrix)
    return [sum(1 / (1 + math.exp(other - mine)) for other in strengths) / len(strengths) for mine in strengths]


def met(store: Path, policy: str, told: dict[str, tuple[Row, Row]], prefer: Preference, transitive: bool) -> dict[str, float]:
    """{prompt id: how likely its best answer beats its worst}."""
    rows, found = data_rows(store), {}
    for prompt, answers in contests(store, policy).items():
        best, worst = ({answer["side"]: n for n, answer in enumerate(answers)}[side["side"]] for side in told[prompt])
        matrix = [[prefer(one, two, rows[prompt]["completion"]) for two in answers] for one in answers]
        strengths = strengths_of(matrix)
        odds = strengths[best] - strengths[worst]
        found[prompt] = 1 / (1 + math.exp(-odds)) if transitive else matrix[best][worst]
    return found


def trained(game: OpenGame) -> list[Train]:
    return [stage for stage in game.stages if isinstance(stage, Train) and stage.name.startswith("iterate")]


def logp(store: Path, policy: str) -> dict[tuple[str, str], float]:
    """{(prompt id, completion): log-prob} under a policy."""
    return {(row["prompt_id"], row["completion"]): row["logp"] for row in of_policy(store, "logps", policy)}


def ids(tokens: Sequence[int] | np.ndarray | None) -> list[int]:
    return [] if tokens is None else [int(token) for token in tokens]


def manifest_loss(game: OpenGame, stage: Train) -> float:
    """The loss that training logged at its first step, which is over all pairs."""
    return game.store.manifest(stage.policy)["metrics"][0]["loss"]


@pytest.fixture(scope="module")
def rspo(tmp_path_factory: pytest.TempPathFactory) -> OpenGame:
    """From the last iterate, judged by exact match."""
    penalties = "game.regularizer={forward_kl: 0.1, reverse_kl: 0.5, clamp: 0.02}"
    return played(tmp_path_factory.mktemp("rspo"), *CONTEST, "game.oracle=function", penalties)


@pytest.fixture(scope="module")
def cyclic(tmp_path_factory: pytest.TempPathFactory) -> OpenGame:
    """From the base every time, judged by a preference with cycles, win-rates aggregated, penalties corrected."""
    folder = tmp_path_factory.mktemp("cyclic")
    (folder / "mine.py").write_text(CYCLE)
    penalties = (
        "game.regularizer={chi2: 0.2, forward_kl: 0.1, reverse_kl_no_entropy: 0.01, entropy: 0.02, importance: corrected}"
    )
    oracle = "game.oracle={function: 'mine.py:cycle'}"
    return played(folder, *CONTEST, oracle, penalties, "game.init=base", "game.win_rates=aggregated")


@pytest.mark.parametrize("t", [0, 1])
@pytest.mark.parametrize(
    ("name", "prefer", "rates"), [("rspo", exact, pairwise_rates), ("cyclic", cycle, aggregated_rates)], ids=["rspo", "cyclic"]
)
def test_sppo_learns_from_what_its_files_say(
    name: str, prefer: Preference, rates: Callable[..., list[float]], t: int, request: pytest.FixtureRequest
) -> None:
    """Preferences, win-rates, the best and the worst, their log-probs, and the loss of the first step."""
    game: OpenGame = request.getfixturevalue(name)
    store, stage, base = game.store.root, trained(game)[t], game.inputs.base
    sampler = trained(game)[0].policy if t else base
    told, by_sampler, by_base = judged(store, sampler, prefer, rates), logp(store, sampler), logp(store, base)
    start = by_sampler if game.recipe.game.init == "previous" else by_base
    pairs = training_pairs(game, stage)
    prompts = [game.rows.train.ids[place] for place in game.positions(stage.pairs.draw)]
    assert set(prompts) == told.keys() and len(pairs) == PAIRS
    head_to_head = met(store, sampler, told, prefer, transitive=name == "cyclic")
    losses = []
    for prompt, pair in zip(prompts, pairs, strict=True):
        sides = told[prompt]
        assert list(pair.prompt) == data_rows(store)[prompt]["prompt"]
        assert [list(pair.chosen), list(pair.rejected)] == [side["tokens"] for side in sides]
        assert pair.win_rates == pytest.approx([side["rate"] for side in sides])
        assert pair.head_to_head == pytest.approx(head_to_head[prompt])
        assert pair.ref_logps == pytest.approx([by_sampler[prompt, side["side"]] for side in sides])
        assert pair.base_logps == pytest.approx([by_base[prompt, side["side"]] for side in sides])
        loss = 0.0
        for side in sides:
            p, ref, mu = (logps[prompt, side["side"]] for logps in (start, by_sampler, by_base))
            loss += (p - ref - ETA * (side["rate"] - 0.5)) ** 2 / 2
            if name == "rspo":
                loss += 0.1 * math.exp(min(mu - p, 0.02)) + 0.5 * (p - mu) ** 2
            else:
                rho = math.exp(p - ref)
                loss += rho * (0.2 * math.exp(min(p - mu, 10)) + 0.1 * math.exp(min(mu - p, 10)) - 0.01 * p * mu + 0.02 * p**2)
        losses.append(loss)
    assert manifest_loss(game, stage) == pytest.approx(sum(losses) / PAIRS, rel=1e-4)
    assert sum(best["rate"] > worst["rate"] + 0.1 for best, worst in told.values()) >= 3


def test_the_tables_have_the_log_probs_of_transformers_and_the_judgements_of_the_oracle(
    rspo: OpenGame, quickstart: Path
) -> None:
    store, first = rspo.store.root, trained(rspo)[0]
    plain = Plain(quickstart / "base", updates(store / "adapters" / first.policy))
    rows, found = data_rows(store), logp(store, first.policy)
    told = judged(store, first.policy, exact, pairwise_rates)
    for prompt, sides in list(told.items())[:4]:
        for side in sides:
            assert found[prompt, side["side"]] == pytest.approx(plain.logp(rows[prompt]["prompt"], side["tokens"]), abs=1e-4)
    both = [key for key, (asked, _) in stored(store, "judgements").items() if len(asked["answers"]) == K]
    assert len(both) == 2  # a contest each iteration; the others are of two policies' samples
    tables = {
        answers[0]["table"] for policy in (rspo.inputs.base, first.policy) for answers in contests(store, policy).values()
    }
    for key in both:
        asked, judgements = stored(store, "judgements")[key]
        (table,) = {name.split("/")[0] for name in asked["answers"]}
        assert table in tables and asked["answers"] == [f"{table}/{k}" for k in range(K)]
        assert len(judgements) == PAIRS


class Tired:
    """An engine that counts how often it has to give way."""

    rests = 0

    def release(self) -> None:
        self.rests += 1


def test_engines_give_way_to_a_judge_that_takes_memory_and_to_no_other(rspo: OpenGame, tmp_path: Path) -> None:
    for judge, rests in ((Function("exact_match", tmp_path), 0), (RewardModel(rspo.resolved.model, "cpu", "float32", 1, 9), 1)):
        engine = Tired()
        engines = replace(rspo.engines, judge=judge, pool=EnginePool({"hf": engine}, {"hf": ""}))
        assert engines.oracle() is judge
        assert engine.rests == rests


def test_answers_of_one_prompt_are_drawn_apart(rspo: OpenGame) -> None:
    answers = contests(rspo.store.root, rspo.inputs.base)
    assert sum(len({tuple(row["tokens"]) for row in rows}) > 1 for rows in answers.values()) > PAIRS / 2


def test_the_win_rates_of_health_are_the_oracles_on_held_out_samples(rspo: OpenGame) -> None:
    """The iterate's sample against the base's to the same held-out prompt."""
    store, iterate = rspo.store.root, trained(rspo)[1].policy
    rows = data_rows(store)
    (record,) = [record for record in metrics(rspo) if record["policy"] == iterate]
    samples = {
        policy: {row["prompt_id"]: row for row in of_policy(store, "completions", policy)}
        for policy in (iterate, trained(rspo)[0].policy, rspo.inputs.base)
    }
    held = samples[iterate].keys()
    assert len(held) == 4 and not held & contests(store, rspo.inputs.base).keys()
    for name, other in (("win_rate_to_base", rspo.inputs.base), ("win_rate_to_previous", trained(rspo)[0].policy)):
        wins = [exact(samples[iterate][one], samples[other][one], rows[one]["completion"]) for one in held]
        assert record[name] == pytest.approx(np.mean(wins))
        assert record[f"{name}_se"] == pytest.approx(np.std(wins, ddof=1) / 2)


def metrics(game: OpenGame) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (game.folder / "metrics.jsonl").read_text().splitlines()]


def test_an_estimated_normaliser_is_the_mean_over_the_answers(rspo: OpenGame) -> None:
    """log ref = alpha log p + (1 - alpha) log b - log mean_k exp(alpha log p + (1 - alpha) log b - log p)(y_k)."""
    alpha = 0.7
    options = ["game.oracle=function", f"game.alpha={alpha}", "game.normalizer=estimated", "game.init=base"]
    game = played(rspo.folder.parent, *CONTEST, *options, f"output.dir={rspo.folder.parent / 'normalised'}")
    store, (first, second) = game.store.root, trained(game)
    told = judged(store, first.policy, exact, pairwise_rates)
    p, b = logp(store, first.policy), logp(store, game.inputs.base)
    losses, constants = [], []
    prompts = [game.rows.train.ids[place] for place in game.positions(second.pairs.draw)]
    for prompt, pair in zip(prompts, training_pairs(game, second), strict=True):
        asked = [(prompt, row["side"]) for row in contests(store, first.policy)[prompt]]
        z = sum(math.exp(alpha * p[one] + (1 - alpha) * b[one]) / math.exp(p[one]) for one in asked) / K
        sides = told[prompt]
        refs = [alpha * p[prompt, s["side"]] + (1 - alpha) * b[prompt, s["side"]] - math.log(z) for s in sides]
        assert pair.ref_logps == pytest.approx(refs)
        wanted = [ETA * (side["rate"] - 0.5) for side in sides]
        starts = [b[prompt, side["side"]] for side in sides]
        losses.append(sum((s - r - w) ** 2 / 2 for s, r, w in zip(starts, refs, wanted, strict=True)))
        constants.append(math.log(z))
    assert manifest_loss(game, second) == pytest.approx(sum(losses) / PAIRS, rel=1e-4)
    assert max(map(abs, constants)) > 0.01
    scored = [stage for stage in game.stages if isinstance(stage, Score) and stage.pairs == second.pairs]
    assert {stage.policy: stage.every for stage in scored} == {first.policy: True, game.inputs.base: True}
    assert next(stage.every for stage in game.stages if isinstance(stage, Score)) is False  # at t = 0 it is the base itself


# References that average weights.

ALPHA = 0.7


def averaged(game: OpenGame, t: int) -> dict[str, float]:
    """Whose updates are in the reference at t, by ref_t = alpha theta_{t-1} + (1 - alpha) ref_{t-1}, and ref_0 the base."""
    weights: dict[str, float] = {}
    for earlier in trained(game)[:t]:
        weights = {policy: (1 - ALPHA) * weight for policy, weight in weights.items()} | {earlier.policy: ALPHA}
    return weights


def nearest(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, values, v = np.linalg.svd(matrix)
    return (u[:, :rank] * values[:rank]) @ v[:rank]


@pytest.mark.parametrize("kind", ["svd", "exact"])
def test_a_reference_of_averaged_weights_is_a_model_with_averaged_weights(
    kind: str, quickstart: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options = ["game.reference=ema", f"game.ema={kind}", f"game.alpha={ALPHA}", "game.iterations=3", "game.history=1"]
    game = played(tmp_path_factory.mktemp(kind), *options)
    store, apart = game.store.root / "adapters", []
    for t in (1, 2):
        each = [(weight, updates(store / policy)) for policy, weight in averaged(game, t).items()]
        exact = {name: sum(weight * update[name] for weight, update in each) for name in each[0][1]}
        kept = {name: nearest(update, 4) for name, update in exact.items()}  # type: ignore[arg-type]
        stage = trained(game)[t]
        reference = Plain(quickstart / "base", exact if kind == "exact" else kept)
        pairs = training_pairs(game, stage)
        for pair in pairs[:4]:
            theirs = [reference.logp(pair.prompt, completion) for completion in (pair.chosen, ids(pair.rejected))]
            assert pair.ref_logps == pytest.approx(theirs, abs=2e-4)
        apart.append(max(abs(exact[name] - kept[name]).max() for name in exact))
        # Training went on from the previous iterate, in a slot of its own rank, whatever was scored in between.
        previous = Plain(quickstart / "base", updates(store / trained(game)[t - 1].policy))
        started = np.mean([previous.logp(pair.prompt, pair.chosen) for pair in pairs])
        assert game.store.manifest(stage.policy)["metrics"][0]["logps/chosen"] == pytest.approx(started, abs=1e-3)
    assert apart[0] < 1e-5 < 1e-3 < apart[1]  # at t = 2 two updates are averaged, and rank 4 is not enough
    ranks = {path.parent.name: json.loads(path.read_text())["r"] for path in store.glob("*/adapter_config.json")}
    assert [ranks.pop(stage.policy) for stage in trained(game)] == [4, 4, 4]
    assert sorted(ranks.values()) == ([4, 8] if kind == "exact" else [4, 4])


# The data's own better and worse answers.


def test_an_offline_game_learns_from_the_datas_two_answers(quickstart: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (quickstart / "train.jsonl").read_text().splitlines()[:60]]
    with (tmp_path / "two.jsonl").open("w") as file:
        for row in rows:
            print(
                json.dumps({"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"ans {row['prompt']}"}),
                file=file,
            )
    game = played(tmp_path, "game.algorithm=offline", "game.iterations=1", f"data.path={tmp_path / 'two.jsonl'}")
    (stage,) = trained(game)
    assert isinstance(stage.pairs, DatasetPairs) and stage.reference == {game.inputs.base: 1.0}
    tokenizer = open_hf(quickstart / "base", "none").tokenizer
    plain, worse = Plain(quickstart / "base"), {row["prompt"]: row["completion"] for row in rows}
    pairs = training_pairs(game, stage)
    assert len(pairs) == PAIRS
    for pair in pairs:
        question = tokenizer.decode(pair.prompt).split("<user>")[1].split("<end_of_turn>")[0]
        assert tokenizer.decode(pair.chosen) == f"{worse[question]}<end_of_turn>"
        assert tokenizer.decode(pair.rejected) == f"ans {question}<end_of_turn>"
    theirs = [[plain.logp(pair.prompt, side) for side in (pair.chosen, ids(pair.rejected))] for pair in pairs[:4]]
    assert [list(pair.ref_logps) for pair in pairs[:4]] == [pytest.approx(each, abs=1e-4) for each in theirs]
    assert game.store.manifest(stage.policy)["metrics"][0]["loss"] == pytest.approx(math.log(2))
    assert all(
        asked["policy"] in (game.inputs.base, stage.policy) for asked, _ in stored(game.store.root, "completions").values()
    )
    drawn = {game.rows.train.ids[place] for place in game.positions(stage.pairs.draw)}
    assert not drawn & {row["prompt_id"] for row in of_policy(game.store.root, "completions", game.inputs.base)}  # no opponent


# Opponents that answer as mixtures.


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> OpenGame:
    """One try for each prompt, so that some prompts have no answer."""
    sampler = "game.sampler={name: rejection, proposals: 1}"
    more = ["game.alpha=0.7", "game.history=1", "game.pairs=24", "training.learning_rate=3e-2"]
    return played(tmp_path_factory.mktemp("mixed"), sampler, *more)


def test_opponents_answer_from_the_mixture(mixed: OpenGame, quickstart: Path) -> None:
    """At t = 0 the base as it is; at t = 1 what the sampler draws for two policies, seed by seed."""
    store, base, (first, second) = mixed.store.root, mixed.inputs.base, trained(mixed)
    rows = data_rows(store)
    pairs = training_pairs(mixed, first)
    own = {row["prompt_id"]: row["tokens"] for row in of_policy(store, "completions", base)}
    prompts = [mixed.rows.train.ids[place] for place in mixed.positions(first.pairs.draw)]
    assert [ids(pair.rejected) for pair in pairs] == [own[prompt] for prompt in prompts]

    ((key, (asked, answers)),) = stored(store, "mixtures").items()
    sampler_asked = {"name": "rejection", "proposals": 1}
    assert (asked["policy"], asked["mixture"]) == (first.policy, {"base": base, "alpha": 0.7, "sampler": sampler_asked})
    found = {row["prompt_id"]: row for row in answers}
    prompts = [mixed.rows.train.ids[place] for place in mixed.positions(second.pairs.draw)]
    assert found.keys() == set(prompts)
    engine = open_hf(quickstart / "base", "none", lora=mixed.recipe.training.lora.model_dump())
    target = Target(0.7, Sampling(1.0, 1.0, None, 8, 0, {}), frozenset(engine.ends))
    draws = sampler("rejection")(
        engine.next_token_logps([store / "adapters" / first.policy, None]),
        [rows[prompt]["prompt"] for prompt in prompts],
        [number(key, prompt, 0) for prompt in prompts],
        target,
        proposals=1,
    )
    assert [found[prompt]["tokens"] for prompt in prompts] == [draw.tokens or [] for draw in draws]
    assert [found[prompt]["finish_reason"] for prompt in prompts] == [draw.finish_reason for draw in draws]
    left = [(prompt, draw) for prompt, draw in zip(prompts, draws, strict=True) if draw.tokens is not None]
    assert 0 < len(left) < len(prompts)  # those without an answer are left out
    pairs = training_pairs(mixed, second)
    assert [ids(pair.rejected) for pair in pairs] == [draw.tokens for _, draw in left]
    assert [list(pair.prompt) for pair in pairs] == [rows[prompt]["prompt"] for prompt, _ in left]
    assert mixed.store.manifest(second.policy)["rows"] == len(left)
    plain = {
        None: Plain(quickstart / "base"),
        first.policy: Plain(quickstart / "base", updates(store / "adapters" / first.policy)),
    }
    for pair in pairs[:4]:  # the reference is the mixture that the opponent answered from
        two = [plain[policy].logp(pair.prompt, ids(pair.rejected)) for policy in (first.policy, None)]
        assert pair.ref_logps[1] == pytest.approx(0.7 * two[0] + 0.3 * two[1], abs=1e-4)

    records = metrics(mixed)
    assert [("sampler" in record) for record in records] == [False, False, True]
    accepted = len(left) / len(prompts)
    expected = {"sampler": "rejection", "alpha": 0.7, "prompts": len(prompts), "proposals": len(prompts)}
    expected |= {"rejected": len(prompts) - len(left), "acceptance": accepted, "log_z": math.log(accepted), "ess": accepted}
    assert records[2]["sampler"] == pytest.approx(expected)
    said = [line for line in verdict(read_run_results(mixed.folder)) if line.startswith("Answers")]
    share = f"{accepted:.1%} of {len(prompts)} proposals accepted, {len(prompts) - len(left)} prompts left out"
    assert said == [f"Answers for iterate 1 were drawn from mixtures by rejection: {share}, log Z {math.log(accepted):.3f}."]


# Ordinary fine-tuning before the game.

WARM = "{rows: 8, num_train_epochs: 3, learning_rate: 5e-2}"


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> OpenGame:
    """Plain gradient descent, every step over all rows."""
    descent = ["training.optim=sgd", "training.max_grad_norm=0", "training.learning_rate=1e-3"]
    sampler = ["game.sampler=token_level", "game.alpha=0.5", "game.history=1"]
    return played(tmp_path_factory.mktemp("warm"), f"warm_start={WARM}", "game.pairs=8", *descent, *sampler)


def test_a_warm_start_is_trls_fine_tuning(warm: OpenGame, quickstart: Path, tmp_path: Path) -> None:
    """Our loss is a row's summed log-prob, TRL's a token's mean: gradient descent makes up for that by its step."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    stage = next(stage for stage in warm.stages if isinstance(stage, Train))
    places = warm.positions(stage.pairs.draw)
    rows = [(ids(warm.rows.train.prompt(place)), ids(warm.rows.train.chosen(place))) for place in places]
    engine = open_hf(quickstart / "base", "none", lora=warm.recipe.training.lora.model_dump())
    torch.manual_seed(warm.recipe.seed)
    engine.slot.reset()
    start = save_slot(engine, tmp_path / "start")
    base = AutoModelForCausalLM.from_pretrained(quickstart / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(start), is_trainable=True)
    columns = {
        "input_ids": [prompt + answer for prompt, answer in rows],
        "completion_mask": [[0] * len(prompt) + [1] * len(answer) for prompt, answer in rows],
    }
    mean_length = sum(len(answer) for _, answer in rows) / len(rows)
    arguments = SFTConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=8, num_train_epochs=3, optim="sgd", max_grad_norm=0,
        learning_rate=5e-2 * mean_length, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False,
        completion_only_loss=True, max_length=None, disable_tqdm=True, save_strategy="no", logging_steps=1,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(quickstart / "base")
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer)
    trainer.train()
    model.save_pretrained(str(tmp_path / "theirs"))
    ours, theirs, before = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (warm.store.root / "adapters" / stage.policy, tmp_path / "theirs", start)
    )
    moved = max(abs(theirs[name] - before[name]).max() for name in before)
    assert max(abs(ours[name] - theirs[name]).max() for name in before) < 1e-3 * moved
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    logged = [record["loss"] for record in warm.store.manifest(stage.policy)["metrics"]]
    assert logged == pytest.approx([loss * mean_length for loss in losses], rel=1e-4)
    assert logged[-1] < logged[0] - 0.02


def test_after_a_warm_start_the_games_base_is_its_adapter(warm: OpenGame, quickstart: Path) -> None:
    store, (first, second) = warm.store.root, trained(warm)
    stage = next(stage for stage in warm.stages if isinstance(stage, Train))
    assert stage.name == "warm start" and first.init == stage.policy and first.reference == {stage.policy: 1.0}
    assert isinstance(first.pairs, OpponentPairs) and first.pairs.opponents == {stage.policy: 1.0}
    assert second.reference == {first.policy: 0.5, stage.policy: 0.5}
    plain = Plain(quickstart / "base", updates(store / "adapters" / stage.policy))
    answers = {row["prompt_id"]: row["tokens"] for row in of_policy(store, "completions", stage.policy)}
    pairs = training_pairs(warm, first)
    for place, pair in zip(warm.positions(first.pairs.draw), pairs, strict=True):
        assert ids(pair.rejected) == answers[warm.rows.train.ids[place]]
        assert pair.ref_logps == pytest.approx(
            [plain.logp(pair.prompt, ids(s)) for s in (pair.chosen, pair.rejected)], abs=1e-4
        )
    assert warm.store.manifest(first.policy)["metrics"][0]["loss"] == pytest.approx(
        math.log(2), abs=1e-5
    )  # init is the reference
    ((asked, _),) = stored(store, "mixtures").values()
    assert asked["mixture"]["base"] == stage.policy
    drawn = [{warm.rows.train.ids[place] for place in warm.positions(train.pairs.draw)} for train in (stage, first)]
    assert drawn[0] != drawn[1]  # rows of its own
    assert [record["name"] for record in metrics(warm)] == ["base", "warm start", "iterate 0", "iterate 1"]
    (start,) = [record for record in metrics(warm) if record["name"] == "warm start"]
    assert start["kl_to_previous"] == start["kl_to_base"] != 0


# Killed and gone on with.

SLOW = """
import time

def slow(messages, answers, reference):
    time.sleep(0.1)
    return [len(answer) for answer in answers]
"""


def under_way(folder: Path, kind: str, least: int) -> bool:
    """Whether some of a contest's batches are stored, but not yet all."""
    return any(least <= len(list(table.glob("shard-*"))) for table in (folder / "store" / kind).glob("*"))


def test_a_contest_that_is_killed_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    """Once while the answers are drawn, once while they are judged."""
    (tmp_path / "mine.py").write_text(SLOW)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    oracle = f"game.oracle={{function: '{tmp_path / 'mine.py'}:slow'}}"
    options = [*CONTEST, oracle, "game.iterations=1", "runtime.generation_batch_size=8", "evaluation.health_prompts=2"]
    changes = [word for change in tiny(killed, *options) for word in ("--set", change)]
    for kind, least in (("completions", 3), ("judgements", 1)):  # the first completions are held-out samples
        process = Command("run", "quickstart", "--trust", *changes)
        while not under_way(killed, kind, least):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = {kind: stored(killed / "store", kind) for kind in ("completions", "judgements")}
    assert 0 < sum(len(rows) for _, rows in before["judgements"].values()) < PAIRS
    games = [played(whole, *options), played(killed, *options)]
    assert [stage.policy for stage in trained(games[0])] == [stage.policy for stage in trained(games[1])]
    for kind in ("completions", "judgements", "logps"):
        one, two = (stored(game.store.root, kind) for game in games)
        assert {key: rows for key, (_, rows) in one.items()} == {key: rows for key, (_, rows) in two.items()}, kind
        for key, (_, rows) in before.get(kind, {}).items():
            assert all(row in two[key][1] for row in rows)  # nothing of what was stored was done again
    weights = [
        load_file(game.store.root / "adapters" / trained(game)[0].policy / "adapter_model.safetensors") for game in games
    ]
    assert max(abs(weights[0][name] - weights[1][name]).max() for name in weights[0]) <= 1e-6


def test_a_cpu_is_asked_to_score_what_goes_through_its_model_at_once(tmp_path: Path) -> None:
    game = opened(tmp_path, "runtime.scoring_batch_size=3")
    assert game.tables.scoring_tokens == game.recipe.scoring_tokens < 4096
