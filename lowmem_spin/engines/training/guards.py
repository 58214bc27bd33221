"""What is refused while computing: numbers that are not finite, batches that do not fit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lowmem_spin.common.errors import InputError
from lowmem_spin.engines.machine import Machine


def finite(logps: torch.Tensor, machine: Machine) -> list[float]:
    """Refuse to keep what is not a number, as an overflow in half precision gives."""
    if not torch.isfinite(logps).all():
        remedy = "use another dtype"
        if machine.dtype == "float32":  # which no other dtype helps
            remedy = "fetch it again if its weights are damaged, or lower training.learning_rate if a training diverged"
        raise InputError(f"model.dtype: {machine.dtype} gives log-probs that are not finite on this model; {remedy}")
    return logps.tolist()


class BatchTooLargeError(InputError, MemoryError):
    """A batch that does not fit in memory."""


@contextmanager
def naming_memory(field: str, size: int | str) -> Iterator[None]:
    """A GPU that is too small for a batch, in one line that names the setting which bounds it."""
    try:
        yield
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise BatchTooLargeError(
            f"{field}: a batch of {size} does not fit in this GPU's memory; lower it and run again to continue"
        ) from None


@contextmanager
def naming_model(field: str, name: str) -> Iterator[None]:
    """A GPU without room for a model's weights, in one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise InputError(
            f"{field}: {name!r} does not fit in what is free of this GPU's memory; take a smaller one, or end what else runs "
            "on the GPU"
        ) from None
