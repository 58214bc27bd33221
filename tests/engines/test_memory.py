"""The memory model, term by term, against real models on a CPU and against gemma-2b's known sizes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.games import CPU, make_micro_base, open_hf
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.loading import load_base
from lowmem_spin.engines.memory import CARDS, Shape, advice, peak, read_shape, stage_memory
from lowmem_spin.engines.training.logps import collate, completion_logps

GEMMA_2B = Shape(18, 2048, 16384, 8, 1, 256, 256000, True)
ROW = ([1, 3, *range(70, 130), 5, 4], [*range(70, 133), 5])


@pytest.fixture(params=["quickstart", "micro"])
def base(request: pytest.FixtureRequest, quickstart: Path, tmp_path: Path) -> Path:
    return quickstart / "base" if request.param == "quickstart" else make_micro_base(tmp_path)


def test_gemma_2b_has_its_known_sizes() -> None:
    assert GEMMA_2B.body / 1e9 == pytest.approx(1.98, abs=0.01)
    assert GEMMA_2B.unquantized / 1e9 == pytest.approx(0.52, abs=0.01)
    assert GEMMA_2B.kv(2) == 18 * 1024
    assert GEMMA_2B.lora(16) / 1e6 == pytest.approx(19.6, abs=0.1)
    assert GEMMA_2B.weights("nf4", 2) / 1e9 == pytest.approx(2.07, abs=0.01)


def test_parameters_weights_and_adapters_are_those_of_the_loaded_model(base: Path) -> None:
    source = Source(str(base), None, "")
    shape = read_shape(source)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert shape.body + shape.unquantized == sum(p.numel() for p in plain.parameters())
    engine = open_hf(base)
    trainable = [p for p in engine.model.parameters() if p.requires_grad]
    assert shape.lora(8) == sum(p.numel() for p in trainable)
    model = load_base(source, "nf4", CPU)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            held += state.absmax.numel() * state.absmax.element_size() + state.state2.absmax.numel() * 4
    assert shape.weights("nf4", 4) == pytest.approx(held, rel=0.01)


def test_the_key_value_cache_is_the_models(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    cache = model(torch.ones(2, 5, dtype=torch.long), use_cache=True).past_key_values
    held = sum(tensor.numel() * 4 for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert held == 2 * 5 * read_shape(Source(str(base), None, "")).kv(4)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_a_layer_keeps_for_its_backward_pass(quickstart: Path, dropout: float) -> None:
    engine = open_hf(quickstart / "base", dropout=dropout)
    engine.model.train()
    kept: dict[int, int] = {}
    frozen = {p.data_ptr() for p in engine.model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = collate([ROW] * 4, engine.pad)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = completion_logps(engine.model.get_base_model(), batch).sum()
    shape = read_shape(Source(str(quickstart / "base"), None, ""))
    expected = batch.input_ids.numel() * shape.layers * shape.saved(4, dropout > 0)
    assert sum(kept.values()) == pytest.approx(expected, rel=0.15)
    assert torch.isfinite(loss)


def plan(**changes: Any) -> Any:
    return load_recipe(find_recipe("gemma2b_alpha"), [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])


def test_gemma_2b_fits_in_24_gb_and_what_does_not_gets_advice_that_works() -> None:
    recipe = plan()
    assert max(peak(terms) for terms in stage_memory(recipe, GEMMA_2B, "bfloat16").values()) < CARDS["24 GB"]
    assert list(advice(recipe, GEMMA_2B, "bfloat16", CARDS["24 GB"])) == []
    large = plan(training__tokens_per_batch=200000, runtime__generation_batch_size=2000)
    lines = list(advice(large, GEMMA_2B, "bfloat16", CARDS["24 GB"]))
    assert [line.split(" to ")[0] for line in lines] == [
        "generate: set runtime.generation_batch_size",
        "train: set training.tokens_per_batch",
    ]
    generate, train = (int(line.rsplit(" ", 1)[1]) for line in lines)
    advised = plan(training__tokens_per_batch=train, runtime__generation_batch_size=generate)
    assert list(advice(advised, GEMMA_2B, "bfloat16", CARDS["24 GB"])) == []
    tight = plan(training__per_device_train_batch_size=1, training__gradient_checkpointing="false")
    assert "train: set training.gradient_checkpointing to true" in advice(tight, GEMMA_2B, "bfloat16", 8e9)


def test_a_config_without_sizes_is_named() -> None:
    with pytest.raises(InputError, match="its config has no 'num_attention_heads'"):
        Shape.of({"hidden_size": 8})


def test_the_plan_is_printed_without_torch(quickstart: Path) -> None:
    call = "app(['plan', 'quickstart'], standalone_mode=False)"
    script = f"import sys; from lowmem_spin.cli.main import app; {call}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "24 GB       fits" in result.stdout
    assert result.stdout.splitlines()[-1] == "False"
