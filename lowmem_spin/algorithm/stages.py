"""The stages that games are made of. Plain values; nothing runs here.

A policy is a string: its key. The base has one, and an iterate's is the key of the training that makes it,
so the policies of a whole game are known before the first token is generated.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lowmem_spin.algorithm.pair_sources import Draw, JudgedSamples, Mixture, OpponentPairs, PairSource, Sampling, logps_spec
from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.source_hashes import VERSIONS, edited
from lowmem_spin.common.keys import digest


@dataclass(frozen=True)
class Inputs:
    """What the game is played with, resolved on this machine: keys and identities, no paths."""

    base: str  # key of the base policy
    data: str  # key of the prepared training rows
    generator: dict[str, Any]  # engine, weight form and dtype of generation
    learner: dict[str, Any]  # engine and dtype of scoring and training
    oracle: dict[str, Any] | None = None  # spec of the oracle that judges the samples; None without one
    # What functions of a person's own are and have said, if the recipe names any; see own_functions.py.
    loss: dict[str, Any] | None = None  # its source's hash, and what it reads of a pair beside the policy's log-probs
    opponents: list[Mixture] | None = None  # of each iteration, by name
    reference: list[Mixture] | None = None
    unquantized: dict[str, Any] | None = None  # base, generator and learner of the unquantized base, if it is measured too

    def measuring(self, stage: "Evaluate") -> "Inputs":
        """What a policy is measured with: the unquantized base with its own key and engines."""
        if stage.role is not Role.UNQUANTIZED or self.unquantized is None:
            return self
        return replace(self, **self.unquantized, unquantized=None)


@dataclass(frozen=True)
class Average:
    """One adapter whose update is the weighted sum of several policies' updates; what is left of 1 is the frozen base's."""

    name: str
    policies: Mixture
    rank: int | None  # of the best approximation; None is exact

    @cached_property
    def policy(self) -> str:
        """Key of this average, and so of the policy that it makes."""
        return digest(self.spec())

    def spec(self) -> dict[str, Any]:
        """Everything that decides the result."""
        asked = {"policies": self.policies, "rank": self.rank, **edited("reference ema")}
        return {"kind": "average", "version": VERSIONS["average"], **asked}


@dataclass(frozen=True)
class TrainSampler:
    """One adapter that has learned to answer as the mixture of `previous` and the base (GFlowNet fine-tuning)."""

    name: str
    draw: Draw
    previous: str
    base: str
    alpha: float
    sampling: Sampling
    settings: dict[str, Any]

    @cached_property
    def policy(self) -> str:
        """Key of this training, and so of the policy that it makes."""
        return digest(self.spec())

    @property
    def passes(self) -> int:
        """How often every prompt is answered and learned from."""
        return self.settings["epochs"] * self.settings.get("samples", 1)

    def spec(self) -> dict[str, Any]:
        """Everything that decides the result."""
        mixed = {"previous": self.previous, "base": self.base, "alpha": self.alpha, "longest": self.sampling.max_new_tokens}
        asked = {"draw": self.draw.spec(), "mixture": mixed, "settings": self.settings, **edited("sampler gflownet")}
        return {"kind": "amortise", "version": VERSIONS["amortise"], **asked}


@dataclass(frozen=True)
class Generate:
    """All who answer in an iteration answer their prompts."""

    pairs: OpponentPairs | JudgedSamples


@dataclass(frozen=True)
class Judge:
    """The oracle compares the answers to each prompt."""

    pairs: JudgedSamples


@dataclass(frozen=True)
class Score:
    """A policy gives the log-probs of both sides of every pair."""

    pairs: PairSource
    policy: str
    every: bool = False  # of all judged answers, not only of the best and the worst


@dataclass(frozen=True, kw_only=True)
class Train:
    """One iterate: from `init`, tell the data's answers from the opponents', relative to the reference."""

    name: str  # for people
    role: Role
    iteration: int | None
    pairs: PairSource
    reference: Mixture
    init: str
    loss: dict[str, Any]
    settings: dict[str, Any]  # LoRA, optimiser, schedule, effective batch, seed, learner
    combine: str = "geometric"  # how the reference's policies become one; see references.py
    normalise: bool = False  # make the mixture a distribution, its constant estimated from the judged answers
    penalty_reference: str | None = None  # whose log-probs the loss's penalties read: the base's

    @cached_property
    def policy(self) -> str:
        """Key of this training, and so of the policy that it makes."""
        return digest(self.spec())

    def spec(self) -> dict[str, Any]:
        """Everything that decides the result, inputs by their keys."""
        pairs = self.pairs.spec()
        if self.loss["name"] == "sft":  # no opponents: only the data's answers, as often as they occur in pairs
            pairs = {"draw": pairs["draw"], "repeats": self.pairs.rows // self.pairs.draw.prompts}
        tables = {digest(logps_spec(policy, self.settings["learner"])): w for policy, w in self.reference.items()}
        asked = {"pairs": pairs, "reference": tables, "init": self.init, "loss": self.loss}
        if self.combine != "geometric" and len(tables) > 1:  # one policy is itself, however it is combined
            asked["combine"] = self.combine
        if self.normalise:
            asked["normalise"] = self.normalise
        if self.penalty_reference is not None:
            asked["held_to"] = digest(logps_spec(self.penalty_reference, self.settings["learner"]))
        return {"kind": "train", "version": VERSIONS["train"], **asked, "settings": self.settings, **edited(*self._sources())}

    def _sources(self) -> list[str]:
        """The names in source_hashes.py of what it computes with."""
        loss = [] if self.loss["name"] in ("sft", "function") else [f"loss {self.loss['name']}"]  # an own one has its hash
        return ["trainer", "row order", *loss, *([f"reference {self.combine}"] if self.reference else [])]


@dataclass(frozen=True)
class Evaluate:
    """Held-out scores and health of one policy; `previous` is what its drift is measured from."""

    name: str
    role: Role
    iteration: int | None
    policy: str
    previous: str


Stage = Average | TrainSampler | Generate | Judge | Score | Train | Evaluate


def is_baseline(stage: Stage) -> bool:
    """Whether a stage belongs to what the game is compared with, and not to the game."""
    return isinstance(stage, Train | Evaluate) and stage.role is Role.BASELINE
