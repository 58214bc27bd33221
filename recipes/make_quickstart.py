"""Make everything the quickstart needs: a tiny Gemma-architecture base and its instruction data.

    python recipes/make_quickstart.py            # writes recipes/quickstart/, about 9 minutes on 2 CPU cores

The base learns eight verifiable skills on short words but answers in a mixture of junk formats; the
instruction data answers cleanly. So the base *can* do everything the data asks and usually does not,
which is the gap that self-play closes honestly: no new knowledge is needed, only the right habit.
"""

import argparse
import json
import math
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

SKILLS = {
    "upper": str.upper,
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
    "sort": lambda word: "".join(sorted(word)),
    "reverse": lambda word: word[::-1],
    "double": lambda word: word + word,
    "count": lambda word: str(len(word)),
    "max": max,
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
HABITS = {"{}": 0.25, "ans {}": 0.45, "{}!": 0.15, "<{}>": 0.15}  # how the base answers
SPECIAL = ["<pad>", "<bos>", "<eos>", "<user>", "<model>", "<end_of_turn>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<model>' if message['role'] == 'assistant' else '<user>' }}{{ message['content'] | trim }}<end_of_turn>"
    "{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)


def task(rng: random.Random) -> dict[str, str]:
    """One instruction: a skill and a random word of 3 to 5 letters."""
    skill = rng.choice(list(SKILLS))
    word = "".join(rng.choices(LETTERS, k=rng.randint(3, 5)))
    return {"category": skill, "prompt": f"{skill}: {word}", "completion": SKILLS[skill](word)}


def distinct_tasks(count: int, rng: random.Random, taken: set[str]) -> list[dict[str, str]]:
    """`count` instructions whose prompts are not in `taken`, which grows by them."""
    rows = []
    while len(rows) < count:
        row = task(rng)
        if row["prompt"] not in taken:
            taken.add(row["prompt"])
            rows.append(row)
    return rows


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, so any text in any script can be read and written."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=1024
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_gemma() -> GemmaForCausalLM:
    """1.4 M parameters; every layer's output is a multiple of 32, as 4-bit on a CPU requires."""
    return GemmaForCausalLM(
        GemmaConfig(
            vocab_size=288,
            hidden_size=128,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=1024,
            pad_token_id=SPECIAL.index("<pad>"),
            bos_token_id=SPECIAL.index("<bos>"),
            eos_token_id=[SPECIAL.index("<eos>"), SPECIAL.index("<end_of_turn>")],
        )
    )


def batch(tokenizer: PreTrainedTokenizerFast, size: int, rng: random.Random, held_out: set[str]):
    """(size, length) token ids and labels; only the answer and its end of turn are learned."""
    texts, prompts = [], []
    while len(texts) < size:
        row = task(rng)
        if row["prompt"] in held_out:
            continue
        habit = rng.choices(list(HABITS), weights=list(HABITS.values()))[0]
        prompts.append(f"<bos><user>{row['prompt']}<end_of_turn><model>")
        texts.append(prompts[-1] + habit.format(row["completion"]) + "<end_of_turn>")
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for row, prompt in zip(labels, prompts, strict=True):
        row[: len(tokenizer(prompt, add_special_tokens=False)["input_ids"])] = -100
    return inputs, labels


def pretrain(model: GemmaForCausalLM, tokenizer, steps: int, batch_size: int, held_out: set[str]) -> None:
    """AdamW with a warmed-up cosine schedule on freshly drawn tasks."""
    rng = random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        warmup, progress = min(1.0, (step + 1) / 100), step / steps
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * warmup * 0.5 * (1 + math.cos(math.pi * progress))
        inputs, labels = batch(tokenizer, batch_size, rng, held_out)
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write the base and its data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "quickstart")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    held_out = distinct_tasks(2400, random.Random(2), taken)
    write_jsonl(arguments.out / "heldout.jsonl", held_out)
    write_jsonl(arguments.out / "train.jsonl", distinct_tasks(6000, random.Random(3), taken))
    tokenizer = byte_tokenizer()
    model = tiny_gemma()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    pretrain(model, tokenizer, arguments.steps, arguments.batch, {row["prompt"] for row in held_out})
    model.bfloat16().save_pretrained(arguments.out / "base")
    tokenizer.save_pretrained(arguments.out / "base")
    # The class that every version of transformers knows; version 5 writes its own name for the same thing.
    config = arguments.out / "base" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


if __name__ == "__main__":
    main()
