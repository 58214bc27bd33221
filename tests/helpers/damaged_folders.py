"""Folders of models that something has happened to: every kind of harm, made from a seed."""

import random
from pathlib import Path
from typing import Any

from helpers.damaged_values import CONFIG, GENERATION, KINDS, LORA, QUANTIZED, TEMPLATES, TOKENIZER, VALUES, Harm, read, spell
from helpers.damaged_weights import INDEX, WEIGHTS, bytes_of, index, tensors_of
from helpers.games import QUICKSTART

ADAPTER = Path("..", "adapter")
CODE = "import pathlib\npathlib.Path(__file__).with_name('RAN').touch()\nraise RuntimeError('a stranger\\'s code ran')\n"


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
            others += [b"NaN", b"2", b'{"model_type": "llama", "model_type": "llama"}', b"{" + b'"a": {' * 500 + b"}" * 501]
            others += [
                content[:1] + b'"vocab_size": 1' + b"0" * 4400 + b", " + content[1:],
                content.decode("latin-1").encode("utf-16"),
            ]
            others += [content[:at], content[:at] + b"\x00" + content[at + 1 :], b"\xef\xbb\xbf" + content]
            path.write_bytes(r.choice(others) if kind < 9 else others[kind - 13])
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


ADAPTER = Path("..", "adapter")
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
