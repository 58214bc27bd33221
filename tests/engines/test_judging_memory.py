"""The memory of judging models, against real ones on a CPU; and what a card without room for one says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from helpers.commands import call
from helpers.judging_models import deberta, make_pairrm, make_reward_model, reward_llama
from helpers.live_bytes import LiveBytes
from lowmem_spin.algorithm.preferences import Comparison
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.advice import advice
from lowmem_spin.engines.known_models import CONFIGS
from lowmem_spin.engines.loading import load_base
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import WIDTH, Shape, peak
from lowmem_spin.engines.oracles.memory import PAIRRM, PAIRRM_CONFIG, PAIRRM_PARAMETERS, judging_memory
from lowmem_spin.engines.oracles.pairrm import PairRM
from lowmem_spin.engines.oracles.pairrm_model import Ranker
from lowmem_spin.engines.oracles.reward_model import RewardModel
from lowmem_spin.engines.residency import judging_terms

ROWS, LENGTH = 4, 400


def played(*overrides: str) -> Recipe:
    return load_recipe(find_recipe("mistral7b_sppo"), list(overrides))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["deberta", "llama"])
def test_what_a_judging_model_and_its_widest_pass_take(kind: str, dtype: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 500,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }
    model = reward_llama(**sizes) if kind == "llama" else Ranker(deberta(**sizes, position_buckets=64))
    model.eval().save_pretrained(tmp_path)
    model = model.to(getattr(torch, dtype))
    ids = torch.randint(5, 400, (ROWS, LENGTH))
    places = [] if kind == "llama" else [torch.tensor([[0, 3, 7]] * ROWS)]
    live = LiveBytes()
    with torch.no_grad(), live:
        model(ids, torch.ones_like(ids), *places)
    recipe = played(f"game.oracle.batch_size={ROWS}")
    terms = judging_memory(Source(str(tmp_path), None, "o"), "game.oracle.model", recipe, dtype, LENGTH)
    held = sum(parameter.numel() for parameter in model.parameters()) * WIDTH[dtype]
    assert terms["oracle's weights"] == pytest.approx(held, rel=1e-3)
    assert terms["oracle's activations"] == pytest.approx(live.most, rel=0.15)


def test_pairrm_is_planned_for_without_a_hub() -> None:
    with torch.device("meta"):
        large = Ranker(deberta(**PAIRRM_CONFIG))
    assert sum(weights.numel() for weights in large.parameters()) == pytest.approx(PAIRRM_PARAMETERS, rel=0.002)
    recipe = played()
    assert recipe.game.oracle is not None and getattr(recipe.game.oracle, "model", None) == PAIRRM
    oracle = PairRM(Source(PAIRRM, "unresolved", "o"), "cuda", "bfloat16", 16).memory(recipe, "bfloat16")
    scores = 16 * 16 * (512 + 2 * 512) ** 2 * 2  # pairs, heads, every token by every token, two bytes
    assert 6 * scores < oracle["oracle's activations"] < 7 * scores
    assert RewardModel(Source("some/other", "unresolved", "o"), "cuda", "bfloat16", 16, 2048).memory(recipe, "bfloat16") == {}


def test_an_oracle_without_room_gets_advice_that_works() -> None:
    """It judges beside the base, which waits; a T4 has no room for sixteen pairs, and for as many as are advised."""
    shape, judge = (
        Shape.of(CONFIGS["mistralai/Mistral-7B-v0.1"]),
        PairRM(Source(PAIRRM, "unresolved", "o"), "cuda", "float16", 16),
    )
    lines = list(advice(played(), shape, "float16", 15e9, judge))
    assert [line.rsplit(" ", 1)[0] for line in lines] == ["judge: set game.oracle.batch_size to"]
    size = int(lines[0].rsplit(" ", 1)[1])

    def needed(rows: int) -> float:
        recipe = played(f"game.oracle.batch_size={rows}")
        return peak(judging_terms(recipe, shape, "float16", judge.memory(recipe, "float16")))

    assert needed(size) <= 15e9 < needed(size + 1)
    assert list(advice(played(f"game.oracle.batch_size={size}"), shape, "float16", 15e9, judge)) == []
    assert list(advice(played(), shape, "float16", 15e9)) == []
    tiny = list(advice(played("runtime.generation_batch_size=1"), shape, "float16", 5.6e9, judge))
    assert "judge: too large at any batch size; take a smaller game.oracle.model, or a smaller base" in tiny


def test_a_plan_counts_its_oracle(tmp_path: Path) -> None:
    def planned(*words: str) -> tuple[dict[str, Any], str]:
        words = ("mistral7b_sppo", "--gpu", "T4", "--set", f"output.store={tmp_path}", *words)
        return json.loads(call("plan", *words, "--json").stdout), call("plan", *words).stdout

    found, page = planned()
    judge = next(stage["gpu_memory_bytes"] for stage in found["stages"] if stage["kind"] == "judge")
    recipe, shape = played(), Shape.of(CONFIGS["mistralai/Mistral-7B-v0.1"])
    oracle = PairRM(Source(PAIRRM, "unresolved", "o"), "cuda", "float16", 16).memory(recipe, "float16")
    assert judge == pytest.approx(peak(judging_terms(recipe, shape, "float16", oracle)), abs=1)
    assert "oracle's activations" in page and "judge: set game.oracle.batch_size to" in page
    assert (
        "memory that game.oracle" not in page
        and f"{PAIRRM}: could not check its version on the hub (no connection); the" in page
    )
    other, page = planned("--set", "game.oracle={name: reward_model, model: some/other}")
    assert all(stage["gpu_memory_bytes"] is None for stage in other["stages"] if stage["kind"] == "judge")
    assert "some/other: could not check its version on the hub (no connection)" in other["notes"]
    assert "the memory that game.oracle takes is not known" in other["notes"] and "oracle's" not in page


def out_of_memory(*_: object, **__: object) -> None:
    """What torch says on a card that is full."""
    raise torch.OutOfMemoryError


@pytest.mark.parametrize(("kind", "make"), [(PairRM, make_pairrm), (RewardModel, make_reward_model)])
def test_an_oracle_without_room_is_one_line(kind: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights, and then a batch."""
    oracle = kind(Source(str(make(tmp_path)), None, "o"), "cpu", "float32", batch_size=3, max_length=2048)
    questions = [Comparison([{"role": "user", "content": "a b"}], ["c", "d d", "a"], "c")]
    with monkeypatch.context() as full:
        full.setattr(PreTrainedModel, "to", out_of_memory)
        with pytest.raises(InputError, match=r"^game\.oracle\.model: '.*' does not fit in what is free of this GPU's memory"):
            oracle.prefer(questions)
    with monkeypatch.context() as full:
        full.setattr(Ranker, "forward", out_of_memory)
        full.setattr(LlamaForSequenceClassification, "forward", out_of_memory)
        with pytest.raises(InputError, match=r"^game\.oracle\.batch_size: a batch of 3 does not fit in this GPU's memory"):
            oracle.prefer(questions)
    assert oracle.prefer(questions)[0].shape == (3, 3)  # it goes on once there is room


def test_a_base_that_does_not_fit_is_one_line(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quickstart / "base"
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", out_of_memory)
    with pytest.raises(InputError, match=f"^model.name_or_path: '{folder}' does not fit in what is free of this GPU's memory"):
        load_base(Source(str(folder), None, "b"), "none", Machine("cpu", "float32"))
