"""Where an engine computes: the device, its memory and its types, found without importing torch."""

import functools
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe

version = functools.cache(metadata.version)  # which looks through folders each time
GAUGED = 5.0  # seconds between two looks at the GPU's memory


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


def find_machine(recipe: Recipe) -> Machine:
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


def memory_gauge() -> Callable[[], list[str]]:
    """A function that says how much of the first GPU's memory is taken, by whatever process; nothing where there is none.

    The driver is asked at most every GAUGED seconds: each time takes a process.
    """
    if cuda_capability() is None:
        return list
    said: list[str] = []
    asked = -math.inf

    def gauge() -> list[str]:
        nonlocal said, asked
        if time.monotonic() - asked >= GAUGED:
            asked, found = time.monotonic(), driver("memory.used,memory.total")
            sizes = [size.split()[0] for size in found or []]  # "7123 MiB"
            numbers = [float(size) * 2**20 / 1e9 for size in sizes if size.isdecimal()]
            said = [f"GPU {numbers[0]:.1f} of {numbers[1]:.1f} GB"] if len(numbers) == 2 else []
        return said

    return gauge


def driver(fields: str) -> list[str] | None:
    """What the NVIDIA driver says of the first visible GPU, field by field; None if there is no answer."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    lines = [] if visible == "" else _driver_lines(fields, ["--id", visible.split(",")[0]] if visible else [])
    return [value.strip() for value in lines[0].split(",")] if lines else None


def visible_gpus() -> int:
    """How many GPUs the NVIDIA driver answers for, of those that this process may see."""
    visible, there = os.environ.get("CUDA_VISIBLE_DEVICES"), len(_driver_lines("index"))
    return there if visible is None else min(there, len(visible.split(",")) if visible else 0)


def _driver_lines(fields: str, which: Sequence[str] = ()) -> list[str]:
    """The driver's answer, a line for each GPU; none if there is no answer."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", *which, f"--query-gpu={fields}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


@functools.cache
def unchanging(fields: str) -> list[str] | None:
    """The same for what does not change while this process runs: asking takes a process each time."""
    return driver(fields)
