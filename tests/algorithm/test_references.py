"""References that are not alpha-SPIN's: mixtures of probabilities, of the whole history, and averages of weights."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import GemmaForCausalLM

from helpers.games import make_micro_base, open_hf, save_slot, shake_slot
from helpers.references import updates
from lowmem_spin.algorithm.game import play, reference, reference_over_history
from lowmem_spin.algorithm.references import arithmetic
from lowmem_spin.algorithm.stages import Evaluate, Inputs, Score, Train
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.training.average import ema_adapter
from lowmem_spin.runner.open import SharedResources, open_game
from lowmem_spin.runner.pairs import training_pairs
from lowmem_spin.runner.run import make

INPUTS = Inputs("b", "data", {"engine": "hf", "dtype": "float32"}, {"engine": "hf", "dtype": "float32"})


def test_the_arithmetic_reference_is_the_autoregressive_mixture() -> None:
    """Token by token, that mixture believes more in the policies that made the prefix likely (Bayes' rule)."""
    rng, weights, length = np.random.default_rng(0), [0.6, 0.3, 0.1], 3
    prefixes = [prefix for size in range(length) for prefix in product(range(2), repeat=size)]
    policies = [dict(zip(prefixes, rng.dirichlet([0.5, 0.5], len(prefixes)), strict=True)) for _ in weights]
    space = list(product(range(2), repeat=length))
    sums = [np.array([sum(math.log(p[y[:t]][y[t]]) for t in range(length)) for y in space]) for p in policies]
    stepwise = []
    for y in space:
        belief, total = np.array(weights), 0.0
        for t in range(length):
            says = np.array([policy[y[:t]][y[t]] for policy in policies])
            total += math.log(belief @ says)
            belief = belief * says / (belief @ says)
        stepwise.append(total)
    np.testing.assert_allclose(arithmetic(weights, sums), stepwise, atol=1e-12)
    assert np.exp(stepwise).sum() == pytest.approx(1, abs=1e-12)
    far = arithmetic([0.5, 0.5], [np.array([-2000.0]), np.array([-2001.0])])  # of long answers
    assert far[0] == pytest.approx(-2000 + math.log((1 + math.exp(-1)) / 2))


def trained(**game: object) -> list[Train]:
    content = {"model": {"name_or_path": "m"}, "data": {"path": "d"}, "game": {"iterations": 3, "alpha": 0.6, **game}}
    return [stage for stage in play(Recipe.model_validate(content), INPUTS) if isinstance(stage, Train)]


def test_history_shares_alpha_and_meets_the_previous_iterate_where_there_is_one() -> None:
    assert reference_over_history([], "b", 0.6) == {"b": 1.0}
    assert reference_over_history(["t0"], "b", 0.6) == reference("t0", "b", 0.6)
    assert reference_over_history(["t0", "t1", "t2"], "b", 0.6) == pytest.approx({"t2": 0.2, "t1": 0.2, "t0": 0.2, "b": 0.4})
    assert "b" not in reference_over_history(["t0", "t1"], "b", 1.0)
    stages = list(play(recipe_over("history"), INPUTS))
    last = [stage for stage in stages if isinstance(stage, Train)][-1]
    scored = {stage.policy for stage in stages if isinstance(stage, Score) and stage.pairs == last.pairs}
    assert scored == last.reference.keys() and len(scored) == 3


def recipe_over(over: str) -> Recipe:
    game = {"iterations": 3, "alpha": 0.6, "reference_over": over}
    return Recipe.model_validate({"model": {"name_or_path": "m"}, "data": {"path": "d"}, "game": game})


def test_keys_tell_the_kinds_apart_where_they_differ_and_only_there() -> None:
    plain, mixed = trained(), trained(reference="arithmetic")
    assert "combine" not in plain[1].spec()  # what was made before there was a choice keeps its key
    assert [a.policy == b.policy for a, b in zip(plain, mixed, strict=True)] == [True, False, False]
    assert [a.policy for a in trained(alpha=1)] == [a.policy for a in trained(alpha=1, reference="arithmetic")]
    history = trained(reference_over="history")
    assert [a.policy == b.policy for a, b in zip(plain, history, strict=True)] == [True, True, False]


def test_a_game_learns_from_the_arithmetic_reference(quickstart: Path, tmp_path: Path) -> None:
    content = {
        "model": {"name_or_path": str(quickstart / "base")},
        "data": {"path": str(quickstart / "train.jsonl")},
        "game": {"pairs": 8, "iterations": 2, "alpha": 0.6, "reference": "arithmetic"},
        "generation": {"max_new_tokens": 8},
        "training": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1e-2},
        "output": {"dir": str(tmp_path / "run"), "store": str(tmp_path / "store")},
    }
    game = open_game(Recipe.model_validate(content), tmp_path, Display(Console(quiet=True)), SharedResources())
    first, second = (stage for stage in game.stages if isinstance(stage, Train))
    for stage in game.stages[: game.stages.index(second)]:
        if not isinstance(stage, Evaluate):
            make(game, stage)
    pairs = training_pairs(game, second)
    engine = open_hf(quickstart / "base", lora=game.recipe.training.lora.model_dump())
    adapter = tmp_path / "store" / "adapters" / first.policy
    apart = []
    for pair in pairs:
        for completion, found in ((pair.chosen, pair.ref_logps[0]), (pair.rejected, pair.ref_logps[1])):
            last, base = (engine.score(policy, [(pair.prompt, completion)])[0] for policy in (adapter, None))
            assert found == pytest.approx(math.log(0.6 * math.exp(last) + 0.4 * math.exp(base)), abs=1e-4)
            apart.append(abs(found - (0.6 * last + 0.4 * base)))
    assert max(apart) > 1e-2  # the geometric one is another number


# Averages of adapters, on a model small enough to merge by hand.

WEIGHTS = [0.5, 0.3, 0.4]  # they need not sum to 1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_micro_base(tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three of them, of unlike rank and scale."""
    folders = []
    for seed, (r, alpha) in enumerate([(4, 8), (2, 6), (4, 4)]):
        engine: HF = open_hf(base, "none", lora={"r": r, "lora_alpha": alpha, "dropout": 0.0})
        shake_slot(engine, seed, scale=0.2)
        folders.append(save_slot(engine, tmp_path_factory.mktemp("adapters") / str(seed)))
    return folders


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[1, 3, 4, 5, 6, 2]])).logits


def test_the_exact_average_is_a_model_with_averaged_weights(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    averaged = ema_adapter(adapters, WEIGHTS, None, tmp_path / "ema")
    loaded = PeftModel.from_pretrained(GemmaForCausalLM.from_pretrained(base, dtype=torch.float32), str(averaged))
    plain = GemmaForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = logits(plain)
    with torch.no_grad():
        for weight, adapter in zip(WEIGHTS, adapters, strict=True):
            for name, update in updates(adapter).items():
                plain.get_submodule(name.removeprefix("base_model.model.")).weight += weight * torch.from_numpy(update)  # type: ignore[operator]
    torch.testing.assert_close(logits(loaded), logits(plain), atol=1e-5, rtol=0)
    assert (logits(plain) - before).abs().max() > 0.1


@pytest.mark.parametrize(("kind", "rank"), [("cat", None), ("svd", 3), ("svd", 4)])
def test_averages_are_those_of_peft(base: Path, adapters: list[Path], tmp_path: Path, kind: str, rank: int | None) -> None:
    model = PeftModel.from_pretrained(GemmaForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapters[0]), "0")
    for index in (1, 2):
        model.load_adapter(str(adapters[index]), str(index))
    model.add_weighted_adapter(["0", "1", "2"], WEIGHTS, "average", combination_type=kind, svd_rank=rank)  # type: ignore[operator]
    ours = updates(ema_adapter(adapters, WEIGHTS, rank, tmp_path / "ema"))
    for name, update in ours.items():
        theirs = model.get_submodule(name).get_delta_weight("average").detach().numpy()  # type: ignore[operator]
        np.testing.assert_allclose(update, theirs, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_no_adapter_of_its_rank_is_nearer(adapters: list[Path], tmp_path: Path, rank: int) -> None:
    """Eckart and Young: the error is the norm of the singular values left out. Over the sum of ranks there is none."""
    short = updates(ema_adapter(adapters, WEIGHTS, rank, tmp_path / "ema"))
    each = [updates(adapter) for adapter in adapters]
    for name, update in short.items():
        exact = sum((w * u[name].astype(float) for w, u in zip(WEIGHTS, each, strict=True)), np.zeros(update.shape))
        left_out = np.linalg.svd(exact, compute_uv=False)[rank:]
        assert np.linalg.norm(update - exact) == pytest.approx(np.linalg.norm(left_out), abs=1e-5)


def test_an_average_of_the_slots_rank_can_be_played(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    engine = open_hf(base, "none", lora={"r": 4, "lora_alpha": 8, "dropout": 0.0})
    same = ema_adapter([adapters[0]], [1.0], 4, tmp_path / "same")
    rows = [([1, 3, 4], [5, 6, 2])]
    assert engine.score(same, rows) == pytest.approx(engine.score(adapters[0], rows), abs=1e-5)
    half = ema_adapter([adapters[0], adapters[2]], [0.5, 0.5], 4, tmp_path / "half")
    assert abs(engine.score(half, rows)[0] - engine.score(adapters[0], rows)[0]) > 1e-3


def test_what_cannot_be_averaged_is_refused_in_one_line(adapters: list[Path], base: Path, tmp_path: Path) -> None:
    engine = open_hf(base, "none", lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]})
    other = save_slot(engine, tmp_path / "other")
    with pytest.raises(InputError, match=r"^adapters: .* has other weights than LoRA on the first one's layers: "):
        ema_adapter([adapters[0], other], [0.5, 0.5], None, tmp_path / "ema")
    with pytest.raises(InputError, match=r"^weights: 1 numbers for 3 adapters"):
        ema_adapter(adapters, [1.0], None, tmp_path / "ema")
    with pytest.raises(InputError, match="no PEFT adapter folder"):
        ema_adapter([tmp_path], [1.0], None, tmp_path / "ema")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    with pytest.raises(InputError, match="uses use_rslora; only plain LoRA can be averaged"):
        ema_adapter([other], [1.0], None, tmp_path / "ema")
