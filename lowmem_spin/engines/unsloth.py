"""The Unsloth engine: scores and trains on an NVIDIA GPU, in a process of its own; what runs there is unsloth_worker.py."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import Tokens
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.base import Advance
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.worker import Resident, Worker

REMEDY = "lower training.per_device_train_batch_size or runtime.scoring_batch_size, or use training.engine hf"


class Unsloth:
    """A learner; see base.Learner."""

    def __init__(
        self, recipe: Recipe, model: Source, machine: Machine, weights_dir: Path, notify: Callable[[str], None]
    ) -> None:
        if machine.device != "cuda":
            raise InputError("training.engine: 'unsloth' needs an NVIDIA GPU and none is used here; use hf")

        def start(bounded: Recipe) -> Worker:
            environment = {
                "UNSLOTH_COMPILE_LOCATION": str(weights_dir.parent / "unsloth"),  # else it writes into the working directory
                "UNSLOTH_DISABLE_STATISTICS": "1",  # nothing is asked of a network
            }
            arguments = (bounded, model, machine)
            log = weights_dir.parent / "logs" / "unsloth.log"
            return Worker("unsloth", "lowmem_spin.engines.unsloth_worker:Kernels", arguments, environment, log, REMEDY)

        self.worker = Resident(start, recipe, notify)

    def score(self, adapter: Path | None, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """Summed log-probs of one batch of rows; see base.Learner."""
        return self.worker.call("score", adapter, rows)

    def train(
        self,
        init: Path | None,
        pairs: Sequence[Any],
        loss: dict[str, Any],
        settings: dict[str, Any],
        work: Path,
        advance: Advance,
    ) -> tuple[Path, list[dict[str, float]]]:
        """Train from `init`; see base.Learner."""
        return self.worker.call("train", init, pairs, loss, settings, work, report=advance)

    def release(self) -> None:
        """Empty the cache; when this returns, the memory is free."""
        self.worker.release("release")

    def close(self) -> None:
        """End the worker process."""
        self.worker.close()
