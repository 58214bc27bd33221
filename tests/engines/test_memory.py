"""The memory model, term by term, against real models on a CPU and against gemma-2b's known sizes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.commands import call
from helpers.games import CPU, make_micro_base, open_hf, recipe_on, shake_slot
from helpers.live_bytes import LiveBytes
from lowmem_spin.cli.bench.bench import BenchRequest, _load
from lowmem_spin.cli.bench.checkpoint import SPECIAL, skeleton
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.advice import advice
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.known_models import CONFIGS, MODELS
from lowmem_spin.engines.loading import load_base
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import CARDS, WIDTH, Shape, peak, read_shape, stage_memory
from lowmem_spin.engines.training.logps import collate, completion_logps
from lowmem_spin.runner.planning.calibration import known_gpu

GEMMA_2B = Shape(18, 2048, 16384, 8, 1, 256, 256000, True)
PUBLISHED = {  # parameters, as the models' own pages count them
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b": 8_537_680_896,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-pt": 999_885_952,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}
ROW = ([1, 3, *range(70, 130), 5, 4], [*range(70, 133), 5])


@pytest.fixture(params=["quickstart", "micro"])
def base(request: pytest.FixtureRequest, quickstart: Path, tmp_path: Path) -> Path:
    return quickstart / "base" if request.param == "quickstart" else make_micro_base(tmp_path)


def test_gemma_2b_has_its_known_sizes() -> None:
    assert GEMMA_2B.body / 1e9 == pytest.approx(1.98, abs=0.01)
    assert GEMMA_2B.unquantized / 1e9 == pytest.approx(0.52, abs=0.01)
    assert GEMMA_2B.kv(2) == 18 * 1024
    assert GEMMA_2B.lora(16) / 1e6 == pytest.approx(19.6, abs=0.1)
    assert GEMMA_2B.weights("nf4", 2) / 1e9 == pytest.approx(2.07, abs=0.01)


def test_popular_models_have_their_published_parameters() -> None:
    assert {names[0] for names in MODELS} == PUBLISHED.keys()
    for name, parameters in PUBLISHED.items():
        assert sum(weights.numel() for weights in skeleton(CONFIGS[name] | SPECIAL).parameters()) == parameters, name
        shape = Shape.of(CONFIGS[name])
        assert shape.body + shape.unquantized == pytest.approx(parameters, rel=2e-4), name  # without biases and inner norms


def test_parameters_weights_and_adapters_are_those_of_the_loaded_model(base: Path) -> None:
    source = Source(str(base), None, "")
    shape = read_shape(source)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert shape.body + shape.unquantized == sum(p.numel() for p in plain.parameters())
    engine = open_hf(base)
    trainable = [p for p in engine.model.parameters() if p.requires_grad]
    assert shape.lora(8) == sum(p.numel() for p in trainable)
    model = load_base(source, "nf4", CPU)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            held += state.absmax.numel() * state.absmax.element_size() + state.state2.absmax.numel() * 4
    assert shape.weights("nf4", 4) == pytest.approx(held, rel=0.01)


def test_the_key_value_cache_is_the_models(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    cache = model(torch.ones(2, 5, dtype=torch.long), use_cache=True).past_key_values
    held = sum(tensor.numel() * 4 for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert held == 2 * 5 * read_shape(Source(str(base), None, "")).kv(4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_a_layer_keeps_for_its_backward_pass(quickstart: Path, dropout: float, dtype: str) -> None:
    folder = quickstart / "base"
    engine = HF(recipe_on(folder, dropout=dropout), Source(str(folder), None, "test"), Machine("cpu", dtype))
    engine.model.train()
    kept: dict[int, int] = {}
    frozen = {p.data_ptr() for p in engine.model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = collate([ROW] * 4, engine.pad)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = completion_logps(engine.model.get_base_model(), batch).sum()
    shape = read_shape(Source(str(folder), None, ""))
    expected = batch.input_ids.numel() * shape.layers * shape.saved(WIDTH[dtype], dropout > 0)
    assert sum(kept.values()) == pytest.approx(expected, rel=0.08)
    assert torch.isfinite(loss)


def plan(**changes: Any) -> Any:
    return load_recipe(find_recipe("gemma2b_alpha"), [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])


def test_gemma_2b_fits_in_24_gb_and_what_does_not_gets_advice_that_works() -> None:
    recipe = plan()
    assert max(peak(terms) for terms in stage_memory(recipe, GEMMA_2B, "bfloat16").values()) < CARDS["24 GB"]
    assert list(advice(recipe, GEMMA_2B, "bfloat16", CARDS["24 GB"])) == []
    large = plan(training__tokens_per_batch=200000, runtime__generation_batch_size=2000)
    lines = list(advice(large, GEMMA_2B, "bfloat16", CARDS["24 GB"]))
    assert [line.split(" to ")[0] for line in lines] == [
        "generate: set runtime.generation_batch_size",
        "train: set training.tokens_per_batch",
    ]
    generate, train = (int(line.rsplit(" ", 1)[1]) for line in lines)
    advised = plan(training__tokens_per_batch=train, runtime__generation_batch_size=generate)
    assert list(advice(advised, GEMMA_2B, "bfloat16", CARDS["24 GB"])) == []
    tight = plan(training__per_device_train_batch_size=1, training__gradient_checkpointing="false")
    assert "train: set training.gradient_checkpointing to true" in advice(tight, GEMMA_2B, "bfloat16", 8e9)


def test_the_plan_is_what_an_h200_took(tmp_path: Path) -> None:
    """Of the benchmark's game on gemma-2b's shape, in nf4 and bfloat16, by transformers: recipes/README.md."""

    def planned(*overrides: str) -> dict[str, float]:
        given = {"pairs": 64, "prompt_length": 256, "completion_length": 128, "store": tmp_path}
        asked = BenchRequest(model="gemma-2b", vram=24, versus=[], overrides=list(overrides), **given)
        found = stage_memory(_load(asked, "gemma-2b", tmp_path), GEMMA_2B, "bfloat16")
        return {stage: peak(terms) for stage, terms in found.items()}

    in_float32 = 32 * 256 * GEMMA_2B.intermediate * 6.0  # what up's adapter took then, and no longer takes
    measured = {"generate": 5.64e9 - in_float32, "score": 4.10e9, "train": 4.54e9}
    assert planned("runtime.generation_batch_size=32") == pytest.approx(measured, rel=0.1)
    assert planned("training.tokens_per_batch=8192")["train"] == pytest.approx(7.55e9, rel=0.1)


def test_a_config_without_sizes_is_named() -> None:
    with pytest.raises(InputError, match="its config has no 'num_attention_heads'"):
        Shape.of({"hidden_size": 8})


def test_the_plan_is_printed_without_torch(quickstart: Path) -> None:
    call = "app(['plan', 'quickstart'], standalone_mode=False)"
    script = f"import sys; from lowmem_spin.cli.main import app; {call}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "24 GB       fits" in result.stdout
    assert result.stdout.splitlines()[-1] == "False"


def test_without_a_hub_a_plan_has_hours_and_memory_for_a_card(tmp_path: Path) -> None:
    asked = call("plan", "gemma2b_alpha", "--gpu", "4090", "--json", "--set", f"output.store={tmp_path}")
    found = json.loads(asked.stdout)
    assert (found["device"], found["dtype"]) == ("cuda", "bfloat16")
    seconds = {kind: total["seconds"] for kind, total in found["totals"].items()}
    tokens = 50_000 * 2 * (512 + 512 + 256)  # two epochs of a prompt, the data's answer and an opponent's
    assert seconds["train"] == pytest.approx(tokens * 6 * PUBLISHED["google/gemma-2b"] / (0.4 * 165e12), rel=1e-3)
    assert sum(seconds.values()) < 12 * 3600  # a night
    memory = {stage["kind"]: stage["gpu_memory_bytes"] for stage in found["stages"]}
    there = plan(training__tokens_per_batch=8192)  # as many as a card of 24 GB gets
    assert memory["train"] == pytest.approx(peak(stage_memory(there, GEMMA_2B, "bfloat16")["train"]), rel=0.01)
    assert any("published shape" in note for note in found["notes"])
    assert any("google/gemma-2b is gated: accept its licence" in note for note in found["notes"])
    free = call("plan", "qwen2.5_1.5b_alpha", "--json", "--set", f"output.store={tmp_path}")
    assert "gated" not in free.stdout
    old = json.loads(call("plan", "gemma2b_alpha", "--gpu", "T4", "--json", "--set", f"output.store={tmp_path}").stdout)
    assert old["dtype"] == "float16"
    assert old["totals"]["train"]["seconds"] == pytest.approx(seconds["train"] * 165 / 65, rel=1e-3)


def test_transformers_generates_no_faster_than_it_can_take_steps(tmp_path: Path) -> None:
    """Its steps take their time however few rows are in them; an H200 took 15 s for two batches of 128 tokens."""
    options = ("--gpu", "4090", "--json", "--set", f"output.store={tmp_path}", "--set", "generation.engine=hf")
    slow = json.loads(call("plan", "gemma2b_taste", *options).stdout)["totals"]["generate"]["seconds"]
    assert slow == pytest.approx(6000 / 48 * 256 * GEMMA_2B.layers * 0.003, rel=0.02)
    quick = json.loads(call("plan", "gemma2b_taste", *options, "--set", "runtime.generation_batch_size=480").stdout)
    assert slow / 10 <= quick["totals"]["generate"]["seconds"] < slow / 8  # the last batch of an opponent is not full


def test_a_card_that_is_not_known_is_one_line() -> None:
    with pytest.raises(InputError) as error:
        known_gpu("RTX 9090")
    assert str(error.value) == (
        "--gpu: 'RTX 9090' is not known; known: 4090, 3090, T4, A100, H100, H200; choose the nearest, and set runtime.vram_gb "
        "to what yours has"
    )
    known = {name: known_gpu(name) for name in ("RTX4090", "NVIDIA GeForce RTX 3090", "Tesla T4", "h100")}
    assert list(known.values()) == ["4090", "3090", "T4", "H100"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_forward_pass_takes_where_it_is_widest(quickstart: Path, dtype: str) -> None:
    source = Source(str(quickstart / "base"), None, "")
    engine = HF(recipe_on(quickstart / "base"), source, Machine("cpu", dtype))
    shake_slot(engine)
    base: Any = engine.model.eval().get_base_model()
    ids = torch.randint(20, 200, (4, 250))
    live = LiveBytes()
    with torch.no_grad(), live:
        base.get_decoder()(input_ids=ids, use_cache=False)
    expected = ids.numel() * read_shape(source).passing(WIDTH[dtype])
    assert live.most == pytest.approx(expected, rel=0.15)
