"""A whole game on the GPU, and its memory against engines/memory.py."""

import warnings
from pathlib import Path

import pytest
from rich.console import Console

from lowmem_spin.cli.bench import checkpoint
from lowmem_spin.cli.bench.measure import Card
from lowmem_spin.cli.play import run
from lowmem_spin.common.display import Display
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import peak, read_shape, stage_memory
from lowmem_spin.engines.training.pair import Pair


def test_the_quickstart_gets_better(machine: Machine, tmp_path: Path) -> None:
    path = find_recipe("quickstart")
    values = {
        **{"runtime.device": machine.device, "game.iterations": 1, "evaluation.compare_sft": "false"},
        **{"output.dir": tmp_path / "run", "output.store": tmp_path / "store"},
    }
    recipe = load_recipe(path, [f"{name}={value}" for name, value in values.items()])
    base, iterate = run(recipe, path.parent, Display(Console(quiet=True)))
    assert base.exact_match is not None
    assert iterate.exact_match is not None
    gain = iterate.exact_match.minus(base.exact_match)
    assert gain.mean > 0.5  # 0.75 in float32 on a CPU
    assert iterate.engine_gap.mean < 0.05
    assert (tmp_path / "run" / "iterates" / "0" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_training_takes_the_memory_that_was_planned(machine: Machine, tmp_path: Path) -> None:
    """A base of gemma-2b's shape in 4 bits, two rows of 1,024 tokens in a forward, checkpointing on."""
    name = "gemma-2b" if machine.device == "cuda" else "tiny"
    half = 512 if machine.device == "cuda" else 32
    card = Card()
    folder = checkpoint.make(tmp_path, name, machine, print)
    source = Source(str(folder), None, "test")
    recipe = Recipe.model_validate(
        {
            "model": {"name_or_path": str(folder)},
            "data": {"path": "unused.jsonl", "max_prompt_length": half, "max_completion_length": half},
            "generation": {"max_new_tokens": half},
            "training": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        }
    )
    engine = HF(recipe, source, machine)
    settings = {
        **{"batch_size": 2, "num_train_epochs": 1, "learning_rate": 1e-6, "optim": "adamw_torch", "iteration": 0, "seed": 1},
        **{"lr_scheduler_type": "linear", "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0},
        "learner": {"dtype": machine.dtype},
    }
    pairs = [Pair([70] * half, [80 + n] * half, [90 + n] * half, (-10.0, -10.0)) for n in range(6)]
    with card.watch("train"):
        _, metrics = engine.train(None, pairs, {"name": "dpo", "beta": 0.1}, settings, tmp_path / "work", lambda *told: None)
    engine.close()
    assert len(metrics) == 3
    predicted = peak(stage_memory(recipe, read_shape(source), machine.dtype)["train"])
    if machine.device == "cpu":
        return
    measured = card.peaks["train"].device
    assert measured is not None
    error = predicted / measured - 1
    print(f"predicted {predicted / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB ({card.peaks['train']}): {error:+.1%}")
    if abs(error) > 0.1:
        warnings.warn(f"engines/memory.py is off by {error:+.1%} on training memory", stacklevel=1)
    assert abs(error) < 0.3
