"""The engines of a game, two at most on one GPU, each opened when first needed and kept, for a whole sweep if it is one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines import doctor
from lowmem_spin.engines.base import Generator, Learner
from lowmem_spin.engines.machine import Machine, find_machine
from lowmem_spin.engines.memory import Terms, read_shape
from lowmem_spin.engines.oracles.base import NoWeights, Oracle
from lowmem_spin.engines.passes import with_large_passes, with_small_passes
from lowmem_spin.engines.registry import ENGINES, PORTABLE, open_engine
from lowmem_spin.engines.residency import learner_room, shared_gpu

ORACLE = "oracle"  # its name beside the engines'


@dataclass(frozen=True)
class EngineChoices:
    """What a recipe gets on this machine: where it computes and with which engines."""

    machine: Machine
    generator: str
    learner: str

    @property
    def share_gpu(self) -> bool:
        """Whether two engines are on one."""
        return self.machine.device != "cpu" and self.generator != self.learner

    def specs(self, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
        """What of the generator and of the learner is a part of keys: everything that may change a result."""
        return self._spec(self.generator, recipe), self._spec(self.learner, recipe)

    def _spec(self, name: str, recipe: Recipe) -> dict[str, Any]:
        return {"engine": name, "dtype": self.machine.dtype, **ENGINES[name].key_fields(recipe)}


def choose_engines(recipe: Recipe, store: Path, display: Display | None) -> EngineChoices:
    """Resolve `auto`; with a display, an engine that was never tested here is tested now."""
    machine = find_machine(recipe)
    requested = {"generation": recipe.generation.engine, "training": recipe.training.engine}
    if recipe.game.sampler.name != "none":
        if requested["generation"] == "auto":
            requested["generation"] = PORTABLE
        elif not ENGINES[requested["generation"]].samples_mixtures:
            name, sampler = requested["generation"], recipe.game.sampler.name
            raise InputError(f"generation.engine: {name!r} cannot sample mixtures ({sampler}); use {PORTABLE}")
    if machine.device == "cpu":
        names = {role: PORTABLE if name == "auto" else name for role, name in requested.items()}
        return EngineChoices(machine, names["generation"], names["training"])
    names = {}
    for role, name in requested.items():
        choice = doctor.choose_engine(role, name, store, None if display is None else _test(display))
        names[role] = choice.engine
        if display and name == "auto":
            display.log(f"{role}.engine: auto is {choice.engine}: {choice.why}")
    return EngineChoices(machine, names["generation"], names["training"])


def _test(display: Display) -> Callable[[str, Path], None]:
    def test(name: str, store: Path) -> None:
        with display.start_up(f"testing {name} on this machine, once"):
            doctor.test_apart(name, store)

    return test


@dataclass
class EnginePool:
    """Engines that are open, by name."""

    opened: dict[str, Any] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    settled: dict[str, Machine] = field(default_factory=dict)  # how two of them share the GPU
    bases: dict[str, str] = field(default_factory=dict)  # what each engine holds

    def close(self) -> None:
        """End every engine and give its memory back, for what else this process still has to do."""
        while self.opened:
            self.opened.popitem()[1].close()

    def release(self, names: set[str], residency: str) -> None:
        """These have nothing to do for a while: they give way, and end if there is room for one process only."""
        for name in names:
            if residency == "exit":
                self.opened.pop(name).close()
            else:
                self.opened[name].release()


@dataclass(kw_only=True)
class GameEngines:
    """The engines of one game; reuses engines that another game opened with the same settings."""

    recipe: Recipe
    model: Source
    choices: EngineChoices
    weights_dir: Path
    display: Display
    pool: EnginePool
    judge: Oracle | None = None

    def generator(self) -> Generator:
        return self._open(self.choices.generator)

    def learner(self) -> Learner:
        return self._open(self.choices.learner)

    def oracle(self) -> Oracle:
        """What judges; the engines give way to one that needs room."""
        pool = self.pool
        if self.judge is None:
            raise TypeError("this game has no oracle")
        signature = digest(self.judge.spec())
        if ORACLE in pool.opened and self._is_other(pool.opened[ORACLE], signature):
            pool.opened.pop(ORACLE).close()
        if not isinstance(self.judge, NoWeights):
            pool.release(pool.opened.keys() - {ORACLE}, self._settled().residency)
        pool.signatures[ORACLE] = signature
        return pool.opened.setdefault(ORACLE, self.judge)

    def _is_other(self, opened: Oracle, signature: str) -> bool:
        """An oracle without weights costs nothing to open, and a judge's address, key and counts are its own."""
        if isinstance(self.judge, NoWeights):
            return opened is not self.judge
        return self.pool.signatures.get(ORACLE) != signature

    def _open(self, name: str) -> Any:
        pool, signature = self.pool, self.signature(name)
        if name in pool.opened and pool.signatures[name] != signature:
            pool.opened.pop(name).close()
        base = digest([self.model.identity, self.recipe.model.quantization])
        for other in [other for other in pool.opened if pool.bases.get(other, base) != base]:
            pool.opened.pop(other).close()  # two bases are never in memory together
        machine = self._settled()
        pool.release(pool.opened.keys() - {name}, machine.residency)
        if name not in pool.opened:
            recipe, location = self.recipe, self.model.location
            if recipe.model.trust_remote_code:
                self.display.log(f"trust_remote_code is on: code that came with {location} runs here", "yellow")
            with self.display.start_up(f"loading {location}"):
                sized = self._sized(machine)
                pool.opened[name] = open_engine(name, sized, self.model, machine, self.weights_dir, self._warn)
            pool.signatures[name], pool.bases[name] = signature, base
            loaded = f"base {location} ({recipe.model.quantization}, {machine.dtype}) on {machine.device}, engine {name}"
            large = name == self.choices.learner and sized != recipe
            self.display.log(f"{loaded}, trains on up to {sized.training_tokens:,} tokens at once" if large else loaded)
        return pool.opened[name]

    def _warn(self, line: str) -> None:
        self.display.log(line, "yellow")

    def signature(self, name: str) -> str:
        """Everything that an engine is opened with: games of like signatures take it from each other."""
        r = self.recipe
        lengths = [r.data.max_prompt_length, r.data.max_completion_length, r.generation.max_new_tokens]
        opened_with: list[Any] = [self.model.identity, r.model.model_dump(), lengths, r.runtime.model_dump()]
        opened_with += [r.data.chat_template_kwargs, r.data.template_date, *ENGINES[name].opened_with(r), self._judging]
        return digest({"opened with": opened_with, "choices": [self.choices.generator, self.choices.learner]})

    @cached_property
    def _judging(self) -> Terms:
        """What an oracle takes of the GPU that two engines share and leave room on for it."""
        if self.judge is None or not self.choices.share_gpu:
            return {}
        return self.judge.memory(self.recipe, self.choices.machine.dtype)

    def _sized(self, machine: Machine) -> Recipe:
        """The recipe with passes as large as the learner's part of the GPU has room for, or as small as is good for a CPU."""
        try:
            shape = read_shape(self.model)
        except InputError:  # its memory cannot be planned
            return self.recipe
        if machine.device == "cpu":
            return with_small_passes(self.recipe, shape)
        return with_large_passes(self.recipe, shape, machine.dtype, learner_room(machine))

    def _settled(self) -> Machine:
        """The machine with each engine's part of it, if two share a GPU.

        Decided once: what is asleep in RAM later would else count against its own sleep.
        """
        choices, recipe = self.choices, self.recipe
        if not choices.share_gpu:
            return choices.machine
        name = digest([self.signature(choices.generator), self.signature(choices.learner)])
        if name not in self.pool.settled:
            machine, free = choices.machine, float(psutil.virtual_memory().available)
            both = ENGINES[choices.generator], ENGINES[choices.learner]
            self.pool.settled[name] = shared_gpu(recipe, read_shape(self.model), machine, *both, self._judging, free)
            residency = self.pool.settled[name].residency
            self.display.log(f"{choices.generator} and {choices.learner} share the GPU: residency {residency}")
        return self.pool.settled[name]
