"""Tests for a machine with CUDA: `pytest -m gpu -n 0`, and `-m "gpu and slow"` for the long ones.

LOWMEM_SPIN_GPU_TESTS_ON=cpu runs what of their bodies means anything on a CPU, to try a change to them out there;
cpu:bfloat16 and cpu:float16 do so in a GPU's precision, which is where the tolerances come from. cuda:float16 has a newer card
compute as a T4 does.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.games import open_hf, recipe_on, save_slot, shake_slot
from lowmem_spin.engines.machine import Machine, driver, find_machine

HERE = Path(__file__).parent
DEVICE, _, DTYPE = os.environ.get("LOWMEM_SPIN_GPU_TESTS_ON", "cuda").partition(":")
# Nats by which a row's log-prob may differ from float32's, on average and at most. On a CPU bfloat16 itself is off by
# 0.11 on average and by 0.66 at most on these rows and adapters (log-probs around -17), float16 by 0.013 and 0.063.
TOLERANCE = {"float32": (0.001, 0.005), "bfloat16": (0.2, 1.3), "float16": (0.03, 0.2)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and DEVICE == "cuda":
            item.add_marker("gpu")  # the conftest above skips these where there is no CUDA


@pytest.fixture(scope="session")
def machine(quickstart: Path) -> Machine:
    """bfloat16, or float16 on a card without it; or what was asked for."""
    if DEVICE == "cpu":
        return Machine("cpu", DTYPE or "float32")
    found = find_machine(recipe_on(quickstart / "base"))
    return replace(found, dtype=DTYPE or found.dtype)


@pytest.fixture(scope="session")
def used() -> Callable[[], int]:
    """How many MiB of the card are taken now, by all processes."""
    return lambda: int((driver("memory.used") or ["0"])[0].split()[0])


@pytest.fixture(scope="session")
def tolerance(machine: Machine) -> tuple[float, float]:
    """Nats by which a row's log-prob may differ from the yardstick's: on average, at most."""
    return TOLERANCE[machine.dtype]


@pytest.fixture(scope="session")
def cpu(quickstart: Path) -> Any:
    """The shipped base in float32 on the CPU, the yardstick."""
    return open_hf(quickstart / "base")


@pytest.fixture(scope="session")
def adapters(cpu: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters that make a difference."""
    folders = []
    for seed in range(3):
        shake_slot(cpu, seed, scale=0.12)
        folders.append(save_slot(cpu, tmp_path_factory.mktemp("adapters") / f"adapter{seed}"))
    return folders


@pytest.fixture(scope="session")
def rows(cpu: Any, quickstart: Path) -> list[tuple[list[int], list[int]]]:
    """Held-out prompts and answers as token ids."""

    def ids(text: str) -> list[int]:
        return cpu.tokenizer(text, add_special_tokens=False)["input_ids"]

    held = [json.loads(line) for line in (quickstart / "heldout.jsonl").read_text().splitlines()[:80]]
    return [(ids(f"<bos><user>{row['prompt']}<end_of_turn><model>"), ids(f"{row['completion']}<end_of_turn>")) for row in held]
