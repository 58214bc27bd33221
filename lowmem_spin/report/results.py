"""What runs and sweeps have stored, read back and checked. No model, no drawing: what every report is made from.

RunResults                     one game's folder
SweepResults.configurations    a sweep's points, seeds gathered
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lowmem_spin.algorithm.roles import Part, Role
from lowmem_spin.config.loss_choices import own_in_words
from lowmem_spin.report.intervals import Value, difference, over
from lowmem_spin.report.measures import MATCH, TASKS, WINS
from lowmem_spin.runner.worker_record import WorkersFile


@dataclass(frozen=True)
class PolicyResults:
    """One line of metrics.jsonl: what is known of one policy."""

    name: str
    key: str
    part: Part
    values: dict[str, Value]  # by the names of runner.health.Health
    categories: dict[str, Value]  # the metric by category
    samples: list[dict[str, str]]  # prompt_id, answer; and prompt, data, finish_reason if they were kept
    sampler: dict[str, Any] | None = None  # how its opponents' answers were drawn, if from mixtures

    @property
    def score(self) -> Value:
        """What policies are compared by: the metric where there is one, else the log-prob of the data's answers, else, where
        the data has none, how often the base is beaten."""
        return self.values[self.score_names[0]]

    @property
    def score_names(self) -> list[str]:
        """What there is of the numbers that policies are compared by, the first choice first."""
        return [name for name in (*TASKS, "chosen_logp", WINS) if name in self.values]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One line of benchmarks.jsonl: one policy on one task."""

    name: str  # of the policy
    key: str
    suite: str  # leaderboard, mtbench, alpaca, tasks, diversity
    task: str
    fewshot: int | None
    limit: int | None  # documents that were taken; None is all of them
    count: int  # documents, or prompts
    own: bool  # a task of the user's
    versions: dict[str, str]
    values: dict[str, Value]  # by "metric,filter" as lm-evaluation-harness writes it
    gains: dict[str, Value]  # over the base, on the same documents
    asked: str = ""  # how, in words, of a task that can be asked in several ways
    sampling: str = ""  # of AlpacaEval's answers, in words


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """One game's folder."""

    folder: Path
    recipe: dict[str, Any]  # resolved
    recipe_text: str
    record: dict[str, Any]  # run.json
    policies: list[PolicyResults]
    trainings: dict[str, dict[str, Any]]  # manifests of the iterates by name, of those that were found
    missing: list[str]  # a line for each thing that a report will lack
    benchmarks: list[Benchmark]
    arena: dict[str, Any] | None = None  # as arena.json has it
    answer_tokens: int | None = None  # that 95% of the data's answers have at most, if the store has the rows
    finished: bool = True  # if not, `policies` are those that are measured, and `missing` begins with a line on it

    @property
    def base(self) -> PolicyResults:
        return self.policies[0]

    @property
    def played(self) -> list[PolicyResults]:
        """The base and the iterates."""
        return [policy for policy in self.policies if policy.part.role in (Role.BASE, Role.ITERATE)]

    @property
    def baselines(self) -> list[PolicyResults]:
        """What self-play is measured against, as far as it has the numbers that policies are compared by."""
        return [policy for policy in self.policies if policy not in self.played and policy.score_names]

    @property
    def unquantized(self) -> PolicyResults | None:
        """The base before its weights were put in 4 bits, if it was measured."""
        return next((policy for policy in self.baselines if policy.part.role is Role.UNQUANTIZED), None)

    @property
    def warm_start(self) -> PolicyResults | None:
        """The base as it was fine-tuned before the game, if it was."""
        return next((policy for policy in self.baselines if policy.part.role is Role.WARM_START), None)

    @property
    def fine_tuned(self) -> PolicyResults | None:
        """Plain fine-tuning on the same rows, if there was any."""
        return next((policy for policy in reversed(self.baselines) if policy.part.role is Role.BASELINE), None)

    @property
    def last(self) -> PolicyResults:
        return self.played[-1]

    @property
    def scores(self) -> list[str]:
        """Names of the numbers that say how good a policy is; policies are compared by the first."""
        return _scores([self.base])

    @property
    def seconds(self) -> dict[str, float]:
        """By kind of stage, over all runs of this game in this folder; empty if they were not recorded."""
        return self.record.get("seconds", {})


class PointStatus(BaseModel):
    """A sweep's point as sweep.json lists it."""

    model_config = ConfigDict(frozen=True)
    name: str
    values: dict[str, Any]  # of the axes, and the seed
    dir: str  # relative to the sweep's folder
    status: Literal["finished", "failed", "waiting"]
    error: str | None = None

    @property
    def seed(self) -> Any:
        return self.values.get("seed")

    @property
    def setting(self) -> dict[str, Any]:
        """Its place on the axes, whatever the seed."""
        return {name: value for name, value in self.values.items() if name != "seed"}


class SweepFile(BaseModel):
    """sweep.json."""

    recipe: str
    axes: dict[str, list[Any]]
    seeds: list[int]
    points: list[PointStatus]


@dataclass(frozen=True)
class Configuration:
    """The points of a sweep that differ in nothing but their seed."""

    setting: dict[str, Any]
    points: list[PointStatus]
    runs: dict[Any, RunResults]  # by seed, of the finished points

    @property
    def label(self) -> str:
        parts = [f"{name.rpartition('.')[2]} {plain_value(value)}" for name, value in self.setting.items()]
        return ", ".join(part.removeprefix("variant ").removeprefix("run ") for part in parts) or "the recipe"

    @property
    def iterates(self) -> int:
        """Policies that every run of it has, the base among them."""
        return min(len(run.played) for run in self.runs.values())

    def value(self, name: str, place: int = -1) -> Value:
        """A measured number of the base (place 0) or an iterate (1, 2, ...), over the seeds."""
        return over([run.played[place].values[name] for run in self.runs.values()])

    def best(self, name: str) -> int:
        """The place of the best policy by its mean over the seeds: 0 is the base."""
        return max(range(self.iterates), key=lambda place: self.value(name, place).mean)

    def against(self, other: "Configuration", name: str) -> Value:
        """How much higher its last iterate's number is, in pairs of runs with the same seed, and of rows where that is one."""
        return difference(*({seed: run.last.values[name] for seed, run in c.runs.items()} for c in (self, other)))

    def same_as(self, other: "Configuration") -> bool:
        """Whether both end in the same policies: what differs in the settings has made no difference to the game."""
        mine, theirs = ({run.last.key for run in configuration.runs.values()} for configuration in (self, other))
        return mine == theirs


@dataclass(frozen=True)
class SweepResults:
    """A folder of games that differ in the values of some recipe fields and in their seeds."""

    folder: Path
    file: SweepFile
    runs: dict[str, RunResults]  # of finished points, by name
    workers: WorkersFile | None = None  # what several computed, if there were such
    lost: str | None = None  # why that is not known

    @property
    def missing(self) -> list[str]:
        lost = [] if self.lost is None else [self.lost]
        return [*(f"{name}: {line}" for name, run in self.runs.items() for line in run.missing), *lost]

    @cached_property
    def configurations(self) -> list[Configuration]:
        """In the order of the sweep, those without any finished point too."""
        groups: dict[str, list[PointStatus]] = {}
        for point in self.file.points:
            groups.setdefault(json.dumps(point.setting, sort_keys=True), []).append(point)
        return [
            Configuration(points[0].setting, points, {p.seed: self.runs[p.name] for p in points if p.name in self.runs})
            for points in groups.values()
        ]

    @property
    def finished(self) -> list[Configuration]:
        """The configurations that have a finished point."""
        return [configuration for configuration in self.configurations if configuration.runs]

    @property
    def scores(self) -> list[str]:
        """Names of the numbers that say how good a policy is; configurations are compared by the first."""
        return _scores([policy for run in self.runs.values() for policy in run.policies])

    @property
    def score(self) -> str:
        return self.scores[0]

    def has(self, name: str) -> bool:
        """Whether this number was measured of all policies."""
        return all(name in policy.values for run in self.runs.values() for policy in run.policies)

    @property
    def best(self) -> Configuration:
        return max(self.finished, key=lambda configuration: configuration.value(self.score).mean)


def _scores(policies: Sequence[PolicyResults]) -> list[str]:
    for task in TASKS:
        if all(task in policy.values for policy in policies):
            return [task, *(["sampled_accuracy"] if task == MATCH else []), "chosen_logp"]  # log-probs are of whole answers
    return ["chosen_logp"] if all("chosen_logp" in policy.values for policy in policies) else [WINS]


def plain_value(value: Any) -> str:
    """A recipe's value as a person writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(plain_value, value))}]"
    return value if isinstance(value, str) else own_in_words(value) or json.dumps(value)


def recipe_field(recipe: dict[str, Any], name: str) -> Any:
    """A recipe's value by its dotted name, None where an older or newer version has no such field."""
    value: Any = recipe
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
