"""Whether a recipe's optimiser and schedule can be used on this machine, and a person's own loss at all: tried before a game,
not after hours of it."""

import logging
from collections.abc import Collection, Iterator
from typing import Any

from lowmem_spin.algorithm.settings import LATER_FIELDS, training_settings
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.own_function import OwnFunction

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # see loading.py; it comes in with transformers

# What needs no trial while its options are the defaults: torch, which takes seconds to import, is not asked.
SURE_OPTIMIZERS = ("adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor", "rmsprop", "sgd")
SURE_SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")

FEW = 20  # optimiser steps of which one is worth a line


def check_optimizer(recipe: Recipe, device: str) -> None:
    """Build the optimiser and the schedule of every training as its trainer will.

    Args:
        recipe: of a game.
        device: where it is trained, "cpu" or "cuda".

    Raises:
        InputError: they cannot be built; one line.
    """
    trainings = list(_trainings(recipe))
    if all(map(_is_sure, (settings for settings, _ in trainings))):
        return
    from lowmem_spin.engines.training.optimizer import check_names, try_optimizer

    check_names(recipe.training)
    for settings, steps in trainings:
        try_optimizer(settings, steps, device)


def check_loss(own: OwnFunction, options: dict[str, Any], reads: Collection[str], normalised: bool) -> None:
    """Try a person's own loss; see own_loss.try_loss."""
    from lowmem_spin.engines.training.own_loss import try_loss

    try_loss(own, options, reads, normalised)


def _is_sure(settings: dict[str, Any]) -> bool:
    named = settings["optim"] in SURE_OPTIMIZERS and settings["lr_scheduler_type"] in SURE_SCHEDULES
    return named and not settings.keys() & {*LATER_FIELDS} - {"disable_dropout", "warmup_from"}


def warmup_note(recipe: Recipe) -> list[str]:
    """A line on a training of few steps whose first one has learning rate 0."""
    if recipe.training.warmup_from != "zero" or recipe.training.lr_scheduler_type == "constant":
        return []
    few = [steps for settings, steps in _trainings(recipe) if steps <= FEW and round(steps * settings["warmup_ratio"])]
    return [
        f"training.warmup_from: zero, so the first of {steps} optimiser steps has learning rate 0 and changes nothing; with "
        "first_step it learns"
        for steps in few[:1]
    ]


def _trainings(recipe: Recipe) -> Iterator[tuple[dict[str, Any], int]]:
    """(settings, steps) of every iteration, and of a warm start."""
    from_recipe = [(training_settings(recipe.training, t), recipe.pairs_at(t)) for t in range(recipe.game.iterations)]
    if (warm := recipe.warm_start) is not None:
        from_recipe.append((from_recipe[0][0] | warm.model_dump(exclude={"rows"}), warm.rows))
    for settings, pairs in from_recipe:
        yield settings, -(-pairs // settings["batch_size"]) * settings["num_train_epochs"]
