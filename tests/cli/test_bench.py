"""The benchmark: models in their real shapes, counts that the store confirms, and rates that carry over by FLOP."""

import json
import shutil
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoModelForCausalLM

from helpers.games import CPU
from lowmem_spin.cli import main as cli
from lowmem_spin.cli.bench import checkpoint, rivals, table
from lowmem_spin.cli.bench.bench import BenchRequest, BenchResult, _load, bench_in
from lowmem_spin.cli.bench.layouts import check_layouts, compare_layouts
from lowmem_spin.cli.bench.measure import Card, Cost, Peak
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.grid import sweep_points
from lowmem_spin.config.load import load_recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import Shape, read_shape
from lowmem_spin.runner.planning import calibration
from lowmem_spin.runner.planning import plan as planning
from lowmem_spin.runner.planning.calibration import Calibration, Measurement

PROMPT, COMPLETION, PAIRS = 24, 10, 12
EPOCHS = {"score": 1, "train": 2}  # in a row that a plan counts
KNOWN = {  # of google/gemma-2b, meta-llama/Meta-Llama-3-8B and HuggingFaceTB/SmolLM2-135M
    "gemma-2b": 2_506_172_416,
    "llama-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008,
}
SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "head_dim": 32}


@pytest.mark.parametrize("name", checkpoint.CONFIGS)
def test_a_base_has_the_parameters_of_its_shape(name: str) -> None:
    model = checkpoint.skeleton(checkpoint.config_of(name))
    count = sum(parameter.numel() for parameter in model.parameters())
    shape = Shape.of(checkpoint.config_of(name))
    assert count == shape.body + shape.unquantized
    assert count == KNOWN.get(name, count)


def test_tiny_is_the_shipped_base(quickstart: Path) -> None:
    assert Shape.of(checkpoint.config_of("tiny")) == read_shape(Source(str(quickstart / "base"), None, ""))


@pytest.mark.parametrize("name", ["gemma-2b", "llama-8b"])
def test_what_is_written_loads_whole_and_never_ends_a_completion(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tied and untied, in several shards: no weight left to transformers to make up, and no chance of an end."""
    monkeypatch.setitem(checkpoint.CONFIGS, name, {**checkpoint.CONFIGS[name], **SMALL, "num_key_value_heads": 1})
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 50_000)
    folder = checkpoint.make(tmp_path, name, CPU, lambda line: None)
    assert len(list(folder.glob("*.safetensors"))) > 2
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, loading = loaded
    assert not any(loading.values())
    with torch.no_grad():
        chances = model(torch.tensor([[1, 3, 70, 71, 5, 4]])).logits[0, -1].softmax(-1)
    ends = chances[checkpoint.SPECIAL["eos_token_id"]]
    assert ends.max() < 1e-11  # a million tokens are still far from one; the real sizes are less likely by far
    assert chances.max() < 10 * chances.median()  # and no token is drawn over and over


@pytest.mark.skipif(torch.cuda.is_available(), reason="there, a test of the GPU writes a base")
def test_a_gpus_base_is_drawn_on_it_and_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a process of its own, whose log stays; without a GPU all that can be seen is that it asks for one."""
    with pytest.raises(InputError, match=r"^the checkpoint worker failed: .*(CUDA|NVIDIA).*checkpoint\.log$") as error:
        checkpoint.make(tmp_path, "tiny", Machine("cuda", "bfloat16"), lambda line: None)
    assert "Traceback" in Path(str(error.value).rpartition("its log is ")[2]).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[BenchResult, Path]:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "work").mkdir()
    changes = ["training.num_train_epochs=2", "training.gradient_accumulation_steps=2", "runtime.device=cpu"]
    asked = BenchRequest(
        model="tiny",
        vram=24.0,
        pairs=PAIRS,
        prompt_length=PROMPT,
        completion_length=COMPLETION,
        versus=[],
        overrides=changes,
        store=folder / "store",
    )
    return bench_in(folder / "work", asked, Console(quiet=True)), folder


def rows_of(folder: Path, kind: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted((folder / "work" / "store" / kind).glob("*/*.parquet"))])


def test_counted_rows_and_tokens_are_those_in_the_store(played: tuple[BenchResult, Path]) -> None:
    found, folder = played
    counted = {cost.work: (cost.rows, cost.tokens) for cost in found.ours}
    lengths = [len(tokens) for tokens in rows_of(folder, "completions")["tokens"].to_pylist()]
    assert set(lengths) == {COMPLETION}
    assert counted["generate"] == (len(lengths), sum(lengths))
    scored = rows_of(folder, "logps")
    prompts = 0  # read once for both answers of a pair
    for found_table in (folder / "work" / "store" / "logps").iterdir():
        prompts += len(
            {name for file in found_table.glob("*.parquet") for name in pq.read_table(file)["prompt_id"].to_pylist()}
        )
    assert counted["score"] == (len(scored), sum(scored["tokens"].to_pylist()) + prompts * PROMPT)
    assert len(scored) / 2 <= prompts < len(scored)
    manifests = [json.loads(path.read_text()) for path in (folder / "work" / "store" / "adapters").glob("*/manifest.json")]
    trained = sum(manifest["rows"] for manifest in manifests)
    assert trained == 2 * PAIRS  # two iterations, and neither evaluation nor plain fine-tuning
    assert counted["train"] == (2 * trained, 2 * trained * (PROMPT + 2 * COMPLETION))  # two epochs


def test_seconds_are_within_the_games_and_all_is_remembered(played: tuple[BenchResult, Path]) -> None:
    found, folder = played
    assert all(cost.seconds > 0 for cost in found.ours)
    assert found.predicted == {}  # a CPU is not held against the budget of a GPU
    known = calibration.load_calibration(folder / "store")
    assert [record.kind for record in known.records] == ["generate", "score", "train"]
    for cost in found.ours:
        parameters = known.records[0].parameters
        again = known.seconds(cost.work, cost.tokens, parameters, found.device, "hf", gradient_checkpointing=True)  # type: ignore[arg-type]
        assert again == (pytest.approx(cost.seconds), True)


def test_a_rival_that_is_not_here_or_fails_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload: Any = None  # nothing of it may be touched
    with monkeypatch.context() as without:
        without.setattr(rivals, "find_spec", lambda name: None)
        assert [rivals.run_rival(name, workload) for name in ("trl", "vllm")] == ["trl: not installed", "vllm: not installed"]

    def failing(workload: Any) -> list[Cost]:
        raise InputError("the trl worker was killed by SIGKILL")

    monkeypatch.setitem(rivals.RIVALS, "trl", failing)
    assert rivals.run_rival("trl", workload) == "trl: the trl worker was killed by SIGKILL"


def test_a_plan_of_the_same_game_takes_the_time_that_was_measured(played: tuple[BenchResult, Path]) -> None:
    """Every length is its cap here, so the plan's tokens are those that went through the model."""
    found, folder = played
    base = next((folder / "store" / "bench").glob("tiny*"))
    elsewhere = [f"model.name_or_path={base}", f"output.store={folder / 'planned'}", "training.num_train_epochs=2"]
    elsewhere += ["training.gradient_accumulation_steps=2", "runtime.device=cpu", "evaluation.health_prompts=1"]
    (folder / "planned").mkdir()
    shutil.copy(folder / "store" / "bench.json", folder / "planned")
    recipe = folder / "work" / "recipe.yaml"
    (point,) = sweep_points(recipe, elsewhere, {}, 1)
    lines = planning.plan([point], recipe.parent).lines
    measured = {cost.work: cost for cost in found.ours}
    for kind in ("score", "train"):
        mine = [line for line in lines if line.unit.kind == kind]
        rows, rate = EPOCHS[kind] * sum(line.to_do for line in mine), measured[kind].seconds / measured[kind].rows
        assert sum(line.seconds for line in mine) == pytest.approx(rate * rows, rel=0.02), kind


def test_both_layouts_do_the_same_work_on_a_spread_of_lengths(played: tuple[BenchResult, Path]) -> None:
    _, folder = played
    base = next((folder / "store" / "bench").glob("tiny*"))
    recipe = load_recipe(folder / "work" / "recipe.yaml", [f"model.name_or_path={base}", "runtime.device=cpu"])
    quiet = Display(Console(quiet=True))
    found = compare_layouts(recipe, folder / "work", ["padded", "packed"], PAIRS, Card(), quiet)
    assert [(cost.work, cost.by, cost.rows) for cost in found] == [
        *(("score", layout, 2 * PAIRS) for layout in ("padded", "packed")),
        *(("train", layout, PAIRS) for layout in ("padded", "packed")),
    ]
    lines = [json.loads(line) for line in (folder / "work" / "spread.jsonl").read_text().splitlines()]
    lengths = {len(row[side]) for row in lines for side in ("chosen", "rejected")}
    assert len(lengths) > 2 and max(lengths) <= COMPLETION
    with pytest.raises(InputError, match="--layout: 'loose' is unknown; known: padded, packed"):
        check_layouts(["loose"])


@pytest.mark.slow
def test_trl_does_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, in its own process, with its Triton kernel interpreted, beside a GPU too."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    asked = BenchRequest(
        model="tiny",
        vram=None,
        pairs=8,
        prompt_length=16,
        completion_length=8,
        versus=["trl"],
        overrides=["runtime.device=cpu"],
        store=tmp_path / "store",
    )
    found = bench_in(tmp_path, asked, Console(quiet=True))
    assert found.missing == []
    work = {cost.work: (cost.rows, cost.tokens) for cost in found.theirs}
    assert work == {"score": (16, 16 * 24), "train": (8, 16 * 24)}


def test_the_table_shows_rates_ratios_and_the_budgets_error() -> None:
    def shown(drawn: Any) -> list[list[str]]:
        console = Console(width=80, record=True, file=StringIO())
        console.print(drawn)
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= 80
        return [line.split() for line in lines]

    ours = Cost("train", "hf", 10, 1000, 2.0, Peak(4_000_000_000, 3_000_000_000))
    theirs = Cost("train", "trl", 10, 1000, 4.0, Peak(5_000_000_000, None))
    line = ["train", "hf", "10", "1,000", "2.00", "500", "4.00", "3.00", "5.00", "+25%"]
    assert line in shown(table.costs([ours], {"train": 5e9}))
    assert ["train", "trl", "10", "1,000", "4.00", "250", "5.00", "2.00x"] in shown(table.rivals([ours], [theirs], []))
    assert ["train", "trl", "10", "1,000", "4.00", "250", "5.00"] in shown(table.rivals([ours], [theirs], ["trl"]))


def record(**changes: Any) -> Measurement:
    values = {
        **{"device": "card", "engine": "hf", "kind": "score", "dtype": "bfloat16", "model": "m", "parameters": 10**9},
        **{"gradient_checkpointing": False, "batch": 4, "rows": 10, "tokens": 1000, "seconds": 2.0},
    }
    return Measurement(**{**values, **changes})


def test_calibration_is_kept_and_scales_with_flop(tmp_path: Path) -> None:
    calibration.record_measurements(
        tmp_path, record(seconds=9.0), record(kind="train", gradient_checkpointing=True, seconds=6.0)
    )
    calibration.record_measurements(tmp_path, record(), record(parameters=8 * 10**9, seconds=100.0))
    known = calibration.load_calibration(tmp_path)
    assert known.seconds("score", 1000, 10**9, "card", "hf") == (2.0, True)  # the newest of the same size
    assert known.seconds("score", 3000, 2 * 10**9, "card", "hf") == (12.0, True)  # thrice the tokens, twice the model
    assert known.seconds("score", 1000, 4 * 10**9, "card", "hf") == (50.0, True)  # from the one nearest in size
    assert known.seconds("train", 1000, 10**9, "card", "hf", gradient_checkpointing=True) == (6.0, True)
    assert known.seconds("train", 1000, 10**9, "card", "hf") == (4.0, True)  # no second forward: 4 of 6
    computed = Calibration().seconds("score", 1000, 10**12, "card", "hf")[0]
    larger, smaller = (known.seconds("score", 1000, parameters, "card", "hf") for parameters in (10**12, 10**8))
    assert larger == (pytest.approx(max(computed, 800.0)), False)  # no less than a model 8 times the larger
    assert smaller == (pytest.approx(min(computed / 10**4, 0.25)), False)  # no more than one of an eighth of the smaller
    assert not known.seconds("score", 1000, 10**9, "card", "vllm")[1]
    assert not known.seconds("score", 1000, 10**9, "other card", "hf")[1]


def test_without_a_measurement_the_makers_figure_decides() -> None:
    """33,000 tokens through 1e9 parameters are 6.6e13 FLOP: a second of an RTX 4090's 1.65e14 at 40%."""
    seconds, measured = Calibration().seconds("score", 33_000, 10**9, "NVIDIA GeForce RTX 4090", "hf")
    assert (seconds, measured) == (pytest.approx(1.0), False)
    slower = [Calibration().seconds("train", 33_000, 10**9, f"NVIDIA {card}", "hf")[0] for card in ("H100 PCIe", "A100", "T4")]
    assert slower == sorted(slower)
    assert Calibration().seconds("score", 33_000, 10**9, calibration.device_name("cpu"), "hf")[0] > seconds


def rates(seconds: float) -> Calibration:
    kinds: list[Any] = ["score", "train", "generate"]
    return Calibration(tuple(record(kind=kind, seconds=seconds) for kind in kinds))


@given(
    kind=st.sampled_from(["generate", "score", "train"]),
    tokens=st.lists(st.integers(1, 10**9), min_size=2, max_size=2).map(sorted),
    parameters=st.lists(st.integers(60, 120).map(lambda tenths: round(10 ** (tenths / 10))), min_size=2, max_size=2).map(
        sorted
    ),
    known=st.sampled_from([Calibration(), rates(2.0), rates(0.01)]),  # slower and faster than what is computed
)
def test_more_work_never_takes_less(kind: Any, tokens: list[int], parameters: list[int], known: Calibration) -> None:
    (few, many), (small, large) = tokens, parameters
    least = known.seconds(kind, few, small, "card", "hf")[0]
    assert 0 < least <= known.seconds(kind, many, small, "card", "hf")[0] * (1 + 1e-9)
    assert least <= known.seconds(kind, few, large, "card", "hf")[0] * (1 + 1e-9)
    assert least <= known.seconds(kind, few, small, "card", "hf", gradient_checkpointing=True)[0] * (1 + 1e-9)


def test_a_damaged_calibration_is_named(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text('[{"device": "card"}]')
    with pytest.raises(InputError, match=r"bench\.json: 0\.engine: missing.*run `lowmem-spin bench` again") as error:
        calibration.load_calibration(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "nope"], "--model: 'nope' is not a benchmark's model; known: gemma-2b, llama-8b, smollm2-135m, tiny"),
        (["--vram", "0"], "--vram: 0 cannot be used; give the card's gigabytes, for instance 24"),
        (["--vram", "nan"], "--vram: nan cannot be used"),
        (["--pairs", "0"], "--pairs: 0 cannot be used; give 1 or more"),
        (["--versus", "axolotl"], "--versus: 'axolotl' is unknown; known: trl, vllm"),
        (["--model", "tiny", "--prompt-length", "1000"], "with the prompt 1256 tokens, but tiny reads 1024; shorten one"),
        (["--model", "tiny", "--prompt-length", "3"], "--prompt-length: 3 is too short for the chat template; use 5"),
        (["--model", "tiny", "--set", "training.optimm=x"], "unknown field; did you mean optim?"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lowmem-spin", "bench", "--store", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert line in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("bench/game-*"))


def test_trl_gets_the_same_tokens_at_once_in_whole_parts_of_a_step() -> None:
    pytest.importorskip("trl")
    from lowmem_spin.cli.bench.rival_trl import pairs_at_once

    assert pairs_at_once(16, 768, 8192) == 8  # of the 10 that there is room for
    assert pairs_at_once(12, 768, 8192) == 6
    assert pairs_at_once(16, 768, 100_000) == 16
    assert pairs_at_once(16, 768, 500) == 1


def test_all_pairs_are_answered_together_as_far_as_memory_allows(tmp_path: Path) -> None:
    def together(pairs: int) -> int:
        given = {"prompt_length": 256, "completion_length": 128, "store": tmp_path}
        asked = BenchRequest(model="gemma-2b", vram=24, pairs=pairs, versus=[], overrides=[], **given)
        return _load(asked, "gemma-2b", tmp_path).runtime.generation_batch_size

    assert [together(pairs) for pairs in (10, 64, 500)] == [10, 64, 64]
