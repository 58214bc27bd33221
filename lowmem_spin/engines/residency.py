"""How a generator, a learner and an oracle share one GPU."""

from dataclasses import dataclass, replace

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import CONTEXT, Shape, Terms, base_memory, idle_memory, idle_terms, peak
from lowmem_spin.engines.registry import Engine


@dataclass(frozen=True)
class Residency:
    """What the two do while the other works."""

    residency: str  # resident, sleep or exit
    generator_bytes: float  # what the generator is told to keep to; its context comes on top


def judging_terms(recipe: Recipe, shape: Shape, dtype: str, oracle: Terms) -> Terms:
    """Bytes of every term while an oracle judges and the base waits; empty if it takes nothing, or nobody knows."""
    return {**idle_terms(recipe, shape, dtype), **oracle} if oracle else {}


def plan_residency(
    recipe: Recipe,
    shape: Shape,
    dtype: str,
    generator: Engine,
    learner: Engine,
    oracle: Terms,
    limit: float,
    free_ram: float = float("inf"),
) -> Residency:
    """The residency that the recipe asks for or, for auto, the first that fits: resident, sleep, exit.

    `limit` bytes of the GPU may be used, and `free_ram` bytes of the host's memory are free: a sleeping generator's
    weights wait there. `oracle` is what one takes that judges beside a learner that waits.

    Raises:
        InputError: the generator does not fit.
    """
    stages = learner.memory(recipe, shape, dtype)
    judging = judging_terms(recipe, shape, dtype, oracle)
    working = max(peak(terms) for terms in (stages["score"], stages["train"], judging))
    waiting = idle_memory(recipe, shape, dtype, learner.dequantizes)
    needed = peak(generator.memory(recipe, shape, dtype)["generate"])
    weights = base_memory(recipe, shape, dtype, generator.dequantizes)
    if generator.preallocates:
        beside = limit - working
    else:
        idle = idle_memory(recipe, shape, dtype, generator.dequantizes)
        beside = limit - waiting if working + idle <= limit else 0.0
    room = {"resident": beside, "sleep": limit - waiting if generator.sleeps else 0.0, "exit": limit}
    asleep = working + CONTEXT <= limit and weights <= 0.8 * free_ram  # it keeps its context, and its weights in RAM
    fits = {name: room[name] >= needed and (asleep or name != "sleep") for name in room}
    asked = recipe.runtime.residency
    name = next((name for name in room if fits[name]), "exit") if asked == "auto" else asked
    if fits[name]:
        return Residency(name, needed - CONTEXT)
    if room[name] >= needed and weights > 0.8 * free_ram:
        raise InputError(
            f"runtime.residency: asleep, {weights / 1e9:.1f} GB of weights wait in RAM, of which {free_ram / 1e9:.1f} GB "
            "are free; set it to auto or exit"
        )
    raise InputError(
        f"runtime.residency: with {name}, {generator.name} needs {needed / 1e9:.1f} GB and {max(0.0, room[name]) / 1e9:.1f} "
        f"of {limit / 1e9:.1f} GB are left for it; set it to auto, lower runtime.generation_batch_size, "
        "or use one engine for both"
    )


def shared_gpu(
    recipe: Recipe,
    shape: Shape,
    machine: Machine,
    generator: Engine,
    learner: Engine,
    oracle: Terms,
    free_ram: float = float("inf"),
) -> Machine:
    """The machine with the generator's part of its GPU, and what either does while the other works; see plan_residency."""
    found = plan_residency(recipe, shape, machine.dtype, generator, learner, oracle, machine.limit, free_ram)
    return replace(machine, residency=found.residency, generator_share=found.generator_bytes / machine.total)


def learner_room(machine: Machine) -> float:
    """Bytes of the GPU that the learner may take while it works."""
    if not machine.generator_share or machine.residency == "exit":
        return machine.limit
    return machine.limit - CONTEXT - (0.0 if machine.sleeps else machine.generator_share * machine.total)
