"""The engines by name, opened on demand.

An engine is one entry of `ENGINES`: nothing else knows its name, and its heavy libraries load when it opens.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError, install_extra
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import Shape, Terms, stage_memory, vllm_memory

ROLES = ("generation", "training")  # a recipe's sections that name an engine
PORTABLE = "hf"  # runs on every device; the others are held against it, and auto falls back on it


def _no_keys(_: Recipe) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Engine:
    """What the rest of the code has to know of an engine before it is opened.

    Paths of code are "module:attribute", imported when they are needed.
    """

    name: str
    roles: tuple[str, ...]  # of ROLES
    target: str  # its class: takes what open_engine does, and is a base.Generator or base.Learner, or both
    opened_with: Callable[[Recipe], list[Any]]
    """What of a recipe its class reads, beside model, lengths and `runtime`: games that differ in it cannot share it."""
    memory: Callable[[Recipe, Shape, str], dict[str, Terms]]
    """Bytes of every term by stage, "generate" or "score" and "train", in the worst case and for this dtype."""
    key_fields: Callable[[Recipe], dict[str, Any]] = _no_keys
    """What of a recipe, beside its name and the dtype, may change its results and so is a part of keys."""
    package: str | None = None  # that must be importable
    extra: str | None = None  # of lowmem-spin, which installs that package
    capability: float = 0.0  # compute capability that a GPU must have
    self_test: str | None = None  # f(engine, expected, folder, dtype) -> verdict; without one, auto never chooses it
    dequantizes: bool = False  # holds a 4-bit base unpacked
    preallocates: bool = False  # takes its whole share of the GPU when it opens and keeps it at work or not
    sleeps: bool = False  # can wait with its weights in RAM and next to nothing on the GPU
    samples_mixtures: bool = False  # is a base.MixtureSampler

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"`pip install {self.package}`" if self.extra is None else install_extra(self.extra)


def _lora_rank(recipe: Recipe) -> list[Any]:
    return [recipe.training.lora.r]


def _training_knobs(recipe: Recipe) -> list[Any]:
    t = recipe.training
    knobs = [t.per_device_train_batch_size, t.gradient_checkpointing, t.optim, t.lr_scheduler_type, t.disable_dropout]
    return [t.lora.model_dump(), knobs]


def _vllm_keys(recipe: Recipe) -> dict[str, Any]:
    return {} if recipe.model.quantization == "none" else {"weights": recipe.generation.weights}


def _vllm_terms(recipe: Recipe, shape: Shape, dtype: str) -> dict[str, Terms]:
    return {"generate": vllm_memory(recipe, shape, dtype)}


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            name="hf",
            roles=ROLES,
            target="lowmem_spin.engines.hf:HF",
            opened_with=_training_knobs,
            memory=stage_memory,
            samples_mixtures=True,
        ),
        Engine(
            name="vllm",
            roles=("generation",),
            target="lowmem_spin.engines.vllm:VLLM",
            opened_with=_lora_rank,
            memory=_vllm_terms,
            key_fields=_vllm_keys,
            package="vllm",
            extra="gpu",
            capability=7.0,
            self_test="lowmem_spin.engines.doctor:check_generator",
            dequantizes=True,
            preallocates=True,
            sleeps=True,
        ),
        Engine(
            name="unsloth",
            roles=("training",),
            target="lowmem_spin.engines.unsloth:Unsloth",
            opened_with=_training_knobs,
            memory=stage_memory,
            package="unsloth",
            extra="gpu",
            capability=7.0,
            self_test="lowmem_spin.engines.doctor:check_learner",
        ),
    )
}


def gpu_engine(role: str) -> Engine:
    """What auto stands for on a GPU, where it passes its self-test."""
    return next(engine for engine in ENGINES.values() if role in engine.roles and engine.self_test)


def installed(name: str) -> bool:
    """Whether an engine's own package is here."""
    package = ENGINES[name].package
    return package is None or importlib.util.find_spec(package) is not None


def load_attribute(path: str) -> Any:
    """Import what a "module:attribute" names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def open_engine(
    name: str, recipe: Recipe, model: Source, machine: Machine, weights_dir: Path, notify: Callable[[str], None]
) -> Any:
    """Import and open an engine: loads the base.

    What it derives from the base once goes to the folder `weights_dir`. `notify` is told, in one line, what a person
    should know, such as that a worker had to be started again.
    """
    engine = ENGINES[name]
    if not installed(name):
        raise InputError(f"{engine.roles[0]}.engine: {name!r} is not installed; {engine.install}, or use {PORTABLE}")
    return load_attribute(engine.target)(recipe, model, machine, weights_dir, notify)


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can hold


def held_rank(r: int) -> int:
    """The smallest rank that vLLM can hold an adapter of rank r in."""
    fitting = [rank for rank in RANKS if rank >= r]
    if not fitting:
        raise InputError(f"training.lora.r: vllm holds ranks up to {RANKS[-1]}, not {r}; lower it, or use generation.engine hf")
    return fitting[0]
