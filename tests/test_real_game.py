"""A minute of the real recipe: SmolLM2-135M learns from docstrings, and its numbers are those that transformers gives."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.commands import cli
from helpers.gguf_files import real_gguf
from helpers.recipe_scripts import script

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.real


def test_a_real_model_plays_and_its_numbers_are_transformers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf")
    model = tmp_path / "smollm2"
    assert script("from_gguf").main([str(real_gguf()), "--to", str(model)]) == 0
    words = ["make_docstrings.py", "--out", str(tmp_path / "docstrings"), "--train", "24", "--held-out", "4"]
    monkeypatch.setattr(sys, "argv", words)
    script("make_docstrings").main()
    changes = {
        "model.name_or_path": model,
        "model.dtype": "float32",  # to be compared with
        "data.path": tmp_path / "docstrings" / "train.jsonl",
        "evaluation.path": tmp_path / "docstrings" / "heldout.jsonl",
        "evaluation.health_prompts": 2,
        "game.iterations": 1,
        "game.pairs": 16,
        "generation.max_new_tokens": 6,
        "output.dir": tmp_path / "run",
        "output.store": tmp_path / "store",
    }
    result = cli(
        "run", str(ROOT / "recipes" / "smollm2_cpu.yaml"), *(f"--set={name}={value}" for name, value in changes.items())
    )
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == ["base", "iterate 0", "plain SFT"]
    base, iterate, sft = records
    assert base["chosen_logp"] == pytest.approx(_logp(model, tmp_path / "docstrings" / "heldout.jsonl"), abs=2e-3)
    assert iterate["chosen_logp"] > base["chosen_logp"] and sft["chosen_logp"] > base["chosen_logp"]
    assert max(record["engine_gap"] for record in records) < 1e-3
    manifest = json.loads((tmp_path / "run" / "iterates" / "0" / "manifest.json").read_text())
    assert manifest["metrics"][0]["loss"] == pytest.approx(0.693147, abs=1e-4), "the first step's policy is its reference"


def _logp(folder: Path, rows: Path) -> float:
    """Mean log-prob of the data's answers with their end, by transformers alone."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    totals = []
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        asked = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(f"{prompt}{row['completion']}<|im_end|>", return_tensors="pt", add_special_tokens=False)["input_ids"]
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1)
        totals.append(float(logps[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum()))
    return sum(totals) / len(totals)
