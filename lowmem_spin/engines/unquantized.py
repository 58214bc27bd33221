"""A base that plays in 4 bits, with its own weights: whether it is measured beside the game, and what it would take to play so.

nf4 costs a small base much of what it knew, which a game then seems to win.
"""

from dataclasses import dataclass

import psutil

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.memory import WIDTH, Shape, peak, planned_shape
from lowmem_spin.engines.model_files import ModelFiles
from lowmem_spin.engines.pool import EngineChoices
from lowmem_spin.engines.registry import ENGINES

REAL = 50_000_000  # parameters: below, bases are toys whose 4 bits save nothing
SMALL = 1_000_000_000  # parameters: below, a game seldom needs 4 bits to fit
FREE = 0.8  # of a computer's memory, where there is no GPU


@dataclass(frozen=True)
class UnquantizedBase:
    """The unquantized base beside the one that plays."""

    recipe: Recipe | None = None  # what it is opened with; None: it is not measured
    why_not: str | None = None  # a line, if a person should know


def with_own_weights(recipe: Recipe) -> Recipe:
    """The same recipe on the unquantized base. Where two engines then have no room for each other, they take turns."""
    model = recipe.model.model_copy(update={"quantization": "none"})
    return recipe.model_copy(update={"model": model, "runtime": recipe.runtime.model_copy(update={"residency": "auto"})})


def measured_beside(recipe: Recipe, model: Source, choices: EngineChoices) -> UnquantizedBase:
    """What evaluation.compare_unquantized comes to with this base on this machine.

    Args:
        recipe: the game.
        model: its base; of one that a plan could not reach, as far as its published shape says.
        choices: where it is computed, and with which engines.
    """
    asked = recipe.evaluation.compare_unquantized
    if recipe.model.quantization == "none" or asked is False or _stored_in_four_bits(model):
        return UnquantizedBase()
    own = with_own_weights(recipe)
    if asked is True:
        return UnquantizedBase(own)
    try:
        shape = planned_shape(model)
    except InputError:  # of an unusual architecture
        return UnquantizedBase(None, _left_out("whether it fits in memory is not known"))
    if shape is None:
        return UnquantizedBase(None, _left_out("its size is not known yet"))
    if shape.body + shape.unquantized < REAL:
        return UnquantizedBase()
    needed, there = needed_memory(own, shape, choices), memory_for(choices)
    if there is not None and needed > there:
        return UnquantizedBase(None, _left_out(f"it needs {needed / 1e9:.1f} GB and {there / 1e9:.1f} GB are there"))
    return UnquantizedBase(own)


def _left_out(why: str) -> str:
    asked = "evaluation.compare_unquantized: true measures it all the same, false asks no more"
    return f"the unquantized base is not measured beside the 4-bit one: {why}; {asked}"


def needed_memory(recipe: Recipe, shape: Shape, choices: EngineChoices) -> float:
    """Bytes that measuring this recipe's base takes: the most of generating and scoring; nothing is trained."""
    dtype = choices.machine.dtype
    generator, learner = (ENGINES[name].memory(recipe, shape, dtype) for name in (choices.generator, choices.learner))
    terms = (generator["generate"], learner["score"])
    return max(peak(one) if choices.machine.device == "cuda" else sum(one.values()) for one in terms)


def memory_for(choices: EngineChoices) -> float | None:
    """Bytes that may be taken; None of a GPU that is only planned for."""
    if choices.machine.device == "cpu":
        return FREE * psutil.virtual_memory().total
    return choices.machine.limit or None


def planned(beside: UnquantizedBase, model: Source, choices: EngineChoices) -> list[str]:
    """A line for a plan: that the unquantized base is measured and what that takes, or why not; none where nobody asks."""
    if beside.recipe is None:
        return [] if beside.why_not is None else [beside.why_not]
    shape = planned_shape(model)
    room = "" if shape is None else f": that takes up to {_size(needed_memory(beside.recipe, shape, choices))}"
    return [f"the unquantized base is measured beside the 4-bit one, once for all games of this store{room}"]


def proposal(recipe: Recipe, model: Source, dtype: str) -> list[str]:
    """A line on what playing unquantized would take, of a small base that plays in 4 bits; of others none."""
    shape = planned_shape(model)
    if recipe.model.quantization == "none" or shape is None or _stored_in_four_bits(model):
        return []
    if shape.body + shape.unquantized >= SMALL:
        return []
    four, whole = (_size(shape.weights(form, WIDTH[dtype])) for form in ("nf4", "none"))
    return [f"model.quantization: none would take {whole} for the base's weights instead of {four}, and loses nothing to nf4"]


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _stored_in_four_bits(model: Source) -> bool:
    """Whether the checkpoint itself is quantized, so that there are no other weights."""
    if not model.resolved:
        return False
    files = ModelFiles.of(model)
    return bool(files.whole_config.get("quantization_config") or files.config.get("quantization_config"))
