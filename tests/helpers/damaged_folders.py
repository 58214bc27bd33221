"""Folders of models that something has happened to: every kind of harm, made from a seed."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from helpers.games import QUICKSTART

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CODE = "import pathlib\npathlib.Path(__file__).with_name('RAN').touch()\nraise RuntimeError('a stranger\\'s code ran')\n"
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
    *("{{ messages[0]['content'][9] }}{{ [][0] }}", "{{ int('x') }}", "{{ '%d' % 'x' }}", "{{ messages | sum }}"),
]
Harm = Callable[[random.Random, Path], Any]


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def spell(path: Path, content: Any) -> None:
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(content))


def disturb(r: random.Random, content: Any, known: list[str]) -> Any:
    """Drop, change, rename or add something, anywhere inside."""
    holder: Any = content
    while True:
        keys = list(holder if isinstance(holder, dict) else range(len(holder)))
        key: Any = r.choice(keys) if keys else "x"
        inner = holder[key] if keys else None
        if not (isinstance(inner, dict | list) and inner and r.random() < 0.7):
            break
        holder = inner
    match r.randrange(5):
        case 0 if keys:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[r.choice(known)] = r.choice(VALUES)
        case 2 if keys and isinstance(holder, dict):
            holder[r.choice(known)] = holder.pop(key)
        case 3 if isinstance(inner, int) and not isinstance(inner, bool):
            holder[key] = r.choice([inner + 1, inner * 2, inner // 2, -inner, float(inner), str(inner), [inner]])
        case _ if isinstance(holder, dict) or keys:
            holder[key] = r.choice(VALUES)
    return content


def spoil(r: random.Random, path: Path) -> Any:
    """A file that is no longer what its name says."""
    content = path.read_bytes() if path.is_file() else b"{}"
    path.unlink(missing_ok=True)
    at, kind = r.randrange(len(content) + 1), r.randrange(13)
    match kind:
        case 0:
            pass
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("nowhere")
        case 3:
            path.symlink_to(path.name)
        case _:
            others = [b"", b"[]", b"null", b'"x"', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe{}"]
            others += [content[:at], content[:at] + b"\x00" + content[at + 1 :], b"\xef\xbb\xbf" + content]
            path.write_bytes(r.choice(others) if kind < 9 else others[kind - 3])
    return kind


def any_file(r: random.Random, base: Path) -> Any:
    name = r.choice(
        [*(path.name for path in base.iterdir()), "special_tokens_map.json", "added_tokens.json", INDEX, "adapter_config.json"]
    )
    return name, spoil(r, base / name)


def json_of(name: str, known: list[str]) -> Harm:
    def harm(r: random.Random, base: Path) -> Any:
        content = read(base / name)
        for _ in range(r.choice([1, 1, 1, 2, 3])):
            content = disturb(r, content, known)
        if name == "config.json" and r.random() < 0.3:
            content["model_type"] = r.choice(KINDS)
        spell(base / name, content)
        same = read(QUICKSTART / "base" / name)
        return name, str({key: value for key, value in content.items() if same.get(key, same) != value})[:300]

    return harm


def sizes(r: random.Random, base: Path) -> Any:
    """Numbers that are too large, too small or no numbers, where a config has its sizes."""
    content = read(base / "config.json")
    names = [name for name, value in content.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    changed = {r.choice(names): r.choice([*VALUES, 10**9, 10**15, 7, 33]) for _ in range(r.choice([1, 1, 2]))}
    spell(base / "config.json", content | changed)
    return changed


def quantized(r: random.Random, base: Path) -> Any:
    stored: Any = {"quant_method": r.choice(QUANTIZED)}
    stored |= {name: r.choice(VALUES) for name in r.sample(["load_in_4bit", "load_in_8bit", "bits", "group_size"], 2)}
    stored |= r.choice([{}, {"bnb_4bit_quant_type": "nf4"}, {"bnb_4bit_compute_dtype": r.choice(VALUES)}])
    stored = r.choice([stored, stored, stored, stored, r.choice(VALUES)])
    inside = r.random() < 0.2
    spell(base / "config.json", read(base / "config.json") | {"quantization_config": {"a": stored} if inside else stored})
    return stored


def code(r: random.Random, base: Path) -> Any:
    """A stranger's code, named wherever code can be named."""
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
        (base / name).write_text(CODE)
    (base / "custom_generate").mkdir()
    (base / "custom_generate" / "generate.py").write_text(CODE.replace("__file__", f"{str(base / 'x')!r}"))
    names: Any = r.choice(["evil.Evil", ["evil.Evil", "evil.Evil"], "evil", f"{base}--evil.Evil", 7, [None, "evil.Evil"]])
    autos = ["AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer"]
    mapped = dict.fromkeys(r.sample(autos, r.randrange(1, 5)), names)
    files = r.sample(
        ["config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"], r.choice([1, 1, 2])
    )
    for name in set(files) - {"adapter_config.json"}:
        spell(base / name, read(base / name) | {"auto_map": mapped, "tokenizer_class": "Evil", "custom_generate": "."})
    if r.random() < 0.5:
        spell(base / "config.json", read(base / "config.json") | {"model_type": "evil"})
    return files, mapped


def template(r: random.Random, base: Path) -> Any:
    text: Any = r.choice(TEMPLATES)
    whole = (base / "chat_template.jinja").read_text()
    if r.random() < 0.4:
        text = whole.replace(r.choice(["{% endfor %}", "}}", "message", "<end_of_turn>", "| trim", "bos_token"]), text, 1)
    if r.random() < 0.7:
        (base / "chat_template.jinja").write_text(text)
        return text
    (base / "chat_template.jinja").unlink()
    text = r.choice([text, [{"name": "default", "template": text}], {"default": text}, [text], [{"name": "x"}]])
    spell(base / "tokenizer_config.json", read(base / "tokenizer_config.json") | {"chat_template": text})
    return text


def specials(r: random.Random, base: Path) -> Any:
    tokens = [
        None,
        "",
        "<eos>",
        "<pad>",
        "<nope>",
        "a",
        " ",
        {"content": "<bos>"},
        {"content": 4},
        {},
        ["<eos>"],
        2,
        "<end_of_turn>",
    ]
    changed: Any = {name: r.choice(tokens) for name in r.sample(["eos_token", "pad_token", "bos_token", "unk_token"], 2)}
    name = r.choice(["tokenizer_config.json", "tokenizer_config.json", "special_tokens_map.json"])
    spell(base / name, read(base / name) | changed)
    if r.random() < 0.4:
        ids: Any = {
            "eos_token_id": r.choice([*VALUES, 287, 288, [2, 288], [2, "x"], [2, -1], [[2]]]),
            "pad_token_id": r.choice(VALUES),
        }
        target = r.choice(["config.json", "generation_config.json"])
        spell(base / target, read(base / target) | ids)
        changed |= ids
    return name, changed


def vocabulary(r: random.Random, base: Path) -> Any:
    content, kind = read(base / "tokenizer.json"), r.randrange(6)
    vocab = content["model"]["vocab"]
    match kind:
        case 0:
            content["added_tokens"] += [{**content["added_tokens"][0], "id": 262 + n, "content": f"<{n}>"} for n in range(40)]
        case 1:
            content["model"]["vocab"] = {word: place for place, word in enumerate(list(vocab)[: r.randrange(262)])}
        case 2:
            vocab[r.choice(list(vocab))] = r.choice([-1, 10**6, 2**32, 2**40, 3, "x", None])
        case 3:
            content["model"] = {"type": r.choice(["BPE", "WordLevel", "Unigram", "WordPiece", "X"]), "vocab": vocab}
        case 4:
            content["model"] |= {"unk_token": r.choice(["<nope>", "<pad>", 4]), "unk_id": r.choice([0, 10**6, "x"])}
        case _:
            content[r.choice(["normalizer", "pre_tokenizer", "post_processor", "decoder"])] = r.choice(
                [None, {}, {"type": "X"}, {"type": "Replace", "pattern": {"Regex": "("}, "content": "x"}, {"type": "Lowercase"}]
            )
    spell(base / "tokenizer.json", content)
    return kind


def bytes_of(path: Path) -> Harm:
    def harm(r: random.Random, base: Path) -> Any:
        content, kind = bytearray((base / path).read_bytes()), r.randrange(8)
        start = 8 + int.from_bytes(content[:8], "little")
        match kind:
            case 0:
                content = content[: r.randrange(len(content))]
            case 1 | 2:
                for _ in range(r.choice([1, 3])):
                    content[r.randrange(8, start)] = r.randrange(256)
            case 3:
                content[r.randrange(8)] = r.randrange(256)
            case 4:
                for _ in range(r.choice([1, 500])):
                    content[r.randrange(start, len(content))] ^= 1 << r.randrange(8)
            case 5:
                content = bytearray()
            case 6:
                content += b"\0" * r.randrange(1, 100)
            case _:
                content[:8] = (2 ** r.randrange(20, 63)).to_bytes(8, "little")
        (base / path).unlink()
        (base / path).write_bytes(content)
        return kind

    return harm


def tensors_of(path: Path) -> Harm:
    def harm(r: random.Random, base: Path) -> Any:
        found, kind = load_file(base / path), r.randrange(9)
        for name in r.sample(sorted(found), r.choice([1, 1, 2, 9])):
            one = found[name]
            match kind:
                case 0:
                    del found[name]
                case 1:
                    found[
                        r.choice([f"x.{name}", name.replace(".", "_"), name + "s", "", name.replace("0", "9"), "x" * 3000])
                    ] = found.pop(name)
                case 2:
                    shapes = [
                        one.T,
                        one[:1],
                        one[:0],
                        one[None],
                        one.flatten(),
                        torch.cat([one, one]),
                        one.sum(),
                        one[..., :-1],
                    ]
                    found[name] = r.choice(shapes).contiguous()
                case 3:
                    kinds = [
                        torch.float64,
                        torch.float16,
                        torch.int8,
                        torch.int64,
                        torch.bool,
                        torch.uint8,
                        torch.float8_e4m3fn,
                    ]
                    found[name] = one.to(r.choice(kinds))
                case 4 | 5:
                    spot = one.flatten()
                    spot[r.randrange(len(spot))] = r.choice([math.nan, math.inf, -math.inf])
                case 6:
                    found[name] = one * r.choice([0, 1e38, -1e20])
                case 7:
                    found[f"{name}.absmax"] = one.clone()
                case _:
                    found[r.choice(["lm_head.weight", "model.layers.9.mlp.up_proj.weight", "x", "x" * 3000])] = one.clone()
        (base / path).unlink()
        save_file(found, base / path)
        return kind

    return harm


def index(r: random.Random, base: Path) -> Any:
    """Shards and an index of them that may be wrong."""
    found = load_file(base / WEIGHTS)
    names = sorted(found)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for shard, own in parts.items():
        save_file({name: found[name] for name in own}, base / shard, metadata={"format": "pt"})
    listed: Any = {name: shard for shard, own in parts.items() for name in own}
    kind = r.randrange(8)
    match kind:
        case 0:
            pass
        case 1:
            listed[r.choice(names)] = r.choice(["c.safetensors", "../x", "/etc/passwd", "config.json", "x.bin", *VALUES])
        case 2:
            del listed[r.choice(names)]
        case 3:
            listed["more.weight"] = "a.safetensors"
        case 4:
            listed = r.choice([{}, [], None, "x", ["a.safetensors"], dict.fromkeys(names, "a.safetensors")])
        case 5:
            (base / r.choice(list(parts))).unlink()
        case 6:
            (base.parent / "x.safetensors").write_bytes((base / WEIGHTS).read_bytes())
            listed = dict.fromkeys(names, "../x.safetensors")
        case _:
            listed = {name: "b.safetensors" if shard[0] == "a" else "a.safetensors" for name, shard in listed.items()}
    if r.random() < 0.8:
        (base / WEIGHTS).unlink()
    spell(base / INDEX, {"metadata": {"total_size": 1} if r.random() < 0.8 else r.choice(VALUES), "weight_map": listed})
    return kind


ADAPTER = Path("..", "adapter")
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
HARMS: dict[str, tuple[Harm, int]] = {
    "nothing": (lambda r, base: None, 1),
    "any file": (any_file, 4),
    "config": (json_of("config.json", CONFIG), 5),
    "sizes": (sizes, 5),
    "quantized": (quantized, 2),
    "code": (code, 2),
    "tokenizer": (json_of("tokenizer.json", TOKENIZER), 2),
    "vocabulary": (vocabulary, 2),
    "tokenizer config": (json_of("tokenizer_config.json", TOKENIZER), 2),
    "specials": (specials, 2),
    "generation config": (json_of("generation_config.json", GENERATION), 2),
    "template": (template, 3),
    "bytes": (bytes_of(Path(WEIGHTS)), 3),
    "tensors": (tensors_of(Path(WEIGHTS)), 4),
    "index": (index, 2),
    "adapter config": (json_of(str(ADAPTER / "adapter_config.json"), LORA), 2),
    "adapter file": (
        lambda r, base: spoil(r, base / ADAPTER / r.choice(["adapter_config.json", "adapter_model.safetensors"])),
        1,
    ),
    "adapter bytes": (bytes_of(ADAPTER / "adapter_model.safetensors"), 1),
    "adapter tensors": (tensors_of(ADAPTER / "adapter_model.safetensors"), 2),
}
