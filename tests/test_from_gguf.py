"""A model folder made of a GGUF file: its weights, its tokenizer and its ends are those of the model it was made from."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from helpers.gguf_files import CHATML, SPECIALS, byte_level, merges_of, pieces, real_gguf, tiny_llama, write_gguf
from helpers.recipe_scripts import script

ROOT = Path(__file__).parent.parent
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
TRIED = ["The year 2024, and what is asked of it: naïve, Größe 東京 🙂", "def f(x):\n\treturn x  # 17", *ENGLISH[:20]]


@pytest.fixture(scope="module", name="script")
def loaded() -> ModuleType:
    return script("from_gguf")


def _run(script: ModuleType, capsys: Any, *words: object) -> tuple[int, list[str]]:
    code = script.main([str(word) for word in words])
    told = capsys.readouterr()
    lines = (told.err if code else told.out).splitlines()
    return code, [line for line in lines if line and not line.startswith("Converting")]  # a bar, off where this is a program


def _byte_level_file(path: Path, **changes: Any) -> tuple[Any, Any]:
    pytest.importorskip("gguf", reason="needs the package gguf")
    core = byte_level(ENGLISH)
    tokens = [token for token, _ in sorted(core.get_vocab().items(), key=lambda pair: pair[1])]
    model = tiny_llama(len(tokens))
    types = [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS))
    write_gguf(path, model, tokens, types, **{"model": "gpt2", "merges": merges_of(core), **changes})
    return core, model


def _folder_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_folder_is_the_model_that_the_file_was_made_from(script: ModuleType, capsys: Any, tmp_path: Path) -> None:
    core, model = _byte_level_file(tmp_path / "m.gguf")
    code, lines = _run(script, capsys, tmp_path / "m.gguf", "--to", tmp_path / "m", "--dtype", "float32")
    assert code == 0, lines
    made, meant = _folder_weights(tmp_path / "m"), model.state_dict()
    meant.pop("lm_head.weight")  # tied
    assert made.keys() == meant.keys() and all(torch.equal(made[name], meant[name]) for name in made)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert [tokenizer(text)["input_ids"] for text in TRIED] == [core.encode(text).ids for text in TRIED]
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_start|>", "<|im_end|>")
    assert tokenizer.chat_template == CHATML
    for name in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / "m" / name).read_text())
        assert (content["eos_token_id"], content["bos_token_id"], content["pad_token_id"]) == (2, 1, 2), name
    assert "ends: '<|im_end|>'; the chat template ends answers with '<|im_end|>', too" in lines
    assert any("knows no English" in line for line in lines), "untrained weights must be noticed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.gguf"], "nothing else is left behind"


def test_merges_are_rebuilt_from_scores(script: ModuleType, capsys: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf")
    core, tokens, scores, types = pieces(ENGLISH)
    write_gguf(tmp_path / "m.gguf", tiny_llama(len(tokens)), tokens, types, model="llama", scores=scores)
    code, lines = _run(script, capsys, tmp_path / "m.gguf", "--to", tmp_path / "m")
    assert code == 0, lines
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert [tokenizer(text)["input_ids"] for text in TRIED] == [core.encode(text).ids for text in TRIED]


def test_a_template_that_ends_otherwise_is_told_and_both_are_ends(script: ModuleType, capsys: Any, tmp_path: Path) -> None:
    _byte_level_file(tmp_path / "m.gguf", eos="<|endoftext|>")
    _, lines = _run(script, capsys, tmp_path / "m.gguf", "--to", tmp_path / "m")
    assert "ends: '<|endoftext|>', and '<|im_end|>', with which the chat template ends answers" in lines
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"pre": "viking"}, "tokenizer.ggml.pre 'viking': this kind of tokenizer is not known here; give the original one by"),
        ({"merges": [("t", "h")]}, "its merges are not the model's"),
        (
            {"more": {"rope_freqs.weight": np.ones(8, np.float32)}},
            "rope_freqs.weight, which stretches its positions, is not read",
        ),
    ],
)
def test_what_would_be_another_model_makes_no_folder(
    script: ModuleType, capsys: Any, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    _byte_level_file(tmp_path / "m.gguf", **changes)
    code, lines = _run(script, capsys, tmp_path / "m.gguf", "--to", tmp_path / "m")
    assert code == 2 and len(lines) == 1 and line in lines[0], lines
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_files_that_cannot_be_used(script: ModuleType, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none, there = tmp_path / "none.gguf", tmp_path / "there"
    there.mkdir()
    none.write_bytes(b"PK\3\4")
    refused = [
        ((none, "--to", there), f"error: --to {str(there)!r} exists already; give a new folder"),
        ((none, "--to", tmp_path / "m"), "is no GGUF file: it does not begin with GGUF; fetch it again"),
        ((tmp_path / "absent.gguf", "--to", tmp_path / "m"), ": no such file"),
    ]
    for words, line in refused:
        code, lines = _run(script, capsys, *words)
        assert code == 2 and len(lines) == 1 and line in lines[0], lines
    pytest.importorskip("gguf", reason="needs the package gguf")
    _byte_level_file(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    for length in (40, 3000, len(whole) - 64):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        code, lines = _run(script, capsys, tmp_path / "cut.gguf", "--to", tmp_path / "m")
        assert code == 2 and len(lines) == 1 and "is damaged or cut short" in lines[0], lines
    (tmp_path / "other.gguf").write_bytes(whole.replace(b"llama", b"lxama"))
    code, lines = _run(script, capsys, tmp_path / "other.gguf", "--to", tmp_path / "m")
    assert code == 2 and "general.architecture 'lxama': transformers does not read it of a GGUF file" in lines[0], lines
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    code, lines = _run(script, capsys, tmp_path / "whole.gguf", "--to", tmp_path / "m")
    assert code == 2 and "0.0 GB are free there" in lines[0], lines


@pytest.mark.real
def test_a_real_file_becomes_the_model_that_its_package_ships(script: ModuleType, capsys: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    path = real_gguf()
    code, lines = _run(script, capsys, path, "--to", tmp_path / "m", "--dtype", "float32")
    assert code == 0, lines
    assert not any("WARNING" in line for line in lines)
    made, names = _folder_weights(tmp_path / "m"), {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    leaves = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj"}
    leaves |= {"attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
    leaves |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    seen = set()
    for tensor in gguf.GGUFReader(path).tensors:
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, leaf = name.split(".")
            name = f"model.layers.{layer}.{leaves[leaf]}"
        else:
            name = names[name]
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        if name.endswith(("q_proj", "k_proj")):  # row 2 i + j of a head is its row j 32 + i, of 64
            heads = numbers.shape[0] // 64
            numbers = np.stack([numbers[64 * h + 2 * i + j] for h in range(heads) for j in range(2) for i in range(32)])
        assert np.array_equal(made[f"{name}.weight"].numpy(), numbers), name
        seen.add(f"{name}.weight")
    assert seen == made.keys()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.tokenize("1024 words") == ["1", "0", "2", "4", "Ġwords"], "SmolLM2 reads digits one by one"
