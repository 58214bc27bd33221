"""What of a recipe's training decides an iterate, and so is a part of its key."""

from functools import cache
from typing import Any

from lowmem_spin.config.per_iteration import values_at
from lowmem_spin.config.training_config import Training

# Not in keys: they say how the work is split.
SPLIT = {"per_device_train_batch_size", "tokens_per_batch", "gradient_accumulation_steps", "gradient_checkpointing"}
MEMORY_KNOBS = {"engine", *SPLIT}
# Not in keys while they have their defaults: keys of before they existed do not have them.
LATER_FIELDS = (
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_kwargs",
    "disable_dropout",
    "warmup_from",
)


@cache
def _defaults() -> dict[str, Any]:
    return Training().model_dump()


def training_settings(training: Training, t: int) -> dict[str, Any]:
    """The fields that decide the result of iteration t, its own where a list has one for each, and the effective batch."""
    settings = values_at(training.model_dump(exclude=MEMORY_KNOBS), t)
    default = _defaults()
    unsaid = {name for name in LATER_FIELDS if settings[name] == default[name]}
    effective = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return {**{name: value for name, value in settings.items() if name not in unsaid}, "batch_size": effective}
