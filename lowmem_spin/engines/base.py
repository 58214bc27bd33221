"""What an engine is asked for. A generator samples completions; a learner scores and trains."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.files import Tokens
from lowmem_spin.engines.training.pair import Pair


class Advance(Protocol):
    """Told of a training as it goes on."""

    def __call__(
        self, rows: int, loss: float | None = None, resumed: bool = False, record: Mapping[str, float] | None = None, /
    ) -> None:
        """So many rows were learned from, by an earlier run if `resumed`; 0 of them: a checkpoint was written.

        `loss` is the last one that is known. A `record` of metrics comes by itself, as soon as it is there, with 0 rows; a
        resumed training gives those of the earlier run first.
        """
        ...


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
    batches_at_once: int
    """How many batches it is best asked for together: more than one if a row that ends makes room for the next."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order; so many batches of them at most."""
        ...

    def release(self) -> None:
        """Nothing to generate for a while."""
        ...


@runtime_checkable
class MixtureSampler(Generator, Protocol):
    """A generator that also says what policies think of every next token, which mixtures of them are sampled from."""

    ends: list[int]
    """Tokens that end a completion."""

    def next_token_logps(self, policies: Sequence[Path | None]) -> Callable[[Sequence[tuple[int, ...]]], list[Any]]:
        """A function of states, a prompt and what of its completion there is: for each policy a tensor (states, vocabulary)."""
        ...

    def completion(self, tokens: list[int], logp: float) -> Completion:
        """What was drawn, up to the token that ends it, as text too."""
        ...

    def playing(self, adapter: Path | None) -> AbstractContextManager[Any]:
        """The model acting as a policy, with nothing random in it."""
        ...

    def sample(self, policy: Any, draws: Sequence[tuple[Tokens, int]], sampling: Sampling) -> list[Completion]:
        """One batch of completions of the model as it stands, a (prompt, seed) for each."""
        ...


def sampling_mixtures(generator: Generator) -> MixtureSampler:
    """The same generator, which the choice of engines made sure can do it.

    Raises:
        TypeError: it cannot.
    """
    if not isinstance(generator, MixtureSampler):
        raise TypeError(f"{type(generator).__name__} cannot sample mixtures")
    return generator


class Learner(Protocol):
    """Scores and trains adapters on the one base, with the same code and types for both."""

    def score(self, adapter: Path | None, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """Summed log-prob of each row's completion given its prompt; `adapter` None is the base.

        Rows of one prompt are best asked for together: it is read once for all of them.
        """
        ...

    def train(
        self,
        init: Path | None,
        pairs: Sequence[Pair],
        loss: dict[str, Any],
        settings: dict[str, Any],
        work: Path,
        advance: Advance,
    ) -> tuple[Path, list[dict[str, float]]]:
        """Train from `init`; the folder of the new adapter and the metrics of its logged steps.

        It goes on from the last finished checkpoint in `work`; damaged ones have to be moved away before, see checkpoints.py.
        `advance` is told of every optimiser step and every checkpoint.
        """
        ...
