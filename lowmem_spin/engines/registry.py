"""The engines by name, opened on demand.

`ENGINES` names each without importing it, so its heavy libraries load when it opens.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.machine import Machine

ENGINES = {
    "hf": "lowmem_spin.engines.hf:HF",
    "vllm": "lowmem_spin.engines.vllm:VLLM",
    "unsloth": "lowmem_spin.engines.unsloth:Unsloth",
}


def installed(name: str) -> bool:
    """Whether an engine's own package is here."""
    return name == "hf" or importlib.util.find_spec(name) is not None


def open_engine(
    name: str, recipe: Recipe, model: Source, machine: Machine, weights_dir: Path, notify: Callable[[str], None]
) -> Any:
    """Import and open an engine: loads the base.

    What it derives from the base once goes to the folder `shelf`. `say` is told, in one line, what a person should
    know, such as that a worker had to be started again.
    """
    if not installed(name):
        section = "generation" if name == "vllm" else "training"
        raise InputError(f"{section}.engine: {name!r} is not installed; `pip install 'lowmem-spin[gpu]'`, or use hf")
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(recipe, model, machine, weights_dir, notify)


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can hold


def held_rank(r: int) -> int:
    """The smallest rank that vLLM can hold an adapter of rank r in."""
    fitting = [rank for rank in RANKS if rank >= r]
    if not fitting:
        raise InputError(f"training.lora.r: vllm holds ranks up to {RANKS[-1]}, not {r}; lower it, or use generation.engine hf")
    return fitting[0]
