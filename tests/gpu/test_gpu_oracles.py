"""Oracles on the GPU: they judge as on the CPU, and take the memory that is planned for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.judging_models import deberta, make_pairrm, make_reward_model, reward_llama
from lowmem_spin.algorithm.preferences import Comparison
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.oracles.memory import PAIRRM_CONFIG, judging_memory
from lowmem_spin.engines.oracles.pairrm import PairRM
from lowmem_spin.engines.oracles.pairrm_model import Ranker
from lowmem_spin.engines.oracles.reward_model import RewardModel

ORACLES: list[tuple[Any, Callable[[Path], Path]]] = [(PairRM, make_pairrm), (RewardModel, make_reward_model)]
ANSWERS = ["a", "c d e f", "", "g b", "d d d"]
# By how much a preference may differ from float32's. On a CPU bfloat16 itself is off by 0.04, float16 by 0.003.
PREFERENCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.01}
ROWS, LENGTH = 8, 1024
ACTIVATIONS = "oracle's activations"


@pytest.mark.parametrize(("oracle", "make"), ORACLES)
def test_it_judges_as_on_the_cpu(oracle: Any, make: Callable[[Path], Path], machine: Machine, tmp_path: Path) -> None:
    source = Source(str(make(tmp_path)), None, "o")
    questions = [Comparison([{"role": "user", "content": "a b c"}], ANSWERS, "a")]
    (expected,) = oracle(source, "cpu", "float32", batch_size=3, max_length=2048).prefer(questions)
    judge = oracle(source, machine.device, machine.dtype, batch_size=3, max_length=2048)
    (found,) = judge.prefer(questions)
    off = np.abs(found - expected).max()
    print(f"{oracle.__name__}: preferences are off by {off:.5f}")
    assert off < PREFERENCE[machine.dtype]
    assert np.abs(expected - 0.5).max() > 2 * PREFERENCE[machine.dtype]  # it has preferences
    judge.release()
    assert judge.prefer(questions)[0].tolist() == found.tolist()


def pairrm_sized() -> tuple[Any, list[torch.Tensor]]:
    """DeBERTa-v3-large's shape, and where three marks are in every row."""
    return Ranker(deberta(**PAIRRM_CONFIG)), [torch.tensor([[0, 3, 7]] * ROWS)]


def llama_sized() -> tuple[Any, list[torch.Tensor]]:
    """Four layers of an 8B model's shape, with few words."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    return reward_llama(**sizes, num_hidden_layers=4, vocab_size=1000), []


@pytest.mark.parametrize("made", [pairrm_sized, llama_sized])
def test_it_takes_the_memory_that_is_planned(made: Any, machine: Machine, tmp_path: Path) -> None:
    if machine.device == "cpu":
        pytest.skip("tests/engines/test_judging_memory.py counts a CPU's bytes")
    with torch.device(machine.device):
        torch.set_default_dtype(dtype := getattr(torch, machine.dtype))
        try:
            model, places = made()
        finally:
            torch.set_default_dtype(torch.float32)
    model.eval().save_pretrained(tmp_path)
    recipe = load_recipe(find_recipe("mistral7b_sppo"), [f"game.oracle.batch_size={ROWS}"])
    terms = judging_memory(Source(str(tmp_path), None, "o"), "game.oracle.model", recipe, machine.dtype, LENGTH)
    ids = torch.randint(5, 900, (ROWS, LENGTH), device=machine.device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        model(ids, torch.ones_like(ids), *(place.to(machine.device) for place in places))
    taken = torch.cuda.max_memory_allocated() - before
    held = sum(weights.numel() * weights.element_size() for weights in model.parameters())
    print(
        f"{made.__name__}, {dtype}: {taken / 1e9:.2f} GB, {terms[ACTIVATIONS] / 1e9:.2f} planned; weights {held / 1e9:.2f} GB"
    )
    assert terms["oracle's weights"] == pytest.approx(held, rel=1e-3)
    assert terms[ACTIVATIONS] == pytest.approx(taken, rel=0.15)
