"""Packed rows against padded ones: log-probs, gradients, what an answer may depend on, and how lists are cut."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from helpers.games import SETTINGS, open_hf, recipe_on, shake_slot, some_pairs
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.training import attention, packing
from lowmem_spin.engines.training.attention import attend
from lowmem_spin.engines.training.layout import RowLayout, why_not_packed
from lowmem_spin.engines.training.logps import completion_logps, decoder_states
from lowmem_spin.engines.training.packing import pack
from lowmem_spin.engines.training.trees import Tree, by_prompt, cuts

CPU = torch.device("cpu")
WINDOW = 8  # shorter than the rows
SHAPE: dict[str, Any] = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
CAPPED = {"head_dim": 16, "attn_logit_softcapping": 2.0, "sliding_window": WINDOW, "attn_implementation": "eager"}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=16)),
    "gemma 2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, **CAPPED)),
    "gemma 3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=WINDOW)),
    "qwen 3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=WINDOW)),
    "gpt 2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=200, n_embd=64, n_layer=3, n_head=4, n_positions=256, initializer_range=0.2)
    ),
}
SIZES = [(5, (4, 7)), (20, (13, 2)), (1, (9,)), (11, (1, 30, 6))]  # of prompts and of their answers


def trees() -> list[Tree]:
    drawn = np.random.default_rng(1)
    return [Tree(drawn.integers(3, 190, p), [drawn.integers(3, 190, a) for a in answers]) for p, answers in SIZES]


def logps_and_gradients(model: Any, packs: bool, some: list[Tree]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    layout = RowLayout(packs=packs, pad=0)
    with layout.training(model):
        logps = completion_logps(model, layout.rows(some))
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("checkpointing", "short"), [(False, 128), (False, 0), (False, 20), (True, 128), (True, 20)])
def test_packed_rows_are_the_padded_ones(name: str, checkpointing: bool, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether segments are attended to together, one by one, or some so and some so."""
    monkeypatch.setattr(packing, "SHORT", short)
    monkeypatch.setattr(packing, "TOGETHER", 3)
    torch.manual_seed(0)
    model = MODELS[name]().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    padded, expected = logps_and_gradients(model, False, trees())
    if checkpointing:  # the backward computes the layers again
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    packed, found = logps_and_gradients(model, True, trees())
    torch.testing.assert_close(packed, padded, atol=1e-4, rtol=0)
    assert found.keys() == expected.keys()
    scale = max(gradient.norm().item() for gradient in expected.values())
    for weight, gradient in expected.items():
        assert (found[weight] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * scale, weight
    assert why_not_packed(model.eval(), decoder_states, range(3, 190), 0, CPU, "float32") is None


def test_a_4_bit_base_with_an_adapter_packs_alike(quickstart: Path) -> None:
    engine = open_hf(quickstart / "base")
    shake_slot(engine)
    model = engine.model.get_base_model()
    assert engine.layout.packs
    rows = [Tree([1, 3, *range(40, 49), 5, 4], [[70, 71, 5], [80, 81, 82, 83, 5]]), Tree([1, 3, 50, 5, 4], [[90, 5], [5]])]
    (padded, expected), (packed, found) = (logps_and_gradients(model, packs, rows) for packs in (False, True))
    torch.testing.assert_close(packed, padded, atol=1e-4, rtol=0)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    assert any("lora_A" in name and gradient.norm() > 0 for name, gradient in found.items())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_an_answer_is_unmoved_by_the_others_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    first, *rest = trees()
    changed = Tree(first.prompt, [np.asarray(first.answers[0])[::-1] + 1, *first.answers[1:]])
    before, after = (completion_logps(model, pack([tree, *rest])) for tree in (first, changed))
    assert before[0] != after[0]
    assert torch.equal(before[1:], after[1:])


def test_a_cpu_that_will_go_back_attends_to_few_keys_in_float32() -> None:
    """Bit for bit as if it had been asked in float32; to many keys, and without a backward pass, as it was asked."""
    row = pack(
        [Tree(np.arange(9), [np.arange(5), np.arange(30)]), Tree(np.arange(attention.FASTER_IN_FLOAT32), [np.arange(40)])]
    )
    torch.manual_seed(0)
    many = row.segments[2]
    q, k, v = (torch.randn(1, heads, row.input_ids.shape[1], 16).bfloat16() for heads in (4, 2, 2))
    precise, half = attend(q.float(), k.float(), v.float(), row).bfloat16(), attend(q, k, v, row)
    found = attend(q.requires_grad_(), k, v, row).detach()
    assert torch.equal(found[:, : many.start], precise[:, : many.start])
    assert not torch.equal(found[:, : many.start], half[:, : many.start])
    assert torch.equal(found[:, many.start :], half[:, many.start :])


def flash(q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, max_q: int, max_k: int, **options: Any) -> Tensor:
    """What torch.nn.attention.varlen.varlen_attn computes, written by its documentation, sequence by sequence."""
    left, right = options["window_size"]
    assert right == 0 and max_q == q_ends.diff().max() and max_k == k_ends.diff().max()
    repeated = [tensor.repeat_interleave(q.shape[1] // tensor.shape[1], 1) for tensor in (k, v)]
    assert options["enable_gqa"] == (q.shape[1] != k.shape[1])
    out = []
    for n in range(len(q_ends) - 1):
        queries = q[q_ends[n] : q_ends[n + 1]].transpose(0, 1)
        keys, values = (tensor[k_ends[n] : k_ends[n + 1]].transpose(0, 1) for tensor in repeated)
        own = torch.arange(keys.shape[1])[-queries.shape[1] :, None]
        distance = own - torch.arange(keys.shape[1])
        seen = (distance >= 0) & ((distance <= left) if left >= 0 else torch.tensor(True))
        out.append(
            F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=options["scale"]).transpose(0, 1)
        )
    return torch.cat(out)


@pytest.mark.parametrize("name", ["llama", "gemma 3", "gpt 2"])
@torch.no_grad()
def test_what_the_kernel_is_given_is_the_same_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    expected = completion_logps(model, pack(trees()))
    monkeypatch.setattr(attention, "_has_kernel", lambda query: True)
    monkeypatch.setattr(attention, "varlen_attn", flash)
    torch.testing.assert_close(completion_logps(model, pack(trees())), expected, atol=1e-4, rtol=0)


def test_a_model_that_cannot_be_packed_is_padded_and_says_so(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state_space = MambaForCausalLM(MambaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, pad_token_id=0)).eval()
    assert why_not_packed(state_space, decoder_states, range(3, 190), 0, CPU, "float32") is not None
    monkeypatch.setattr(attention, "attend", lambda query, *_, **__: query.transpose(1, 2))  # attends to nothing
    engine, said = open_hf(quickstart / "base", quantization="none"), []
    engine.layout = engine._layout(said.append)
    assert not engine.layout.packs
    assert len(said) == 1 and said[0].startswith(
        "GemmaForCausalLM: rows are padded, as its attention cannot be packed (log-probs"
    )
    monkeypatch.undo()
    packed = open_hf(quickstart / "base", quantization="none")
    rows = [([1, 3, 70, 5, 4], [80, 81, 5]), ([1, 3, 70, 5, 4], [82, 5]), ([1, 4], [60, 5])]
    assert engine.score(None, rows) == pytest.approx(packed.score(None, rows), abs=1e-4)


@torch.no_grad()
def test_a_kernel_that_refuses_means_padding_and_a_full_memory_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["llama"]().eval()
    monkeypatch.setattr(attention, "_has_kernel", lambda query: True)

    def answering(error: RuntimeError) -> None:
        def kernel(*_: Any, **__: Any) -> Tensor:
            raise error

        monkeypatch.setattr(attention, "varlen_attn", kernel)

    answering(RuntimeError("no kernel for\nthis head"))
    assert why_not_packed(model, decoder_states, range(3, 190), 0, CPU, "float32") == "RuntimeError: no kernel for this head"
    answering(torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        why_not_packed(model, decoder_states, range(3, 190), 0, CPU, "float32")


@torch.no_grad()
@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_gemma_2_is_scored_with_its_cap(layout: str, quickstart: Path, tmp_path: Path) -> None:
    """Against transformers' own attention of this model, which torch's leaves out: in either layout."""
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": 300}
    model = Gemma2ForCausalLM(Gemma2Config(**shape, **CAPPED)).eval()
    model.save_pretrained(tmp_path)
    for file in (*quickstart.glob("base/*token*"), *quickstart.glob("base/*.jinja")):
        shutil.copy(file, tmp_path)
    recipe = recipe_on(tmp_path, "none")
    recipe = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"layout": layout})})
    engine = HF(recipe, Source(str(tmp_path), None, "test"), Machine("cpu", "float32"))
    assert engine.layout.packs == (layout == "auto")
    rows = [([1, 70, 71, 5, 4, 60, 61], [80, 81, 5]), ([1, 70, 71, 5, 4, 60, 61], [82, 90, 91, 92, 5])]
    for (prompt, answer), logp in zip(rows, engine.score(None, rows), strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        assert logp == pytest.approx(logits[range(len(answer)), answer].sum().item(), abs=1e-3)


def test_training_is_the_same_however_it_is_cut_or_laid_out(quickstart: Path, tmp_path: Path) -> None:
    pairs, plain = some_pairs(14), {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.05, "num_train_epochs": 1}
    found = []
    for tokens, packs in ((4000, True), (45, True), (4000, False)):
        engine = open_hf(quickstart / "base", per_device_train_batch_size=4)
        training = engine.recipe.training.model_copy(update={"tokens_per_batch": tokens})
        engine.recipe = engine.recipe.model_copy(update={"training": training})
        engine.layout = RowLayout(packs=packs, pad=engine.pad)
        loss = {"name": "dpo", "beta": 0.3}
        folder, _ = engine.train(None, pairs, loss, SETTINGS | plain, tmp_path / f"{tokens} {packs}", lambda *told: None)
        engine.slot.fill(folder)
        found.append({name: p.detach().clone() for name, p in engine.model.named_parameters() if "lora_B" in name})
    assert max(weight.abs().max() for weight in found[0].values()) > 1e-3
    for other in found[1:]:
        for name, weight in found[0].items():
            torch.testing.assert_close(weight, other[name], atol=2e-5, rtol=0)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(0, 120), st.none() | st.integers(1, 5))
def test_cuts_keep_order_and_limits_and_are_no_more_than_needed(sizes: list[int], most: int, at_most: int | None) -> None:
    runs = cuts(sizes, most, at_most)
    assert [place for run in runs for place in run] == list(range(len(sizes)))
    for run in runs:
        assert len(run) == 1 or sum(sizes[place] for place in run) <= most
        assert at_most is None or len(run) <= at_most
    for run, after in itertools.pairwise(runs):
        full = sum(sizes[place] for place in run) + sizes[after.start] > most
        assert full or len(run) == at_most


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=20), st.integers(0, 40))
def test_rows_of_one_prompt_share_trees(shape: list[tuple[int, int]], most: int) -> None:
    rows = [([prompt] * (prompt + 1), [number] * size) for number, (prompt, size) in enumerate(shape)]
    found = by_prompt(rows, most)
    assert sorted(number for _, numbers in found for number in numbers) == list(range(len(rows)))
    for tree, numbers in found:
        assert [(list(tree.prompt), list(answer)) for answer in tree.answers] == [rows[number] for number in numbers]
        assert tree.tokens <= most or len(numbers) == 1
