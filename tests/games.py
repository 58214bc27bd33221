"""What several tests play with: the shipped base behind an engine, and a base so small that it can be enumerated."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from lowmem_spin.engines import Machine
from lowmem_spin.engines.hf import HF
from lowmem_spin.recipe import Recipe
from lowmem_spin.sources import Source

CPU = Machine("cpu", "float32")


def recipe_on(folder: Path, quantization: str = "nf4", dropout: float = 0.0, **training: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name_or_path": str(folder), "quantization": quantization},
            "data": {"path": "unused.jsonl"},
            "training": {"lora": {"r": 8, "lora_alpha": 16, "dropout": dropout}, **training},
        }
    )


def open_hf(folder: Path, quantization: str = "nf4", dropout: float = 0.0, **training: Any) -> HF:
    return HF(recipe_on(folder, quantization, dropout, **training), Source(str(folder), None, "test"), CPU)


def shake_slot(engine: HF, seed: int = 0, scale: float = 0.05) -> None:
    """Give the slot weights that make a difference: fresh LoRA weights are the base."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in engine.model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=scale)


def save_slot(engine: HF, folder: Path) -> Path:
    engine.model.save_pretrained(str(folder), selected_adapters=["default"])
    return folder


def make_micro_base(folder: Path) -> Path:
    """A random model with five letters, an end of turn and a start: few enough sequences to list them all."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<end>": 2, "a": 3, "b": 4, "c": 5, "d": 6}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(["<pad>", "<bos>", "<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
    torch.manual_seed(1)
    config = GemmaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    GemmaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
