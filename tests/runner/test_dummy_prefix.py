"""A base that says what the data says has nothing to learn, whatever blanks its tokenizer puts before a text."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import MistralConfig, MistralForCausalLM

from helpers.games import play
from helpers.tokenizers_built import prepending, prepending_once

QUESTIONS = ["stone", "river", "dog", "green", "red", "bird", "blue", "tree", "cat", "house"]
ANSWERS = ["Nice to see you", "Good day to you", "Hello there friend"]


def fine_tuned_base(tokenizer: Any, conversations: list[list[dict[str, str]]], folder: Path) -> Path:
    """A small Mistral after ordinary fine-tuning on whole conversations, each tokenised at once."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model, draw = MistralForCausalLM(config), random.Random(1)
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    rows = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        batch = draw.sample(rows, 32)
        labels = pad_sequence(batch, batch_first=True, padding_value=-100)
        loss = model(input_ids=labels.clamp(min=0), attention_mask=(labels >= 0).long(), labels=labels).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [prepending, pytest.param(prepending_once, marks=pytest.mark.slow)])
def test_nothing_is_won_against_a_base_that_has_learned_the_data(tmp_path: Path, make: Callable[[], Any]) -> None:
    """With answers tokenised apart from their prompts the first of them ended at loss .56 and margin +.29: won at one token."""
    draw = random.Random(0)
    conversations = [
        [
            {"role": "user", "content": " ".join(draw.choices(QUESTIONS, k=4))},
            {"role": "assistant", "content": draw.choice(ANSWERS)},
        ]
        for _ in range(320)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    play(
        tmp_path,
        fine_tuned_base(make(), conversations, tmp_path / "base"),
        tmp_path / "rows.jsonl",
        model={"quantization": "none"},
        game={"pairs": 192, "alpha": 1.0, "history": 1},
        generation={"max_new_tokens": 32},
        training={"per_device_train_batch_size": 16, "learning_rate": 5e-4},
        evaluation={"health_prompts": 16},
    )
    (manifest,) = (tmp_path / "store" / "adapters").glob("*/manifest.json")
    steps = json.loads(manifest.read_text())["metrics"]
    last = steps[-len(steps) // 4 :]
    for metric, right in (("loss", math.log(2)), ("rewards/margins", 0.0)):
        assert sum(step[metric] for step in last) / len(last) == pytest.approx(right, abs=0.01)
