"""Tests for a machine with CUDA: `pytest -m gpu -n 0`, and `-m "gpu and slow"` for the long ones.

LOWMEM_SPIN_GPU_TESTS_ON=cpu runs what of their bodies means anything on a CPU, to try a change to them out there.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from games import CPU, open_hf, recipe_on, save_slot, shake_slot

from lowmem_spin.engines import Machine, machine

HERE = Path(__file__).parent
DEVICE = os.environ.get("LOWMEM_SPIN_GPU_TESTS_ON", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and DEVICE == "cuda":
            item.add_marker("gpu")  # the conftest above skips these where there is no CUDA


@pytest.fixture(scope="session")
def where(quickstart: Path) -> Machine:
    """bfloat16, or float16 on a card without it."""
    return CPU if DEVICE == "cpu" else machine(recipe_on(quickstart / "base"))


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
