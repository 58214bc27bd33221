"""What a stranger's JSON files can say: values of every kind, the names of fields, chat templates."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Harm = Callable[[random.Random, Path], Any]


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def spell(path: Path, content: Any) -> None:
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(content))


VALUES: list[Any] = [
    *(None, 0, -1, 1, 2, 3, 5, 64, 128, 10**6, 10**12, 2**63, 10**30, 0.5, -1.5, math.nan, math.inf, "", "x", "4", "../x"),
    *(True, False, [], {}, [1], [0, -1], [None], ["x"], {"a": 1}, [[{}]], "x" * 3000, "\x1b[2J\n", "\ud83d"),
]
KINDS = [
    *("llama", "gemma", "gemma2", "gemma3", "gemma3_text", "qwen2", "qwen3", "mistral", "phi", "gpt2", "gpt_neox", "opt"),
    *("bloom", "falcon", "mamba", "mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "jamba", "qwen3_next", "bert", "t5"),
    *("whisper", "clip", "xlnet", "cohere", "olmo2", "granite", "llama4_text", "nope", ""),
]
CONFIG = [
    *("rope_scaling", "rope_parameters", "text_config", "tie_word_embeddings", "dtype", "torch_dtype", "layer_types"),
    *("sliding_window", "is_encoder_decoder", "is_decoder", "num_nextn_predict_layers", "attn_config", "alibi", "auto_map"),
    *("use_bidirectional_attention", "logit_scale", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"),
    *("attn_implementation", "_attn_implementation", "pruned_heads", "torchscript", "return_dict", "use_return_dict"),
    *("output_hidden_states", "output_attentions", "vision_config", "pretraining_tp", "partial_rotary_factor", "n_embd"),
    *("quantization_config", "tokenizer_class", "sep_token_id", "suppress_tokens", "max_length", "is_causal", "problem_type"),
    *("id2label", "num_labels", "attn_logit_softcapping", "final_logit_softcapping", "n_positions", "max_seq_len"),
]
TOKENIZER = [
    *("chat_template", "eos_token", "bos_token", "pad_token", "unk_token", "additional_special_tokens", "tokenizer_class"),
    *("added_tokens_decoder", "model_max_length", "extra_special_tokens", "auto_map", "padding_side", "add_bos_token"),
    *("clean_up_tokenization_spaces", "backend", "split_special_tokens", "legacy", "fast_tokenizer_files", "truncation_side"),
]
GENERATION = [
    *("eos_token_id", "pad_token_id", "bos_token_id", "max_length", "suppress_tokens", "forced_bos_token_id", "temperature"),
    *("do_sample", "top_k", "num_beams", "cache_implementation", "transformers_version", "stop_strings", "watermarking_config"),
    *("custom_generate", "assistant_model", "compile_config", "return_dict_in_generate"),
]
QUANTIZED = [
    *("bitsandbytes", "awq", "gptq", "fp8", "compressed-tensors", "mxfp4", "torchao", "hqq", "quanto", "aqlm", "bitnet"),
    *("nope", "", None, 4, ["awq"]),
]
TEMPLATES = [
    *("", "{", "{{", "{% for m in messages %}", "{{ nothing.at.all }}", "{{ 1 / 0 }}", "{{ raise_exception('no\nnever') }}"),
    *("{% for i in range(10 ** 9) %}x{% endfor %}", "{{ 'x' * 10 ** 12 }}", "{{ messages[7]['content'] }}", "{{ 'a' + 1 }}"),
    *("{{ messages[0]['content'] }}", "{{ messages }}", "{% include 'x' %}", "{% import '/etc/passwd' as x %}", "plain text"),
    *("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% set x = namespace() %}{{ x.y.z }}", "{{ messages | tojson }}"),
    *("{{ messages[0].content | nope }}", "{% generation %}{% endgeneration %}", "{{ strftime_now('%') }}", "{{ messages() }}"),
    *("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"),
    *("{% for m in messages %}{{ m.content }}{% endfor %}", "{{ messages[0].content.encode().decode('nope') }}"),
    *(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'xy' * 999999 }}",
        "{{ 2 ** (9 ** 9) }}",
    ),
    *(
        "{{ messages[0]['content'][9] }}{{ [][0] }}",
        "{{ int('x') }}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ '%d' % 'x' }}",
        "{{ messages | sum }}",
    ),
]
LORA = [
    *(
        "r",
        "lora_alpha",
        "peft_type",
        "target_modules",
        "bias",
        "use_dora",
        "use_rslora",
        "rank_pattern",
        "base_model_name_or_path",
    ),
    *("modules_to_save", "auto_mapping", "task_type", "init_lora_weights", "layers_to_transform", "fan_in_fan_out", "revision"),
    *("lora_bias", "exclude_modules", "eva_config", "corda_config", "inference_mode", "megatron_config", "runtime_config"),
]
