"""What games are made of: rows drawn, answers asked for, and the stages that are played. Plain values; nothing runs here.

A policy is a string: its key. The base has one, and an iterate's is the key of the training that makes it,
so the policies of a whole game are known before the first token is generated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.source_hashes import edited
from lowmem_spin.common.keys import digest

# Bumped by hand when a stage of this kind would compute something else from the same inputs.
VERSIONS = {"data": 2, "generate": 1, "judge": 1, "score": 1, "train": 1, "average": 1, "amortise": 1}

Mixture = dict[str, float]
"""{policy: weight}: no policy twice, no zero weight, weights summing to 1, newest policy first."""


def shares(count: int, weights: Mixture) -> list[tuple[str, range]]:
    """Cut `count` places into one contiguous range per policy, exact to the largest remainder.

    Newest policy first: what it answers with a history of 2 is then a part of what it answers with 1.
    """
    exact = [count * weight for weight in weights.values()]
    sizes = [int(size + 1e-9) for size in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda index: (sizes[index] - exact[index], index))
    for index in by_remainder[: count - sum(sizes)]:
        sizes[index] += 1
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [(policy, range(a, a + size)) for policy, a, size in zip(weights, starts, sizes, strict=True) if size]


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
class Draw:
    """`prompts` rows of the data, a pure function of (seed, round) and of the rows themselves."""

    data: str
    seed: int
    round: int | None  # None: every iteration takes rows of one and the same order
    prompts: int
    start: int = 0  # rows of the order that are passed over

    def spec(self) -> dict[str, Any]:
        passed = {"start": self.start} if self.start else {}
        return {"data": self.data, "seed": self.seed, "round": self.round, "prompts": self.prompts, **passed}


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: everything but the policy and the prompt."""

    temperature: float
    top_p: float
    top_k: int | None
    max_new_tokens: int
    seed: int
    generator: dict[str, Any]
    mixture: dict[str, Any] | None = None  # instead of a policy, its mixture with the base: sampler, alpha, base, proposals

    def spec(self, policy: str) -> dict[str, Any]:
        """What names the table of this policy's completions; its digest is the table's key."""
        greedy = self.temperature == 0
        settings = {
            "temperature": self.temperature,
            "top_p": 1.0 if greedy else self.top_p,
            "top_k": None if greedy else self.top_k,
            "max_new_tokens": self.max_new_tokens,
            "seed": 0 if greedy else self.seed,
        }
        identity = {"policy": policy, "sampling": settings, "generator": self.generator}
        if self.mixture is not None and self.mixes(policy):
            identity |= {"mixture": self.mixture, **edited(f"sampler {self.mixture['sampler']['name']}")}
        return {"kind": "generate", "version": VERSIONS["generate"], **identity}

    @cached_property
    def _keys(self) -> dict[str, str]:
        return {}

    def key(self, policy: str) -> str:
        """Key of the table of this policy's completions."""
        if policy not in self._keys:
            self._keys[policy] = digest(self.spec(policy))
        return self._keys[policy]

    def mixes(self, policy: str) -> bool:
        """Whether it is not the policy that answers. The base mixed with itself is the base."""
        return self.mixture is not None and policy != self.mixture["base"]


def logps_spec(policy: str, learner: dict[str, Any]) -> dict[str, Any]:
    """What names the table of a policy's log-probs, as the learner computes them."""
    return {"kind": "score", "version": VERSIONS["score"], "policy": policy, "learner": learner}


def judgement_spec(answers: Sequence[str], oracle: dict[str, Any]) -> dict[str, Any]:
    """What names the table of an oracle's preferences between answers to one prompt, known by their tables and numbers."""
    return {"kind": "judge", "version": VERSIONS["judge"], "answers": list(answers), "oracle": oracle}


@dataclass(frozen=True)
class OpponentPairs:
    """The pairs of one iteration: the data's answer against an opponent's, prompt by prompt."""

    draw: Draw
    opponents: Mixture
    concatenate: bool  # every opponent answers every prompt, instead of each prompt having one opponent
    sampling: Sampling

    samples = 1  # answers of an opponent to a prompt

    def assign(self) -> list[tuple[str, range]]:
        """Which places of the draw each opponent answers."""
        return self._assigned

    @cached_property
    def _assigned(self) -> list[tuple[str, range]]:
        if self.concatenate:
            return [(policy, range(self.draw.prompts)) for policy in self.opponents]
        return shares(self.draw.prompts, self.opponents)

    @property
    def rows(self) -> int:
        return sum(len(places) for _, places in self.assign())

    def spec(self) -> dict[str, Any]:
        # Every opponent answers everything when concatenated: their weights mean nothing then.
        tables = {self.sampling.key(p): 1.0 if self.concatenate else w for p, w in self.opponents.items()}
        return {"draw": self.draw.spec(), "opponents": tables, "concatenate": self.concatenate}


@dataclass(frozen=True)
class JudgedSamples:
    """Several answers of one policy to each prompt, judged against each other; the best meets the worst (SPPO)."""

    draw: Draw
    policy: str
    samples: int
    sampling: Sampling
    oracle: dict[str, Any]  # spec of what judges
    win_rates: str  # pairwise or aggregated; see preferences.win_rates

    def assign(self) -> list[tuple[str, range]]:
        """Which places of the draw each policy answers."""
        return [(self.policy, range(self.draw.prompts))]

    @property
    def rows(self) -> int:
        return self.draw.prompts

    @property
    def judged(self) -> dict[str, Any]:
        """What names the table of judgements."""
        table = self.sampling.key(self.policy)
        return judgement_spec([f"{table}/{sample}" for sample in range(self.samples)], self.oracle)

    def spec(self) -> dict[str, Any]:
        judged = {"draw": self.draw.spec(), "judged": digest(self.judged), "win_rates": self.win_rates}
        return {**judged, **edited("win rates")}


@dataclass(frozen=True)
class DatasetPairs:
    """The data's better answer against the data's worse one: no policy answers anything."""

    draw: Draw

    samples = 0

    def assign(self) -> list[tuple[str, range]]:
        """Nobody answers."""
        return []

    @property
    def rows(self) -> int:
        return self.draw.prompts

    def spec(self) -> dict[str, Any]:
        return {"draw": self.draw.spec(), "given": True}


PairSource = OpponentPairs | JudgedSamples | DatasetPairs
"""What one iterate learns from: for each prompt two answers, one to become likelier than the other."""


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
