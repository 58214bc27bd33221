"""Game health: held-out scores and drift of one policy, as a record and as a line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.common.display import readable
from lowmem_spin.common.keys import digest
from lowmem_spin.data.rows import Rows, overlap
from lowmem_spin.runner.task_metrics import TaskMetric


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error; `values` are per row, so that two policies can be compared in pairs."""

    values: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def error(self) -> float:
        return float(self.values.std(ddof=1) / len(self.values) ** 0.5) if len(self.values) > 1 else float("nan")

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference on the same rows."""
        return Estimate(self.values - other.values)


@dataclass(frozen=True)
class HeldOut:
    """Rows that no iterate learns from."""

    rows: Rows
    places: Sequence[int]  # where each of them is in its file
    scored: list[int]  # positions on which the data's answers are scored and greedy answers are compared
    health: list[int]  # positions that every policy answers by sampling
    exact_match: bool
    metric: TaskMetric | None = None  # what greedy answers are scored by instead
    oracle: dict[str, Any] | None = None  # spec of the oracle that judges the samples; None without one

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the rows' ids: what is measured on rows of the same one can be compared row by row."""
        return digest(self.rows.ids)


def notices(train: Rows, pool: Sequence[int], held: HeldOut, field: str) -> Iterator[str]:
    """What a person should know of rows that can be used: held-out rows that are learned from, or have no answers."""
    measured = sorted({*held.scored, *held.health})
    same, with_same_prompt = overlap(train, pool, held.rows, measured)
    if with_same_prompt:
        remedy = "give a separate evaluation.path" if field == "data.path" else "give evaluation.path other rows"
        learned = f"{same:,} of {len(measured):,} held-out rows are also training rows"
        if same == len(measured):
            learned = f"all {same:,} held-out rows are also training rows"
        more = f", and {with_same_prompt - same:,} more have the prompt of one" if with_same_prompt > same else ""
        yield f"{field}: warning: {learned}{more}, so held-out scores are too good; {remedy}"
    alone = len(held.health) - len(held.rows.answered(held.health))
    if alone:
        yield (
            f"{field}: {alone:,} of {len(held.health):,} held-out prompts have no answer: log-probs of the data's answers and "
            f"equality with them are {'measured on the others' if held.scored else 'not measured'}"
        )


@dataclass(frozen=True)
class Health:
    """What is known of one policy. KL in nats per completion, estimated on the drawing policy's own samples."""

    name: str
    role: Role
    iteration: int | None
    policy: str
    held_out: str  # HeldOut.fingerprint of the rows that it was measured on
    chosen_logp: Estimate | None  # of the data's answers, held out; None if there are prompts alone
    kl_to_base: Estimate  # KL(policy || base)
    kl_to_previous: Estimate  # KL(policy || previous policy)
    kl_from_base: Estimate  # KL(base || policy): how much of the base's behaviour has been given up
    length: Estimate  # of own samples, tokens
    truncated: Estimate  # share of own samples that reached max_new_tokens without an end
    engine_gap: Estimate  # |generator's - learner's log-prob| of own samples: far from 0, opponents are not the policy scored
    identical: Estimate | None  # share of own samples equal to the data's answer: it rises as the game is won
    exact_match: Estimate | None = None  # greedy
    task: tuple[str, Estimate] | None = None  # another metric's name and what it gave, greedy
    categories: dict[str, Estimate] = field(default_factory=dict)  # exact_match, or that other metric, by category
    win_rate_to_base: Estimate | None = None  # of own samples against the base's, by the game's oracle
    win_rate_to_previous: Estimate | None = None
    samples: list[dict[str, str]] = field(default_factory=list)

    @property
    def sampled_accuracy(self) -> Estimate | None:
        """Expected share of samples that equal the data's answer: mean of exp(chosen log-prob), no sampling noise."""
        return None if self.chosen_logp is None else Estimate(np.exp(self.chosen_logp.values))

    @property
    def estimates(self) -> dict[str, Estimate]:
        """All that are known, by name; exact_match/name is that of a category, of another metric by its name."""
        estimates = {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}
        if self.role is Role.UNQUANTIZED:  # measured against itself alone
            estimates = {name: value for name, value in estimates.items() if not name.startswith("kl_")}
        if self.sampled_accuracy is not None:
            estimates["sampled_accuracy"] = self.sampled_accuracy
        metric = "exact_match" if self.task is None else self.task[0]
        estimates |= {} if self.task is None else {metric: self.task[1]}
        return estimates | {f"{metric}/{name}": value for name, value in self.categories.items()}

    def numbers(self) -> dict[str, float]:
        """Every estimate by name, with its standard error beside it as name_se."""
        numbers = {name: value.mean for name, value in self.estimates.items()}
        return numbers | {f"{name}_se": value.error for name, value in self.estimates.items()}

    @property
    def scores(self) -> dict[str, Estimate]:
        """What policies are compared by, as far as it is known, the first choice first."""
        known, metric = self.estimates, "exact_match" if self.task is None else self.task[0]
        return {name: known[name] for name in (metric, "chosen_logp", "win_rate_to_base") if name in known}

    @property
    def score(self) -> Estimate:
        """What policies are compared by: the metric where there is one, else the log-prob of the data's answers; where the
        data has none, how often the base is beaten, which of the base itself is an even chance."""
        return next(iter(self.scores.values()), Estimate(np.full(len(self.length.values), 0.5)))

    @property
    def is_answered(self) -> bool:
        """Whether the score is of answers that the data has, and not of what an oracle prefers to the base's."""
        return self.exact_match is not None or self.chosen_logp is not None

    def record(self, base: "Health", unquantized: "Health | None" = None) -> dict[str, Any]:
        """One line of metrics.jsonl, with the number of rows behind each as name_n, and what the scores are of each row; `gain`
        is the score's difference from the base's on the same rows, and `gain_over_unquantized` from that of the base before it
        was put in 4 bits."""
        others = {"gain": base}
        if unquantized is not None and self.is_answered:
            others["gain_over_unquantized"] = unquantized
        elif self.role is Role.UNQUANTIZED:  # whose answers no oracle has compared
            others = {}
        gains: dict[str, float] = {}
        for name, other in others.items():
            gain = self.score.minus(other.score)
            gains |= {name: gain.mean, f"{name}_se": gain.error}
        names = {"name": self.name, "policy": self.policy, "role": self.role, "iteration": self.iteration}
        counts = {f"{name}_n": len(value.values) for name, value in self.estimates.items()}
        rows = {name: value.values.tolist() for name, value in self.scores.items()}
        samples = {"held_out": self.held_out, "rows": rows, "samples": self.samples}
        return {**names, **self.numbers(), **counts, **gains, **samples}


ALARM = 0.05  # nats per completion between the generator's and the learner's log-probs: worth a look above this


LOSS_UNITS = {
    **dict.fromkeys(("dpo", "sft", "slic"), "nats"),
    **dict.fromkeys(("sppo", "ipo"), "nats²"),
    "ipo_length_normalized": "nats² per token²",
}


def summary_line(health: Health, training: dict[str, Any] | None) -> str:
    """One line on one policy: how the last quarter of its training went (`training`: its manifest), and its drift.

    The drift of the chosen and the rejected side is from the reference, in nats per completion; with a loss that has none
    these are the log-probs themselves.
    """
    parts = []
    if training is not None:
        metrics = training["metrics"]
        last = metrics[-max(1, len(metrics) // 4) :]

        def late(name: str) -> float:
            known = [record[name] for record in last if record[name] is not None]
            return sum(known) / len(known) if known else float("nan")

        loss, unit = late("loss"), LOSS_UNITS.get(training["asked"]["loss"]["name"], "")
        parts.append(f"loss {readable(loss)}{' ' + unit if unit and abs(loss) >= 1000 else ''}")
        if "rewards/margins" in last[0]:
            scale = training["asked"]["loss"].get("beta", 1.0)
            drift = [late(f"rewards/{side}") / scale for side in ("chosen", "rejected")]
            parts.append(f"margin {late('rewards/margins'):+.2f}, chosen {drift[0]:+.2f}, rejected {drift[1]:+.2f}")
    if health.chosen_logp is not None:
        parts.append(f"held-out log-prob {health.chosen_logp.mean:.2f}")
    elif health.win_rate_to_base is not None:
        parts.append(f"wins over base {health.win_rate_to_base.mean:.1%}")
    if health.role is not Role.UNQUANTIZED:
        parts.append(f"KL to base {health.kl_to_base.mean:z.2f}, to previous {health.kl_to_previous.mean:z.2f}")
    parts.append(f"length {health.length.mean:.1f}, truncated {health.truncated.mean:.1%}")
    if health.engine_gap.mean > ALARM:
        parts.append(f"generator and learner differ by {health.engine_gap.mean:.3f} nats on own samples")
    return f"{health.name}: " + ", ".join(parts)
