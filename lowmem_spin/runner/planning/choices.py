"""Where and with which engines a planned game would be played: on this machine, or on a GPU that is asked about."""

from pathlib import Path

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.pool import EngineChoices, choose_engines
from lowmem_spin.engines.registry import gpu_engine, installed
from lowmem_spin.runner.planning.calibration import WITHOUT_BFLOAT16
from lowmem_spin.runner.planning.total import card


def planned_choices(recipe: Recipe, store: Path, gpu: str | None) -> tuple[EngineChoices, list[str], list[str]]:
    """(the choices; notes on them; what is missing here to play with them).

    Args:
        recipe: the game.
        store: where this machine's engines were tested.
        gpu: a card that has every engine; None is this machine, or for a recipe that only a GPU can play, any card.
    """
    why = ""
    if gpu is None:
        try:
            choices = choose_engines(recipe, store, None)
        except InputError as error:
            why = str(error)
        else:
            names = dict.fromkeys((choices.generator, choices.learner))
            return choices, [], [f"{name} is not installed" for name in names if not installed(name)]
    generator = gpu_engine("generation").name if recipe.generation.engine == "auto" else recipe.generation.engine
    learner = gpu_engine("training").name if recipe.training.engine == "auto" else recipe.training.engine
    automatic = "float16" if gpu in WITHOUT_BFLOAT16 else "bfloat16"
    dtype = automatic if recipe.model.dtype == "auto" else recipe.model.dtype
    instead = f"planned for {gpu or 'a GPU'} with {generator} and {learner}, not for this machine"
    size, given = 0.0 if gpu is None else card(gpu)[1], recipe.runtime.vram_gb
    size = size if gpu is None or given is None else given * 1e9
    notes, missing = ([f"{instead} ({why})"], [why]) if why else ([instead], [])
    return EngineChoices(Machine("cuda", dtype, size, size), generator, learner), notes, missing
