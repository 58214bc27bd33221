"""What a model's JSON files say, held against what they can say: every later check, and transformers, reckons with it."""

import math
from collections.abc import Iterator
from typing import Any

from lowmem_spin.common.errors import shortened
from lowmem_spin.engines.model_files import LENGTHS, ModelFiles, none_of_a_model

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SIZES = (*DEPTHS, *LENGTHS, "vocab_size", "hidden_size", "n_embd")
COUNTS = (  # 0 is none
    *("num_attention_heads", "n_head", "intermediate_size", "num_key_value_heads", "head_dim", "n_inner"),
    *("num_local_experts", "num_experts"),
    *("n_routed_experts", "moe_num_experts", "moe_intermediate_size", "shared_expert_intermediate_size", "n_shared_experts"),
    *("num_experts_per_tok", "moe_k", "decoder_sparse_step", "first_k_dense_replace", "num_nextn_predict_layers"),
)
OBJECTS = ("text_config", "auto_map", "quantization_config", "rope_scaling", "rope_parameters", "attn_config")
FLAGS = ("is_causal", "is_decoder", "is_encoder_decoder", "tie_word_embeddings")
DEEPEST, LARGEST = 10_000, 2**31 - 1  # of layers, and of any other size: there is no larger model
START = "original_max_position_embeddings"  # of stretched rotary positions
LLAMAS = {"llama", "gemma", "gemma2", "gemma3_text", "mistral", "qwen2", "qwen3"}
"""Model types whose layers have these shapes, all alike."""


def check_config(files: ModelFiles) -> None:
    """Refuse a config whose fields are of other types, or of sizes that no model has.

    Raises:
        InputError: one line with the field and what it is.
    """
    for config in (files.whole_config, files.config):
        for name, wanted in _wrong(config):
            told = f"its config.json has {name} {shortened(repr(config[name]))}, which is no {wanted}; fetch it again"
            raise none_of_a_model(files.model, told)


def check_shapes(files: ModelFiles) -> None:
    """Refuse a checkpoint whose layers are of other sizes than its config says, where that is easily told."""
    config = files.config
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    sizes = [config.get(name) for name in names]
    if config.get("model_type") not in LLAMAS or not all(isinstance(size, int) and size for size in sizes):
        return
    hidden, heads, kv, head, inner = (int(size or 0) for size in sizes)
    wanted = {
        **{"q_proj": (heads * head, hidden), "o_proj": (hidden, heads * head), "embed_tokens": (None, hidden)},
        **dict.fromkeys(("k_proj", "v_proj"), (kv * head, hidden)),
        **{"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)},
    }
    for name, weight in files.weights.items():
        module = name.removesuffix(".weight")
        shape = wanted.get(module.rpartition(".")[2])
        if shape is None or module == name or len(weight.shape) != 2 or weight.dtype == "U8":
            continue
        if weight.shape[1] != shape[1] or shape[0] not in (None, weight.shape[0]):
            asked, there = (" x ".join(map(str, sizes)) for sizes in ((shape[0] or weight.shape[0], shape[1]), weight.shape))
            told = f"by its config.json {module} is {asked}, in its checkpoint {there}; take both from one model"
            raise none_of_a_model(files.model, told)


def _wrong(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(a field that cannot be what it is, what it should be)."""
    if not isinstance(config.get("model_type"), str | None):
        yield "model_type", "name"
    if not _is_names(config.get("architectures") or []):
        yield "architectures", "list of names"
    for name in FLAGS:
        if not isinstance(config.get(name), bool | None):
            yield name, "true or false"
    for name in OBJECTS:
        if not isinstance(config.get(name) or {}, dict):
            yield name, "object"
    for name in (*SIZES, *COUNTS):
        each = config.get(name)
        least, most = int(name in SIZES), DEEPEST if name in DEPTHS else LARGEST
        for value in each if isinstance(each, list) and name in COUNTS else [each]:  # some have one for every layer
            if value is not None and not (isinstance(value, int) and least <= value <= most):
                yield name, f"whole number from {least} to {most}"
                break
    for name in ("rope_scaling", "rope_parameters"):
        rope = config.get(name) or {}
        for part in (rope, *rope.values()):
            if isinstance(part, dict) and not all(map(_is_factor, (part.get("factor"), part.get(START)))):
                yield name, "scaling: its factors are positive numbers"


def _is_factor(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value) and 0 < value <= LARGEST)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
