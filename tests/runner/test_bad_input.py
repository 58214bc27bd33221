"""Whatever is wrong with the input, one line says what and what to do, before anything is computed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from helpers.commands import start
from helpers.games import GOOD, open_hf, play, save_slot, shake_slot
from lowmem_spin.common.errors import InputError


@pytest.fixture
def base(quickstart: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quickstart / "base", tmp_path / "base"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**GOOD, "prompt": f"sort: {n}"}) + "\n" for n in range(40)))
    return path


def pickled(base: Path) -> None:
    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")


def cut(base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (shutil.rmtree, "no folder '"),
        (lambda base: (base / "config.json").unlink(), "is no model: it has no config.json"),
        (lambda base: (base / "config.json").write_text("{"), "does not load as a model"),
        (lambda base: (base / "model.safetensors").unlink(), "has no safetensors weights"),
        (pickled, "its .bin weights are pickles, which can run code: convert them"),
        (cut, "does not load as a model"),
        (lambda base: (base / "chat_template.jinja").unlink(), "this tokenizer has none; choose one of gemma, chatml"),
    ],
)
def test_models_that_are_none(tmp_path: Path, base: Path, rows: Path, harm: Any, line: str) -> None:
    harm(base)
    expect(tmp_path, base, rows, line, "model.")


def expect(tmp_path: Path, base: Path, rows: Path, line: str, field: str, **sections: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        play(tmp_path, base, rows, None, **sections)
    assert str(error.value).startswith(field)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store" / "completions").exists()


@pytest.mark.parametrize(
    ("sections", "field", "line"),
    [
        (
            {"data": {"path": "nowhere.jsonl"}},
            "data.path",
            "no file 'nowhere.jsonl', neither next to the recipe nor in the working directory",
        ),
        (
            {"data": {"path": "."}},
            "data.path",
            "is a folder; give a .jsonl, .ndjson, .json, .csv, .tsv (each also .gz) or .parquet file",
        ),
        (
            {"game": {"pairs": 80}},
            "game.pairs",
            "80 prompts are needed, but there are only 36 usable rows; lower it to 36 or give more data",
        ),
        ({"training": {"lora": {"target_modules": ["w_q"]}}}, "training.lora.target_modules", "['w_q']"),
        (
            {"training": {"optim": "paged_adamw_8bit"}},
            "training.optim",
            "needs a GPU and this machine has none; use adamw_torch",
        ),
        ({"training": {"optim": "adamw"}}, "training.optim", "'adamw' is unknown to transformers; try adamw_"),
        ({"training": {"lr_scheduler_type": "linaer"}}, "training.lr_scheduler_type", "try linear"),
        ({"runtime": {"device": "cuda"}}, "runtime.device", "no NVIDIA GPU answers here"),
        ({"model": {"chat_template": "{% if %}"}}, "model.chat_template", "it fails on a conversation of user, assistant"),
        ({"model": {"chat_template": "gema"}}, "model.chat_template", "'gema' is unknown; known: gemma, chatml"),
        ({"model": {"adapter": "nowhere"}}, "model.adapter", "'nowhere' is no adapter"),
    ],
)
def test_recipes_that_ask_for_what_is_not_there(
    tmp_path: Path, base: Path, rows: Path, sections: dict[str, Any], field: str, line: str
) -> None:
    expect(tmp_path, base, rows, line, field, **sections)


def test_bytes_that_are_no_text_and_parquet_that_is_none(tmp_path: Path, base: Path, rows: Path) -> None:
    rows.write_bytes(rows.read_text().encode("utf-16"))
    expect(tmp_path, base, rows, "is UTF-16; save it as UTF-8", "data.path")
    (tmp_path / "rows.parquet").write_bytes(b"nothing of the kind")
    expect(tmp_path, base, tmp_path / "rows.parquet", "is not a Parquet file", "data.path")


def test_adapters_of_another_base_shape_or_scale(tmp_path: Path, base: Path, rows: Path) -> None:
    engine = open_hf(base)  # rank 8, lora_alpha 16
    shake_slot(engine)
    adapter = save_slot(engine, tmp_path / "adapter")
    expect(tmp_path, base, rows, "was made for another base or other layers", "model.adapter", model={"adapter": str(adapter)})
    lora = {"r": 8, "lora_alpha": 32, "dropout": 0.0}
    sections: dict[str, Any] = {"model": {"adapter": str(adapter)}, "training": {"lora": lora}}
    expect(tmp_path, base, rows, "has 16; use that", "training.lora.lora_alpha", **sections)
    lora["lora_alpha"] = 16
    play(tmp_path, base, rows, None, **sections)  # and the one that fits is the base policy, which the game starts from
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    chosen = engine.score(adapter, [(engine.tokenizer("<bos><user>sort: 1<end_of_turn><model>")["input_ids"], [5])])
    assert chosen != engine.score(None, [(engine.tokenizer("<bos><user>sort: 1<end_of_turn><model>")["input_ids"], [5])])
    assert abs(records[1]["kl_to_base"]) < 1  # one short iteration stays near the adapter, far from the bare base


def test_a_learning_rate_that_breaks_training_is_named(tmp_path: Path, base: Path, rows: Path) -> None:
    with pytest.raises(InputError, match=r"training\.learning_rate: 1e\+30 made the loss (nan|inf) at step \d"):
        play(tmp_path, base, rows, training={"learning_rate": 1e30, "max_grad_norm": 0.0})


def test_a_store_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    process = start(tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "store" in output
    assert len(output.splitlines()) == 1


def test_what_data_contains_steers_no_terminal_and_names_no_file(tmp_path: Path, base: Path, rows: Path) -> None:
    evil = "../../evil\x1b[31m$x_1$"
    content = [{"prompt": f"sort: {n}", "completion": "\x1b[2Jabc", "category": f"{evil}{n % 3}"} for n in range(40)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in content))
    out = tmp_path / "out.txt"
    with out.open("w") as file:
        play(tmp_path, base, rows, console=Console(file=file), evaluation={"path": str(rows), "metric": "exact_match"})
    assert "\x1b" not in out.read_text()
    assert not list(tmp_path.parent.rglob("*evil*"))
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert f"exact_match/{evil}0" in record  # kept as it is where it is only data
