"""What an iterate learns from: rows drawn, answers asked for, and the pairs they make. Plain values; nothing runs here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lowmem_spin.algorithm.source_hashes import VERSIONS, edited
from lowmem_spin.common.keys import digest

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
