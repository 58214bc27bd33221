"""What an engine is asked for. A generator samples completions; a learner scores and trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lowmem_spin.algorithm.stages import Sampling
from lowmem_spin.common.files import Tokens


@dataclass(frozen=True)
class Request:
    """One completion to sample. Its noise depends on `seed` alone, never on the batch it is in."""

    adapter: Path | None  # None is the frozen base
    prompt: Tokens
    seed: int


@dataclass(frozen=True)
class Completion:
    """What a policy answered; `tokens` end with its end of turn when finish_reason is "stop"."""

    tokens: list[int]
    text: str
    finish_reason: str  # "stop" or "length"
    logp: float  # summed, of the untempered distribution, as the generator saw it


class Generator(Protocol):
    """Samples completions from any policy on the one base."""

    mixes_policies: bool
    """Whether a batch may have requests of several policies; else all of a batch have the same."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order."""
        ...

    def release(self) -> None:
        """Nothing to generate for a while."""
        ...


class Learner(Protocol):
    """Scores and trains adapters on the one base, with the same code and types for both."""

    def score(self, adapter: Path | None, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """Summed log-prob of each row's completion given its prompt; `adapter` None is the base."""
        ...

    def train(
        self,
        init: Path | None,
        pairs: Sequence[Any],
        loss: dict[str, Any],
        settings: dict[str, Any],
        work: Path,
        advance: Callable[[int], None],
    ) -> tuple[Path, list[dict[str, float]]]:
        """Train from `init`; the folder of the new adapter and the metrics of its logged steps.

        `advance` is told of the rows behind every optimiser step, and of 0 rows when a checkpoint has been written.
        """
        ...
