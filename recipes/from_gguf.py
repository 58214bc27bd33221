"""Make a model folder of a GGUF file, for model.name_or_path.

    pip install gguf
    python recipes/from_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf --to smollm2-135m

Weights and config are read by transformers. The tokenizer is not: its conversion takes one token for another (the end of
SmolLM2's turns, digits) or splits Gemma 3's texts into letters. Here it is made of the file's tokens, their types, and merges
or scores, loaded again and held against them. A folder is made only if all of it holds; `--tokenizer` takes the original one
where a file's kind is not known here. Weights stay as coarse as the file's quantization made them.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lowmem_spin.common.errors import InputError, quoted, shortened

ENGLISH = (
    "The committee met on a cold morning in November to talk about the new library. Most of its members had read the plans, "
    "and some of them thought that the building would be too small for a town that grows every year."
)
TEXTS = (ENGLISH, "def area(r):\n    return 3.14159 * r ** 2  # 1,024\n", "Ça va? Größe, naïve, 東京は大きい。 Привет 🙂")
UNKNOWN, CONTROL, OWN, BYTE = 2, 3, 4, 6  # types of tokens that are not pieces of texts; llama.cpp's llama_token_type
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: dict[str, str | None] = {
    "gpt-2": None,
    "smollm": r"\p{N}",
    "qwen2": QWEN,
    "llama-bpe": QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),
}
"""tokenizer.ggml.pre: what words are, before GPT-2's own rule or instead of it; after llama.cpp's src/llama-vocab.cpp."""
REACHED = 0.9  # least share of tokens that a text which is one token has to be split into


class Contents(NamedTuple):
    """What a GGUF file says."""

    path: Path
    fields: dict[str, Any]
    numbers: dict[str, int]  # of each tensor

    @property
    def tokens(self) -> list[str]:
        return self.fields["tokenizer.ggml.tokens"]

    def token(self, name: str) -> int | None:
        """Id of a special token: eos, bos, padding, unknown, eot."""
        found = self.fields.get(f"tokenizer.ggml.{name}_token_id")
        return found if found is not None and 0 <= found < len(self.tokens) else None


def read(path: Path) -> Contents:
    """A GGUF file's metadata and the sizes of its tensors.

    Raises:
        InputError: it is none, or has no tokenizer.
    """
    if not path.is_file():
        raise InputError(f"{str(path)!r}: no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{str(path)!r} is no GGUF file: it does not begin with GGUF; fetch it again")
    try:
        reading = importlib.import_module("gguf")
    except ImportError:
        raise InputError("this needs the package gguf, which reads such files: pip install gguf") from None
    try:
        reader = reading.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        numbers = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    except (ValueError, LookupError, OverflowError, OSError) as error:  # what numpy says of a file that ends too early
        raise InputError(f"{str(path)!r} is damaged or cut short ({shortened(str(error))}); fetch it again") from None
    if not fields.get("tokenizer.ggml.tokens"):
        raise InputError(f"{str(path)!r} has no tokenizer; take a file of a whole language model")
    if len(set(fields["tokenizer.ggml.tokens"])) < len(fields["tokenizer.ggml.tokens"]):
        raise InputError(f"{str(path)!r} has a token twice; give its original tokenizer by --tokenizer")
    return Contents(path, fields, numbers)


def build_tokenizer(contents: Contents) -> Any:
    """The tokenizer that the file's tokens, types, and merges or scores describe, as transformers has it.

    Raises:
        InputError: it is of a kind that is not known here.
    """
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    fields, tokens = contents.fields, contents.tokens
    kind, words = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    types = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if kind == "gpt2" and words in SPLITS:
        core: Tokenizer = _of_bytes(contents, words)
    elif kind == "llama" and "tokenizer.ggml.scores" in fields:
        core = _of_pieces(contents, types)
    else:
        raise InputError(
            f"tokenizer.ggml.model {kind!r}, tokenizer.ggml.pre {words!r}: this kind of tokenizer is not known here; give the "
            "original one by --tokenizer, a folder or a name on the hub"
        )
    for token, its in zip(tokens, types, strict=True):  # one by one: special or not, each keeps its place
        if its in (UNKNOWN, CONTROL):
            core.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif its == OWN:
            core.add_tokens([AddedToken(token, special=False, normalized=False)])
    named = {"eos": contents.token("eos"), "bos": contents.token("bos"), "pad": contents.token("padding")}
    if kind == "llama":
        named["unk"] = contents.token("unknown")
    if fields.get("tokenizer.ggml.add_bos_token", kind == "llama") and named["bos"] is not None:
        first = tokens[named["bos"]]
        core.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, named["bos"])])
    special: dict[str, Any] = {f"{name}_token": tokens[number] for name, number in named.items() if number is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **special)
    tokenizer.chat_template = fields.get("tokenizer.chat_template")
    tokenizer.model_max_length = fields.get(f"{fields.get('general.architecture')}.context_length", tokenizer.model_max_length)
    return tokenizer


def _of_bytes(contents: Contents, words: str) -> Any:
    """Byte-level BPE, as GPT-2's, Llama 3's and Qwen's."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(merge.split(" ", 1)) for merge in contents.fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(contents.tokens)}
    split = SPLITS[words]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=words == "llama-bpe"))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words in ("gpt-2", "smollm"))
    before = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    core.pre_tokenizer = pre_tokenizers.Sequence([*before, whole])
    core.decoder = decoders.ByteLevel()
    return core


def _of_pieces(contents: Contents, types: list[int]) -> Any:
    """SentencePiece's BPE, as Gemma's and Llama 2's: those neighbours merge first that make the token of the best score."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = dict(zip(contents.tokens, contents.fields["tokenizer.ggml.scores"], strict=True))
    pieces = {token for token, its in zip(contents.tokens, types, strict=True) if its not in (UNKNOWN, CONTROL, BYTE)}
    merges = []
    for token in pieces:
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            if left in pieces and right in pieces:
                merges.append((-scores[token], -scores[left], -scores[right], left, right))
    merges.sort()
    unknown = contents.token("unknown")
    vocabulary = {token: number for number, token in enumerate(contents.tokens)}
    core = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for *_, left, right in merges],
            unk_token=None if unknown is None else contents.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    leads = contents.fields.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if leads else spaces
    last = [decoders.Strip(" ", 1, 0)] if leads else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])
    return core


def check_tokenizer(tokenizer: Any, contents: Contents) -> Iterator[str]:
    """Hold a tokenizer, as it loads from its folder, against the file.

    Yields:
        What was seen.

    Raises:
        InputError: a token has another number, texts do not come back, or tokens are out of reach.
    """
    tokens = contents.tokens
    differ = [token for number, token in enumerate(tokens) if tokenizer.convert_tokens_to_ids(token) != number]
    if differ:
        raise InputError(
            f"the tokenizer numbers {len(differ):,} of the file's {len(tokens):,} tokens otherwise, {differ[0]!r} for one; "
            "give the original one by --tokenizer"
        )
    lost = next((text for text in TEXTS if tokenizer.decode(_ids(tokenizer, text)) != text), None)
    if lost is not None:
        raise InputError(
            f"the tokenizer does not give a text back: {lost[:40]!r} becomes {tokenizer.decode(_ids(tokenizer, lost))[:40]!r}; "
            "give the original one by --tokenizer"
        )
    types = contents.fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    pieces = [number for number, its in enumerate(types) if its == 1]
    texts = tokenizer.backend_tokenizer.decode_batch([[number] for number in pieces])
    whole = {number: text for number, text in zip(pieces, texts, strict=True) if text.strip() and "\ufffd" not in text}
    found = tokenizer(list(whole.values()), add_special_tokens=False)["input_ids"]
    reached = sum(ids == [number] for ids, number in zip(found, whole, strict=True)) / max(len(whole), 1)
    length = len(ENGLISH) / len(_ids(tokenizer, ENGLISH))
    if reached < REACHED:
        raise InputError(
            f"the tokenizer makes only {reached:.0%} of its tokens, of their own texts, and {length:.2f} characters a token of "
            "English: its merges are not the model's; give the original one by --tokenizer"
        )
    yield f"tokenizer: all {len(tokens):,} tokens have the file's numbers, {reached:.1%} are made of their own texts"
    yield f"tokenizer: {len(TEXTS)} texts come back to the letter, {length:.1f} characters a token in English"


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def ends(tokenizer: Any, contents: Contents) -> tuple[list[int], str]:
    """The tokens at which answers end, and a line on them: the file's own, and what its chat template writes."""
    from lowmem_spin.data.render import Renderer

    found = [number for name in ("eos", "eot") if (number := contents.token(name)) is not None]
    names = " and ".join(dict.fromkeys(repr(contents.tokens[number]) for number in found)) or "no token"
    if tokenizer.chat_template is None:
        return found, f"ends: {names}; the file has no chat template, so set model.chat_template in the recipe"
    try:
        end = Renderer(tokenizer, None).end_token
    except InputError as error:
        return found, f"ends: {names}; its chat template cannot be played with: {error}"
    if end in found:
        return list(dict.fromkeys(found)), f"ends: {names}; the chat template ends answers with {contents.tokens[end]!r}, too"
    told = f"ends: {names}, and {contents.tokens[end]!r}, with which the chat template ends answers"
    return list(dict.fromkeys([*found, end])), told


def load_model(contents: Contents, dtype: str) -> Any:
    """The model, unpacked.

    Raises:
        InputError: its architecture is none that transformers reads of a GGUF file, or a weight is missing or left over.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    folder, name = contents.path.parent, contents.path.name
    architecture = contents.fields.get("general.architecture")
    try:
        AutoConfig.from_pretrained(folder, gguf_file=name)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"general.architecture {architecture!r}: transformers does not read it of a GGUF file "
            f"({shortened(str(error))}); take the model's own folder"
        ) from None
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=dtype, output_loading_info=True
    )
    model, told = loaded
    if told["missing_keys"]:
        missing = sorted(told["missing_keys"])
        raise InputError(
            f"{len(missing)} weights are not in {quoted(name)}, {missing[0]} for one; take a file of the whole model"
        )
    read, given = sum(weight.numel() for weight in model.parameters()), sum(contents.numbers.values())
    if read != given:
        rotary = [tensor for tensor in contents.numbers if tensor.startswith("rope_")]
        which = f"{rotary[0]}, which stretches its positions, is not read" if rotary else "some are not read, or made up"
        raise InputError(
            f"{quoted(name)} has {given:,} weights and what transformers makes of it {read:,}: {which}; take the model's own "
            "folder"
        )
    return model


def surprise(folder: Path, tokenizer: Any) -> str:
    """A line on how well the folder's model foresees English: one whose weights are in the wrong places does not."""
    import math

    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer(ENGLISH)["input_ids"]])  # with the token that begins texts, where there is one
    with torch.no_grad():
        nats = float(model(input_ids=ids, labels=ids).loss)
    guess = math.log(model.config.get_text_config().vocab_size)
    told = f"model: {nats:.2f} nats a token on a paragraph of English; a guess costs {guess:.2f}"
    return told if nats < 0.7 * guess else f"{told}: WARNING, this model knows no English, or its weights were read wrongly"


def convert(path: Path, to: Path, dtype: str, original: str | None) -> Iterator[str]:
    """Write the folder, whole or not at all.

    Yields:
        One line for each thing done.

    Raises:
        InputError: one line that says why there is no folder.
    """
    if to.exists():
        raise InputError(f"--to {str(to)!r} exists already; give a new folder")
    contents = read(path)
    to.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(contents.numbers.values()) * (4 if dtype == "float32" else 2), shutil.disk_usage(to.parent).free
    if needed > free:
        raise InputError(f"--to {str(to)!r}: {needed / 1e9:.1f} GB are written, and {free / 1e9:.1f} GB are free there")
    os.environ.setdefault("TQDM_DISABLE", "1")  # its bar would run through these lines
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = build_tokenizer(contents) if original is None else AutoTokenizer.from_pretrained(original)
    name = contents.fields.get("general.name", path.stem)
    yield f"file: {name}, {contents.fields.get('general.architecture')}, {sum(contents.numbers.values()) / 1e6:,.1f} M weights"
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as temporary:
        folder = Path(temporary) / to.name
        tokenizer.save_pretrained(folder)
        _name_classes(folder / "tokenizer_config.json")
        loaded = AutoTokenizer.from_pretrained(folder)
        yield from check_tokenizer(loaded, contents)
        found, told = ends(loaded, contents)
        yield told
        model = load_model(contents, dtype)
        special = {"bos_token_id": loaded.bos_token_id, "pad_token_id": loaded.pad_token_id}
        special["eos_token_id"] = found[0] if len(found) == 1 else found or None
        for settings in (model.config.get_text_config(), model.generation_config):
            for field, value in special.items():
                setattr(settings, field, value)
        model.save_pretrained(folder)
        del model
        yield surprise(folder, loaded)
        folder.rename(to)
    yield f"wrote {to} in {dtype}; play it with --set model.name_or_path={to}"


def _name_classes(file: Path) -> None:
    """The class that every version of transformers knows; version 5 writes its own name for the same thing."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    """Convert one file; 2 and one line if that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--to", type=Path, required=True, help="the folder to write, which must not exist")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--tokenizer", help="the original tokenizer, a folder or a name on the hub, instead of the file's")
    asked = parser.parse_args(words)
    try:
        for line in convert(asked.file, asked.to, asked.dtype, asked.tokenizer):
            print(line, flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
