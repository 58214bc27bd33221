"""Model, tokenizer and adapter held against each other before anything is computed, from their files and without torch.

What a file shows is refused here, in one line, by `run`, `sweep` and `plan` alike; what only rows can show, a context that
is too short or a token without an embedding, by row_check.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError, shortened
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.adapter_check import UnseenLayersError, check_adapter, check_targets, is_mixture
from lowmem_spin.engines.architectures import check_architecture
from lowmem_spin.engines.config_check import DEPTHS, check_config, check_shapes
from lowmem_spin.engines.memory import WIDTH, count_weights
from lowmem_spin.engines.model_files import EMBEDDINGS, VOCABULARIES, ModelFiles, find_file, none_of_a_model

SPECIALS = {"eos_token": "end token", "pad_token": "padding token"}  # those that a game feeds to the model, whatever the rows
# Types that are no numbers to compute with as they are.
PACKED = ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F8_E4M3", "F8_E5M2")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
OWN_TOKENIZER = "use the tokenizer that belongs to this model, or enlarge the embedding (model.resize_token_embeddings)"


def check_base(recipe: Recipe, model: Source, adapter: Source | None, dtype: str, runs_code: bool = True) -> list[str]:
    """Refuse a base that cannot be played as the recipe says.

    Args:
        recipe: the game.
        model: its base; nothing is said of one that a plan could not reach.
        adapter: its model.adapter.
        dtype: what the game computes in.
        runs_code: whether code that comes with the model may run, if the recipe lets it.

    Returns:
        Lines on what is played otherwise than it may seem.

    Raises:
        InputError: one line with the field and the remedy.
    """
    if not model.resolved:
        return []
    files = ModelFiles.of(model, runs_code)
    check_config(files)
    check_architecture(files, recipe.model.trust_remote_code)
    notes = [*_stored_form(recipe, files, dtype)]
    _check_weights(files)
    notes += _check_tokenizer(recipe, files)
    _check_room(recipe, files)
    try:
        check_targets(recipe, files)
        if adapter is not None:
            notes += check_adapter(recipe, files, adapter)
    except UnseenLayersError as unseen:
        notes.append(str(unseen))
    if recipe.model.quantization == "nf4" and is_mixture(files):
        packed, kept = count_weights(files)
        notes.append(
            f"model.quantization: nf4 packs {packed / (packed + kept):.0%} of the weights of {files.name}: bitsandbytes leaves "
            f"its experts in {dtype}, {kept * WIDTH[dtype] / 1e9:.3g} GB"
        )
    return notes


def _stored_form(recipe: Recipe, files: ModelFiles, dtype: str) -> Iterator[str]:
    """What a checkpoint that is quantized already can be played as: nf4, as itself."""
    stored: dict[str, Any] | None = files.whole_config.get("quantization_config") or files.config.get("quantization_config")
    if not stored:
        return
    bits = 4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else None
    method = stored.get("quant_method", "bitsandbytes" if bits else None)
    kind = stored.get("bnb_4bit_quant_type", "fp4")
    unquantized = "take the unquantized model that it was made from, which model.quantization nf4 packs as it is loaded"
    if method != "bitsandbytes" or bits is None:
        raise InputError(
            f"model.name_or_path: {files.name} is quantized already ({shortened(str(method))}), and only nf4 is trained on; "
            f"{unquantized}"
        )
    if bits == 8 or kind != "nf4":
        form = "in 8 bits" if bits == 8 else f"as {shortened(str(kind))}"
        raise InputError(
            f"model.name_or_path: {files.name} is stored {form} by bitsandbytes, and only nf4 is trained on; {unquantized}"
        )
    if recipe.model.quantization == "none":
        raise InputError(f"model.quantization: none, but {files.name} is stored as nf4; use nf4, or take the unquantized model")
    if any(".experts." in name and weight.dtype == "U8" for name, weight in files.weights.items()):
        raise InputError(
            f"model.name_or_path: {files.name} has packed experts, which transformers does not read; {unquantized}"
        )
    own = str(stored.get("bnb_4bit_compute_dtype", "float32")).removeprefix("torch.")
    if own != dtype:
        yield f"{files.name} is stored as nf4 to compute in {own}; this game computes in {dtype}"


def _check_weights(files: ModelFiles) -> None:
    """Hold the checkpoint's headers against the config: what is missing would be made up at random."""
    files.json("generation_config.json")
    whole = files.whole_config
    packed = next((name for name, weight in files.weights.items() if name.endswith(".weight") and weight.dtype in PACKED), None)
    if packed is not None and not (whole.get("quantization_config") or files.config.get("quantization_config")):
        told = f"{shortened(packed)} is stored as {files.weights[packed].dtype}, but its config.json has no quantization_config"
        raise none_of_a_model(files.model, f"{told}; fetch it again, or take the unquantized model")
    if "text_config" in whole or "auto_map" in whole:  # other towers' layers, or what only its own code knows
        return
    found = {int(number[1]) for name in files.weights if (number := LAYER.search(name))}
    depth = next((files.config[name] for name in DEPTHS if isinstance(files.config.get(name), int)), None)
    predicted = files.config.get("num_nextn_predict_layers") or 0  # layers after the last, of which transformers reads none
    if found and depth is not None and not depth <= len(found) <= depth + predicted:
        raise none_of_a_model(
            files.model, f"its config.json has {depth} layers and its checkpoint {len(found)}; take both from one model"
        )
    rows, stated = files.of_leaf(EMBEDDINGS), files.config.get("vocab_size")
    if len(rows) == 1 and isinstance(stated, int) and rows[0].shape[0] != stated:
        raise none_of_a_model(
            files.model,
            f"its config.json has vocab_size {stated} and its embedding {rows[0].shape[0]} rows; take both from one model",
        )
    check_shapes(files)


def _check_room(recipe: Recipe, files: ModelFiles) -> None:
    """An answer leaves room for a prompt; whether for all of them is seen when they are read, by row_check.py."""
    new, context = recipe.generation.max_new_tokens, files.context
    if context is not None and new >= context:
        whole = f"a context of {context} tokens for prompt and answer"
        raise InputError(f"generation.max_new_tokens: {new}, but {files.name} has {whole}; lower it")


def _check_tokenizer(recipe: Recipe, files: ModelFiles) -> Iterator[str]:
    """A tokenizer that is there and whose special tokens the model knows."""
    mapped = files.tokenizer_config.get("auto_map") or {}  # older ones are a list
    own = mapped.get("AutoTokenizer") if isinstance(mapped, dict) else mapped
    vocabulary = next((name for name in VOCABULARIES if find_file(files.model, name) is not None), None)
    if own and vocabulary != "tokenizer.json":
        if not recipe.model.trust_remote_code:
            raise InputError(
                f"model.trust_remote_code: false, but the tokenizer of {files.name} is code that comes with it; read that "
                "code, then set it to true"
            )
        return
    if vocabulary is None:
        remedy = "copy tokenizer.json and tokenizer_config.json into it" if files.model.local else "take a model that has them"
        raise InputError(f"model.name_or_path: {files.name} has no tokenizer files; {remedy}")
    _check_beside_tokenizer(files)
    known = files.embedding_rows
    if known is None:
        return
    ids = _loaded_ids(files) if files.vocabulary.largest >= known else {}
    for field, what in SPECIALS.items():
        token = files.tokenizer_config.get(field)
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str | None):
            told = f"its tokenizer_config.json has {field} {shortened(repr(token))}, which is no token; correct it"
            raise none_of_a_model(files.model, told)
        if text in ids and ids[text] >= known:
            raise InputError(
                f"model.name_or_path: the {what} {text!r} of {files.name} is token {ids[text]}, but its embedding has {known} "
                f"rows; {OWN_TOKENIZER}"
            )
    ends = files.json("generation_config.json").get("eos_token_id", files.config.get("eos_token_id"))
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and not (isinstance(end, int) and 0 <= end < known):
            raise InputError(
                f"model.name_or_path: eos_token_id {shortened(repr(end))} of {files.name} is no token of its embedding of "
                f"{known} rows; correct it in generation_config.json or config.json"
            )
    if (largest := max(ids.values(), default=0)) >= known:
        yield (
            f"{files.name}: its tokenizer has tokens up to {largest}, its embedding {known} rows; rows with others are refused"
        )


def _check_beside_tokenizer(files: ModelFiles) -> None:
    """Files that transformers reads with a tokenizer, and of which it does not say what is wrong with which."""
    if not files.model.local:
        return
    for name in ("special_tokens_map.json", "added_tokens.json"):
        files.json(name)
    template = Path(files.model.location) / "chat_template.jinja"
    try:
        if template.is_file():
            template.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise none_of_a_model(files.model, f"{template.name} is not text in UTF-8; save it as such") from None


def _loaded_ids(files: ModelFiles) -> dict[str, int]:
    """The ids that the library gives: added tokens follow the others without a gap, whatever the file says. Slower."""
    from tokenizers import Tokenizer

    path = find_file(files.model, "tokenizer.json")
    if path is None:
        return {}
    try:
        return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing more precise
        raise none_of_a_model(files.model, f"tokenizer.json is no tokenizer ({str(error)[:150]}); fetch it again") from error
