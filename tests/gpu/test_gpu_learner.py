"""Every learner that is installed, on the GPU in half precision, against float32 on the CPU."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.games import recipe_on
from lowmem_spin.common.errors import InputError
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.registry import open_engine
from lowmem_spin.engines.training.pair import Pair

Row = tuple[list[int], list[int]]
# Relative error of a gradient against float32's. On a CPU bfloat16 itself is off by 0.06, float16 by 0.007.
GRADIENT = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.03}
LOSS = {"name": "dpo", "beta": 0.1}
SETTINGS = {
    **{"batch_size": 16, "num_train_epochs": 4, "learning_rate": 1e-3, "optim": "adamw_torch", "iteration": 0, "seed": 1},
    **{"lr_scheduler_type": "linear", "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0},
}
AT_ONCE = 400_000  # tokens that are scored in one forward pass
OOM_BYTES = 512 * 2**20  # one layer's MLP keeps more of so many
SPARE = 512  # MiB: what libraries keep of the card in this process


def start(name: str, quickstart: Path, machine: Machine, weights_dir: Path, dropout: float = 0.0) -> Any:
    """A learner with gradient checkpointing. Unsloth's keeps what it saves of rows of 512 tokens and more in RAM."""
    if name != "hf" and (find_spec(name) is None or machine.device == "cpu"):
        pytest.skip(f"{name} cannot run here")
    folder = quickstart / "base"
    options = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "gradient_checkpointing": True}
    recipe = recipe_on(folder, dropout=dropout, **options)
    recipe = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"scoring_tokens_per_batch": AT_ONCE})})
    return open_engine(name, recipe, Source(str(folder), None, "test"), machine, weights_dir / "weights", print)


@pytest.fixture(scope="module", params=["hf", "unsloth"])
def learner(
    request: pytest.FixtureRequest, quickstart: Path, machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    engine = start(request.param, quickstart, machine, tmp_path_factory.mktemp(request.param))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def pairs(cpu: Any, rows: list[Row]) -> list[Pair]:
    """The data's answers against themselves read backwards."""
    return against_backwards(cpu, rows)


@pytest.fixture(scope="module")
def long_pairs(cpu: Any, rows: list[Row]) -> list[Pair]:
    """Four of 600 tokens: one row after the other, and the last 100 tokens are the answer."""
    stream = [token for prompt, answer in rows for token in (*prompt, *answer)]
    return against_backwards(cpu, [(stream[n * 90 :][:500], stream[n * 90 + 500 :][:100]) for n in range(4)])


def against_backwards(cpu: Any, rows: list[Row]) -> list[Pair]:
    backwards = [(prompt, answer[::-1]) for prompt, answer in rows]
    logps = zip(cpu.score(None, rows), cpu.score(None, backwards), strict=True)
    return [Pair(*good, bad, ref) for good, (_, bad), ref in zip(rows, backwards, logps, strict=True)]


def gradient(learner: Any, adapter: Path, pairs: list[Pair], dtype: str, work: Path) -> torch.Tensor:
    """Of the loss, by all weights of an adapter: a step of plain descent moves them by it."""
    step = {"batch_size": len(pairs), "num_train_epochs": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e6}
    moved, _ = learner.train(adapter, pairs, LOSS, {**SETTINGS, **step, "learner": {"dtype": dtype}}, work, lambda *told: None)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, moved))
    return torch.cat([(before[name] - after[name]).flatten() for name in sorted(before)])


def test_it_scores_as_the_cpu_does(
    learner: Any, cpu: Any, tolerance: tuple[float, float], adapters: list[Path], rows: list[Row]
) -> None:
    mean, most = tolerance
    for adapter in (None, *adapters):
        expected = torch.tensor(cpu.score(adapter, rows))
        found = torch.tensor(learner.score(adapter, rows))
        gap = (found - expected).abs()
        assert gap.mean() < mean
        assert gap.max() < most
    others = torch.tensor(cpu.score(adapters[1], rows)) - torch.tensor(cpu.score(adapters[0], rows))
    assert others.abs().mean() > 10 * mean  # taking one policy for another would have shown


def test_scoring_twice_is_identical(learner: Any, adapters: list[Path], rows: list[Row]) -> None:
    first = learner.score(adapters[0], rows)
    learner.score(None, rows)
    assert learner.score(adapters[0], rows) == first


def test_a_short_training_learns_in_float32(learner: Any, machine: Machine, pairs: list[Pair], tmp_path: Path) -> None:
    settings = {**SETTINGS, "learner": {"dtype": machine.dtype}}
    adapter, metrics = learner.train(None, pairs, LOSS, settings, tmp_path, lambda *told: None)
    assert metrics[0]["loss"] == pytest.approx(0.693, abs=0.05)  # the policy is still its reference
    assert metrics[-1]["loss"] < 0.6  # 0.52 in float32 on a CPU
    weights = load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    bad = [(pair.prompt, pair.rejected) for pair in pairs]
    # What was saved is what was trained: a nat a row less for the rejected.
    assert sum(learner.score(adapter, bad)) < sum(learner.score(None, bad)) - len(pairs)


@pytest.mark.parametrize("length", ["short", "long"])
def test_its_gradient_is_the_cpus(
    learner: Any,
    cpu: Any,
    machine: Machine,
    adapters: list[Path],
    pairs: list[Pair],
    long_pairs: list[Pair],
    length: str,
    tmp_path: Path,
) -> None:
    """Through gradient checkpointing."""
    if machine.device == "cuda" and machine.dtype == "float16":
        pytest.skip("a first step that only finds the loss's scale moves nothing")
    pair_source = pairs[:16] if length == "short" else long_pairs
    expected = gradient(cpu, adapters[0], pair_source, "float32", tmp_path / "cpu")
    found = gradient(learner, adapters[0], pair_source, machine.dtype, tmp_path / "found")
    error = ((found - expected).norm() / expected.norm()).item()
    print(f"{length}: the gradient's norm is {expected.norm():.3f}, and it is off by {error:.5f} of that")
    assert error < GRADIENT[machine.dtype]


@pytest.mark.parametrize("optimiser", ["adamw_torch_fused", "adamw_8bit"])
def test_it_trains_with(learner: Any, machine: Machine, pairs: list[Pair], optimiser: str, tmp_path: Path) -> None:
    if machine.device == "cpu" and "8bit" in optimiser:
        pytest.skip("8 bits need a GPU")
    settings = {**SETTINGS, "optim": optimiser, "learner": {"dtype": machine.dtype}}
    _, metrics = learner.train(None, pairs, LOSS, settings, tmp_path, lambda *told: None)
    assert metrics[-1]["loss"] < 0.6


@pytest.mark.parametrize("name", ["hf", "unsloth"])
def test_dropout_is_for_training_and_the_card_is_given_back(
    name: str, quickstart: Path, machine: Machine, used: Callable[[], int], pairs: list[Pair], tmp_path: Path
) -> None:
    torch.matmul(torch.ones(8, 8, device=machine.device), torch.ones(8, 8, device=machine.device))  # this process's own context
    before = used()
    learner = start(name, quickstart, machine, tmp_path, dropout=0.3)
    settings = {**SETTINGS, "learner": {"dtype": machine.dtype}}
    adapter, metrics = learner.train(None, pairs, LOSS, settings, tmp_path / "work", lambda *told: None)
    assert metrics[-1]["loss"] < 0.65
    scored = [(pair.prompt, pair.chosen) for pair in pairs]
    assert learner.score(adapter, scored) == learner.score(adapter, scored)
    learner.close()
    assert used() - before < SPARE


def test_too_small_a_card_is_one_line(learner: Any, machine: Machine, rows: list[Row]) -> None:
    if machine.device == "cpu":
        pytest.skip("only a GPU's memory can be limited")
    if not hasattr(learner, "model"):
        pytest.skip("the limit binds this process only")
    before = learner.score(None, rows)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(OOM_BYTES / total)
    try:
        with pytest.raises(
            InputError, match=rf"runtime\.scoring_tokens_per_batch: a batch of {AT_ONCE} tokens does not fit"
        ) as error:
            learner.score(None, [([1, 3, *[70] * 500, 5, 4], [80] * 500)] * 2000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "\n" not in str(error.value)
    assert learner.score(None, rows) == before  # and the engine lives
