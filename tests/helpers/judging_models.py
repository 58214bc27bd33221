"""Tiny judging models, random, whose words are their tokens."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DebertaV2Config, DebertaV2Model, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

# A conversation of three turns and two answers, word for word as LLM-Blender's compare_conversations writes it.
GAPS = (
    "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
    "USER: a b\nAssistant: <Response 1>\nUSER: c\nAssistant: <Response 2>"
)
FILLED = ["<Response 1>: d\n<Response 2>: e", "<Response 1>: d\n<Response 2>: f g"]
LETTERS = "[PAD] [CLS] [SEP] [UNK] <|source|> <|candidate1|> <|candidate2|> a b c d e f g"
WORDS = list(dict.fromkeys(" ".join([LETTERS, GAPS, *FILLED]).split()))
PLACE = {word: place for place, word in enumerate(WORDS)}


def deberta(**sizes: Any) -> DebertaV2Config:
    """The config of a DeBERTa of PairRM's kind."""
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    return DebertaV2Config(**{**relative, "position_biased_input": False, **sizes})


def reward_llama(**sizes: Any) -> Any:
    """A Llama with one output, as an oracle has it: it keeps no keys and values."""
    config = LlamaConfig(**sizes, pad_token_id=0)
    config.num_labels, config.use_cache = 1, False
    return LlamaForSequenceClassification(config)


def make_pairrm(folder: Path) -> Path:
    """A PairRM: a DeBERTa with a checkpoint of PairRM's names."""
    core = Tokenizer(models.WordLevel(PLACE, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens=WORDS[4:7], **named).save_pretrained(folder)
    config = deberta(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        position_buckets=4,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    weights = {f"pretrained_model.{name}": value for name, value in DebertaV2Model(config).state_dict().items()}
    shapes = {"1.weight": (32, 64), "1.bias": (32,), "4.weight": (1, 32), "4.bias": (1,)}
    weights |= {f"head_layer.{name}": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    entries = {"source_prefix_id": 4, "cand1_prefix_id": 5, "cand2_prefix_id": 6, "n_tasks": 1, "drop_out": 0.5}
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), **entries, "architectures": ["DebertaV2PairRM"]}))
    return folder


def make_reward_model(folder: Path) -> Path:
    """A Llama with one output and a chat template."""
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<end>", "a", "b", "c", "d", "user", "assistant"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        pad_token_id=0,
        initializer_range=0.5,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
