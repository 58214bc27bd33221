"""Engines: what computes. A generator samples completions; a learner scores and trains.

An engine is one file; `ENGINES` names it without importing it, so its heavy libraries load when it opens.
"""

import functools
import importlib
import importlib.util
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from lowmem_spin.algorithm.stages import Sampling
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import Tokens
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source

# Before anything imports it: it warns that a CPU kernel is missing, the very one hf.py keeps it from using.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Request:
    """One completion to sample. Its noise depends on `seed` alone, never on the batch it is in."""

    adapter: Path | None  # None is the frozen base
    prompt: Tokens
    seed: int


@dataclass(frozen=True)
class Completion:
    """What a policy answered; `tokens` end with its end of turn when finish_reason is "stop"."""

    tokens: list[int]
    text: str
    finish_reason: str  # "stop" or "length"
    logp: float  # summed, of the untempered distribution, as the generator saw it


class Generator(Protocol):
    """Samples completions from any policy on the one base."""

    mixes_policies: bool
    """Whether a batch may have requests of several policies; else all of a batch have the same."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order."""
        ...

    def rest(self) -> None:
        """Nothing to generate for a while."""
        ...


class Learner(Protocol):
    """Scores and trains adapters on the one base, with the same code and types for both."""

    def score(self, adapter: Path | None, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """Summed log-prob of each row's completion given its prompt; `adapter` None is the base."""
        ...

    def train(
        self,
        init: Path | None,
        pairs: Sequence[Any],
        loss: dict[str, Any],
        settings: dict[str, Any],
        work: Path,
        advance: Callable[[int], None],
    ) -> tuple[Path, list[dict[str, float]]]:
        """Train from `init`; the folder of the new adapter and the metrics of its logged steps.

        `advance` is told of the rows behind every optimiser step, and of 0 rows when a checkpoint has been written.
        """
        ...


ENGINES = {
    "hf": "lowmem_spin.engines.hf:HF",
    "vllm": "lowmem_spin.engines.vllm:VLLM",
    "unsloth": "lowmem_spin.engines.unsloth:Unsloth",
}


@dataclass(frozen=True)
class Machine:
    """Where an engine computes, found without importing torch."""

    device: str  # "cpu" or "cuda"
    dtype: str
    total: float = 0.0  # bytes of the GPU's memory
    limit: float = 0.0  # bytes of it that may be used
    residency: str = "resident"  # what the generator and the learner do while the other works
    generator_share: float = 0.0  # of the GPU's memory, for a generator that takes its memory beforehand

    @property
    def sleeps(self) -> bool:
        return self.residency == "sleep"


def machine(recipe: Recipe) -> Machine:
    """The device and compute type this recipe gets here."""
    capability = None if recipe.runtime.device == "cpu" else cuda_capability()
    if recipe.runtime.device == "cuda" and capability is None:
        raise InputError("runtime.device: 'cuda' asked, but no NVIDIA GPU answers here; use auto or cpu")
    device = "cpu" if capability is None else "cuda"
    automatic = "float32" if capability is None else "bfloat16" if capability >= 8 else "float16"
    dtype = automatic if recipe.model.dtype == "auto" else recipe.model.dtype
    if device == "cpu" and ("8bit" in recipe.training.optim or "paged" in recipe.training.optim):
        raise InputError(f"training.optim: {recipe.training.optim!r} needs a GPU and this machine has none; use adamw_torch")
    if device == "cpu" and recipe.runtime.residency == "sleep":
        raise InputError("runtime.residency: 'sleep' needs a GPU and none is used here; use auto, resident or exit")
    if device == "cpu":
        return Machine(device, dtype, residency="exit" if recipe.runtime.residency == "exit" else "resident")
    total, free = _memory("memory.total"), _memory("memory.free")  # what others hold is not ours to plan with
    vram = recipe.runtime.vram_gb
    return Machine(device, dtype, total, free if vram is None else min(free, vram * 1e9))


def cuda_capability() -> float | None:
    """Compute capability of the first visible GPU that this torch could use; None without one."""
    answer = None if "+cpu" in version("torch") else unchanging("compute_cap")
    return None if answer is None else float(answer[0])


def _memory(field: str) -> float:
    """Bytes of the first visible GPU."""
    answer = driver(field)
    if answer is None:
        raise InputError("runtime.device: the GPU no longer answers; look at nvidia-smi, or use cpu")
    try:
        return float(answer[0].split()[0]) * 2**20  # "24564 MiB"
    except ValueError:
        raise InputError(
            f"runtime.vram_gb: the driver says {answer[0]!r} of the GPU's memory; use runtime.device cpu"
        ) from None


def driver(fields: str) -> list[str] | None:
    """What the NVIDIA driver says of the first visible GPU, field by field; None if there is no answer."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None or visible == "":
        return None
    which = ["--id", visible.split(",")[0]] if visible else []
    command = ["nvidia-smi", *which, f"--query-gpu={fields}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = answer.stdout.splitlines()
    return [value.strip() for value in lines[0].split(",")] if answer.returncode == 0 and lines else None


@functools.cache
def unchanging(fields: str) -> list[str] | None:
    """The same for what does not change while this process runs: asking takes a process each time."""
    return driver(fields)


def installed(name: str) -> bool:
    """Whether an engine's own package is here."""
    return name == "hf" or importlib.util.find_spec(name) is not None


def open_engine(name: str, recipe: Recipe, model: Source, where: Machine, shelf: Path, say: Callable[[str], None]) -> Any:
    """Import and open an engine: loads the base.

    What it derives from the base once goes to the folder `shelf`. `say` is told, in one line, what a person should
    know, such as that a worker had to be started again.
    """
    if not installed(name):
        section = "generation" if name == "vllm" else "training"
        raise InputError(f"{section}.engine: {name!r} is not installed; `pip install 'lowmem-spin[gpu]'`, or use hf")
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(recipe, model, where, shelf, say)


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can hold


def held_rank(r: int) -> int:
    """The smallest rank that vLLM can hold an adapter of rank r in."""
    fitting = [rank for rank in RANKS if rank >= r]
    if not fitting:
        raise InputError(f"training.lora.r: vllm holds ranks up to {RANKS[-1]}, not {r}; lower it, or use generation.engine hf")
    return fitting[0]
