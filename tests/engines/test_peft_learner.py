"""The 4-bit base under the engine: frozen, exact gradients, adapters that swap without a trace."""

import ctypes
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GraniteConfig, GraniteForCausalLM

from helpers.games import open_hf, save_slot, shake_slot
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.errors import InputError
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.base import Request
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.loading import load_base
from lowmem_spin.engines.peft_learner import trim_heap
from lowmem_spin.engines.training.guards import BatchTooLargeError
from lowmem_spin.engines.training.logps import collate, completion_logps
from lowmem_spin.engines.training.pair import Pair

ROWS = [([1, 3, 70, 5, 4], [80, 81, 5]), ([1, 3, 71, 72, 73, 5, 4], [90, 5]), ([1, 3, 74, 5, 4], [60, 61, 62])]
PLAIN = Sampling(1.0, 1.0, None, 12, 0, {})
SETTINGS = {
    "batch_size": 2,
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "optim": "adamw_torch",
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 1,
    "iteration": 0,
    "learner": {"engine": "hf", "dtype": "float32"},
}


def pairs(count: int) -> list[Pair]:
    return [Pair(prompt, completion, [100 + n, 5], (-5.0, -6.0)) for n in range(count) for prompt, completion in [ROWS[n % 3]]]


@pytest.fixture
def engine(quickstart: Path) -> HF:
    engine = open_hf(quickstart / "base")
    shake_slot(engine)
    return engine


def lora_gradients(engine: HF) -> dict[str, torch.Tensor]:
    engine.model.zero_grad()
    completion_logps(engine.model.get_base_model(), collate(ROWS, engine.pad)).sum().backward()
    return {name: p.grad.clone() for name, p in engine.model.named_parameters() if p.requires_grad and p.grad is not None}


def frozen_bytes(engine: HF) -> str:
    """Hash of everything that is not an adapter: packed 4-bit weights, their scales, embeddings and norms."""
    digest = hashlib.sha256()
    for name, tensor in sorted(engine.model.state_dict(keep_vars=True).items()):
        if "lora_" in name:
            continue
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
        if state := getattr(tensor, "quant_state", None):
            digest.update(state.absmax.numpy().tobytes())
    return digest.hexdigest()


def test_the_base_is_4_bit_and_adapters_are_float32(engine: HF) -> None:
    packed = [p for p in engine.model.parameters() if p.dtype == torch.uint8]
    assert len(packed) == 4 * 7  # every linear layer of every block
    trainable = {p.dtype for p in engine.model.parameters() if p.requires_grad}
    assert trainable == {torch.float32}


def test_gradients_survive_generating_and_scoring(engine: HF) -> None:
    """On AVX512-BF16 processors bitsandbytes repacks 4-bit weights in the first no-grad forward and breaks them."""
    before = lora_gradients(engine)
    assert min(gradient.abs().max() for gradient in before.values()) > 0
    engine.generate([Request(None, ROWS[0][0], 1)], PLAIN)
    engine.score(None, ROWS)
    after = lora_gradients(engine)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_equal_those_of_the_dequantised_base(engine: HF, quickstart: Path) -> None:
    """A second route to the same numbers: plain float32 layers that hold what the 4-bit ones stand for."""
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    plain = AutoModelForCausalLM.from_pretrained(quickstart / "base", dtype=torch.float32, quantization_config=four_bit)
    ours = lora_gradients(engine)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    twin = get_peft_model(plain.dequantize(), config)
    set_peft_model_state_dict(twin, get_peft_model_state_dict(engine.model))
    completion_logps(twin.get_base_model(), collate(ROWS, engine.pad)).sum().backward()
    theirs = {name: p.grad for name, p in twin.named_parameters() if p.requires_grad}
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=2e-3, rtol=1e-3)


def test_scoring_twice_gives_identical_numbers(quickstart: Path, tmp_path: Path) -> None:
    engine = open_hf(quickstart / "base", dropout=0.5)  # dropout must be asleep
    shake_slot(engine)
    adapter = save_slot(engine, tmp_path)
    assert engine.score(adapter, ROWS) == engine.score(adapter, ROWS)


def test_swapping_adapters_equals_loading_each_alone(engine: HF, quickstart: Path, tmp_path: Path) -> None:
    first = save_slot(engine, tmp_path / "first")
    shake_slot(engine, seed=1)
    second = save_slot(engine, tmp_path / "second")
    swapped = [engine.score(adapter, ROWS) for adapter in (None, first, second, first, None)]
    for adapter, values in zip((None, first, second, first, None), swapped, strict=True):
        assert open_hf(quickstart / "base").score(adapter, ROWS) == values
    assert len({tuple(values) for values in swapped}) == 3


def test_the_base_is_bit_frozen_while_iterates_are_made(engine: HF, tmp_path: Path) -> None:
    before = frozen_bytes(engine)
    init = None
    for t in range(2):
        engine.generate([Request(init, ROWS[0][0], 1)], PLAIN)
        engine.score(init, ROWS)
        init, metrics = engine.train(init, pairs(6), {"name": "dpo", "beta": 0.1}, SETTINGS, tmp_path / str(t), print)
        assert metrics[-1]["loss"] != metrics[0]["loss"]
    assert frozen_bytes(engine) == before


def test_a_saved_iterate_is_what_peft_loads(engine: HF, quickstart: Path, tmp_path: Path) -> None:
    adapter, _ = engine.train(None, pairs(8), {"name": "dpo", "beta": 0.1}, SETTINGS, tmp_path, print)
    base = load_base(Source(str(quickstart / "base"), None, ""), "nf4", engine.machine)
    loaded = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.no_grad():
        theirs = completion_logps(loaded.get_base_model(), collate(ROWS, engine.pad)).tolist()
    assert engine.score(adapter, ROWS) == theirs


def test_a_models_own_generation_settings_do_not_change_what_is_sampled(engine: HF, quickstart: Path, tmp_path: Path) -> None:
    """A repetition penalty in generation_config.json would make the opponents another policy than the scored one."""
    folder = Path(shutil.copytree(quickstart / "base", tmp_path / "base"))
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.5, "suppress_tokens": [90]}))
    requests = [Request(None, prompt, seed) for seed, (prompt, _) in enumerate(ROWS * 8)]
    plain, penalised = engine.generate(requests, PLAIN), open_hf(folder).generate(requests, PLAIN)
    assert [c.tokens for c in penalised] == [c.tokens for c in plain]
    scored = engine.score(None, [(request.prompt, c.tokens) for request, c in zip(requests, plain, strict=True)])
    assert [c.logp for c in plain] == pytest.approx(scored, abs=1e-3)


def test_a_model_that_rescales_its_logits_is_refused(quickstart: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(quickstart / "base")
    tokenizer.save_pretrained(tmp_path)
    config = GraniteConfig(
        vocab_size=288, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, logits_scaling=8.0, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.5,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="GraniteForCausalLM changes its logits after the head"):
        open_hf(tmp_path, quantization="none")


def test_an_adapter_with_other_scales_is_refused(engine: HF, tmp_path: Path) -> None:
    adapter = save_slot(engine, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "alpha_pattern": {"q_proj": 64}}))
    with pytest.raises(InputError, match="uses alpha_pattern; only plain LoRA can be played"):
        engine.score(adapter, ROWS)


@pytest.mark.parametrize("packs", [True, False])
def test_what_does_not_fit_names_the_setting_that_bounds_it(engine: HF, packs: bool, tmp_path: Path) -> None:
    def too_much(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    engine.states, engine.layout = too_much, replace(engine.layout, packs=packs)
    tokens, rows = "scoring_tokens_per_batch: a batch of 2048 tokens", "scoring_batch_size: a batch of 8 "  # halved once
    with pytest.raises(InputError, match=f"^runtime.{tokens if packs else rows}"):
        engine.score(None, ROWS)
    tokens, rows = "tokens_per_batch: a batch of 2048 tokens", "per_device_train_batch_size: a batch of 2 "
    with pytest.raises(InputError, match=f"^training.{tokens if packs else rows}"):
        engine.train(None, pairs(2), {"name": "dpo", "beta": 0.1}, SETTINGS, tmp_path, lambda *told: None)


def test_out_of_memory_it_goes_on_with_half_the_batch(engine: HF, quickstart: Path, tmp_path: Path) -> None:
    """The first steps fit and then one does not: what is told, and what is learned, is as if all had been halved."""
    states, room, said, told = engine.states, 10**6, list[str](), list[int]()
    short = {"max_prompt_length": 100, "max_completion_length": 20}
    recipe = engine.recipe.model_copy(update={"data": engine.recipe.data.model_copy(update=short)})
    recipe = recipe.model_copy(update={"generation": recipe.generation.model_copy(update={"max_new_tokens": 12})})
    engine.recipe, engine.notify = recipe, said.append

    def bounded(model: Any, rows: Any) -> torch.Tensor:
        if rows.input_ids.numel() > room:
            raise torch.OutOfMemoryError
        return states(model, rows)

    def advance(rows: int, *more: Any) -> None:
        nonlocal room
        told.append(rows)
        room = 300 if sum(told) >= 16 else room

    engine.states = bounded
    settings = {**SETTINGS, "batch_size": 8, "num_train_epochs": 2}
    long = [Pair([1, 3, *range(40, 97), 4], [100 + n] * 9, [20 + n] * 10, (-5.0, -6.0)) for n in range(16)]
    folder, metrics = engine.train(None, long, {"name": "dpo", "beta": 0.1}, settings, tmp_path / "one", advance)
    full = "training.tokens_per_batch: a batch of 560 tokens does not fit in this GPU's memory"
    assert said == [f"{full}; going on with half the batch"]
    assert sum(told) == 32 and len(metrics) == 4
    small = open_hf(quickstart / "base")
    small.recipe = recipe.with_half_batches()
    other, _ = small.train(None, long, {"name": "dpo", "beta": 0.1}, settings, tmp_path / "two", lambda *told: None)
    assert (folder / "adapter_model.safetensors").read_bytes() == (other / "adapter_model.safetensors").read_bytes()
    room = 10
    with pytest.raises(InputError, match=r"^runtime\.scoring_tokens_per_batch: a batch of .* does not fit"):  # not twice
        engine.score(None, ROWS)


def test_half_of_a_batch_is_answered_as_the_whole(engine: HF, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, sizes = [Request(None, ROWS[0][0], seed) for seed in range(64)], list[int]()
    whole, sample = engine.generate(requests, PLAIN), engine.sample

    def bounded(policy: Any, draws: Any, sampling: Any) -> Any:
        sizes.append(len(draws))
        if len(draws) > 32:
            raise BatchTooLargeError("runtime.generation_batch_size: a batch of 64 does not fit; lower it")
        return sample(policy, draws, sampling)

    monkeypatch.setattr(engine, "sample", bounded)
    assert engine.generate(requests, PLAIN) == whole
    assert sizes == [64, 32, 32]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not of this C library")
def test_what_was_freed_is_given_back() -> None:
    """Small pieces between some that stay, as a training leaves them: glibc keeps such memory by itself."""
    process = psutil.Process()
    pieces = [bytes(3000) for _ in range(60_000)]
    full, kept = process.memory_info().rss, pieces[::100]
    del pieces
    trim_heap()
    assert process.memory_info().rss < full - 120e6
    assert len(kept) == 600


def test_what_is_not_a_number_is_not_kept(engine: HF) -> None:
    with torch.no_grad():
        next(p for name, p in engine.model.named_parameters() if name.endswith("norm.weight")).fill_(float("inf"))
    with pytest.raises(InputError, match=r"model\.dtype: float32 gives log-probs that are not finite"):
        engine.score(None, ROWS)
    with pytest.raises(InputError, match="not finite"):
        engine.generate([Request(None, ROWS[0][0], 1)], PLAIN)
