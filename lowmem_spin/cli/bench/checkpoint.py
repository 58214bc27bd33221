"""A base in a real model's shape with random weights, and rows of random text: nothing to download.

The weights make every ordinary token about as likely as any other and a token that ends a completion all but
impossible, so that completions are exactly as long as they may be. Speed and memory do not depend on their values.
"""

import json
import random
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import share
from lowmem_spin.config.load import BUNDLED
from lowmem_spin.engines import known_models
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.worker import Worker

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": [2, 5]}  # of the quickstart's tokenizer, which all share
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma-2b": {**known_models.CONFIGS["google/gemma-2b"], **SPECIAL},
    "llama-8b": {**known_models.CONFIGS["meta-llama/Meta-Llama-3-8B"], **SPECIAL},
    "smollm2-135m": {**known_models.CONFIGS["HuggingFaceTB/SmolLM2-135M"], **SPECIAL},
    "tiny": {  # the quickstart's base
        "model_type": "gemma",
        "num_hidden_layers": 4,
        "hidden_size": 128,
        "intermediate_size": 768,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 288,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        **SPECIAL,
    },
}
SHARD_BYTES = 10**9
SPREAD = 0.002  # of the embeddings' numbers, against their mean of 1/sqrt(hidden): all ordinary tokens nearly alike


def config_of(name: str) -> dict[str, Any]:
    """The config of a benchmark's model.

    Raises:
        InputError: there is none of this name.
    """
    if name not in CONFIGS:
        raise InputError(f"--model: {name!r} is not a benchmark's model; known: {', '.join(CONFIGS)}")
    return CONFIGS[name]


def make(root: Path, name: str, machine: Machine, notify: Callable[[str], None]) -> Path:
    """The folder of the checkpoint, written once: safetensors in the machine's compute type, shard by shard.

    A GPU draws the numbers where there is one: a CPU draws a hundred million a second. It does so in a process of its own,
    whose memory on the card is gone before anything is measured.
    """
    config = config_of(name)
    folder = root / f"{name}-{machine.dtype}"
    if folder.exists():
        return folder
    notify(f"writing random weights in the shape of {name} to {folder}")
    temporary = root / f".{folder.name}.{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        if machine.device == "cpu":
            write(temporary, config, machine)
        else:
            log, remedy = root / "logs" / "checkpoint.log", "free some memory or disk"
            Worker(
                "checkpoint", "lowmem_spin.cli.bench.checkpoint:write", (temporary, config, machine), {}, log, remedy
            ).close()
        share(temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def tokenizer_folder() -> Path:
    """The quickstart's base: its tokenizer's 262 ids are in range of every model here."""
    return next(path for path in BUNDLED if path.is_dir()) / "quickstart" / "base"


def skeleton(config: dict[str, Any]) -> Any:
    """The model of this config without its numbers, on torch's meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **sizes))


def write(folder: Path, config: dict[str, Any], machine: Machine) -> None:
    """The checkpoint's files, its numbers drawn on the machine's device."""
    import torch
    from safetensors.torch import save_file

    model, dtype = skeleton(config), getattr(torch, machine.dtype)
    shards: list[dict[str, Any]] = [{}]
    for parameter_name, parameter in model.named_parameters():  # a tied weight comes once
        size = parameter.numel() * dtype.itemsize
        if shards[-1] and size + sum(shards[-1].values()) > SHARD_BYTES:
            shards.append({})
        shards[-1][parameter_name] = size
    shapes = dict(model.named_parameters())
    torch.manual_seed(0)
    places = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        with torch.device(machine.device):
            tensors = {key: _weights(key, shapes[key].shape, config, dtype).cpu() for key in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
        del tensors
    total = sum(size for shard in shards for size in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in TOKENIZER:
        shutil.copy(tokenizer_folder() / name, folder / name)
    model.config.dtype = machine.dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def _weights(name: str, shape: Any, config: dict[str, Any], dtype: Any) -> Any:
    """Layers add next to nothing to the stream, every embedding points one way, and the rows of the ends the other."""
    import torch

    hidden = config["hidden_size"]
    if len(shape) == 1:  # norms; Gemma adds its 1 by itself
        return torch.full(shape, 0.0 if config["model_type"] == "gemma" else 1.0, dtype=dtype)
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        weights = torch.empty(shape, dtype=dtype).normal_(hidden**-0.5, SPREAD)
        weights[config["eos_token_id"]] = -(hidden**-0.5)
        return weights
    return torch.empty(shape, dtype=dtype).normal_(0.0, 1 / hidden)


def write_rows(path: Path, rows: int, prompt_tokens: int, completion_tokens: int) -> None:
    """Rows of seeded random letters. A prompt has `prompt_tokens` tokens with its chat template; an answer has just
    too many, so that a limit of `completion_tokens` leaves exactly that many.

    Raises:
        InputError: the chat template alone is longer than the prompt.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder())
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]  # a token each
    empty = tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False)
    spare = prompt_tokens - len(tokenizer(empty, add_special_tokens=False)["input_ids"])
    if spare < 1:
        raise InputError(
            f"--prompt-length: {prompt_tokens} is too short for the chat template; use {prompt_tokens - spare + 1}"
        )
    drawn = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            row = {
                key: "".join(drawn.choices(letters, k=k)) for key, k in (("prompt", spare), ("completion", completion_tokens))
            }
            file.write(json.dumps(row) + "\n")
