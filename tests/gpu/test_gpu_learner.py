"""Every learner that is installed, on the GPU in half precision, against float32 on the CPU."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from games import recipe_on
from safetensors.torch import load_file

from lowmem_spin.engines import ENGINES, Machine, open_engine
from lowmem_spin.recipe import InputError
from lowmem_spin.sources import Source
from lowmem_spin.training import Pair

Row = tuple[list[int], list[int]]
# Nats by which a row's log-prob may differ from float32's, on average and at most. On a CPU bfloat16 itself is off by
# 0.11 on average and by 0.66 at most on these rows and adapters (log-probs around -17), float16 by 0.013 and 0.063.
TOLERANCE = {"float32": (0.001, 0.005), "bfloat16": (0.2, 1.3), "float16": (0.03, 0.2)}
LOSS = {"name": "dpo", "beta": 0.1}
OOM_BYTES = 512 * 2**20


@pytest.fixture(scope="module", params=["hf", "unsloth"])
def learner(request: pytest.FixtureRequest, quickstart: Path, where: Machine, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name = request.param
    if name not in ENGINES or (name != "hf" and find_spec(name) is None):
        pytest.skip(f"{name} is not here")
    folder = quickstart / "base"
    model = Source(str(folder), None, "test")
    recipe = recipe_on(folder, per_device_train_batch_size=16, gradient_accumulation_steps=1)
    recipe = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"scoring_batch_size": 2000})})
    engine = open_engine(name, recipe, model, where, tmp_path_factory.mktemp(name) / "weights", print)
    yield engine
    engine.close()


def test_it_scores_as_the_cpu_does(learner: Any, cpu: Any, where: Machine, adapters: list[Path], rows: list[Row]) -> None:
    mean, most = TOLERANCE[where.dtype]
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


def test_a_short_training_learns_in_float32(learner: Any, where: Machine, rows: list[Row], tmp_path: Path) -> None:
    chosen, rejected = [answer for _, answer in rows], [answer[::-1] for _, answer in rows]
    good = learner.score(None, rows)
    bad = learner.score(None, [(prompt, answer) for (prompt, _), answer in zip(rows, rejected, strict=True)])
    pairs = [
        Pair(*row) for row in zip([prompt for prompt, _ in rows], chosen, rejected, zip(good, bad, strict=True), strict=True)
    ]
    settings = {
        **{"batch_size": 16, "num_train_epochs": 4, "learning_rate": 1e-3, "optim": "adamw_torch", "iteration": 0, "seed": 1},
        **{"lr_scheduler_type": "linear", "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0},
        "learner": {"dtype": where.dtype},
    }
    adapter, metrics = learner.train(None, pairs, LOSS, settings, tmp_path, lambda rows: None)
    assert metrics[0]["loss"] == pytest.approx(0.693, abs=0.05)  # the policy is still its reference
    assert metrics[-1]["loss"] < 0.6  # 0.52 in float32 on a CPU
    weights = load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    now = learner.score(adapter, [(pair.prompt, pair.rejected) for pair in pairs if pair.rejected is not None])
    assert sum(now) < sum(bad) - len(pairs)  # what was saved is what was trained: a nat a row less for the rejected


def test_too_small_a_card_is_one_line(learner: Any, where: Machine, rows: list[Row]) -> None:
    if where.device == "cpu":
        pytest.skip("only a GPU's memory can be limited")
    if not hasattr(learner, "model"):
        pytest.skip("the limit binds this process only")
    before = learner.score(None, rows)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(OOM_BYTES / total)
    try:
        with pytest.raises(InputError, match=r"runtime\.scoring_batch_size: a batch of 2000 does not fit") as error:
            learner.score(None, [([1, 3, *[70] * 500, 5, 4], [80] * 500)] * 2000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "\n" not in str(error.value)
    assert learner.score(None, rows) == before  # and the engine lives
