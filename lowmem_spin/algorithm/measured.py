"""What measuring a policy asks for: evaluate_policy.py computes from this and nothing else, touches.py names its tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowmem_spin.algorithm.pair_sources import Sampling, judgement_spec
from lowmem_spin.algorithm.stages import Evaluate


@dataclass(frozen=True)
class MeasuredAnswers:
    """One policy's answers to held-out prompts."""

    policy: str
    greedy: bool  # to the rows that are scored; otherwise by sampling, to those for health


def measured_answers(stage: Evaluate, base: str, metric: bool) -> list[MeasuredAnswers]:
    """All that are needed, those by sampling first; greedy ones if there is a metric to score them by."""
    sampled = [MeasuredAnswers(policy, greedy=False) for policy in dict.fromkeys([stage.policy, base])]
    return [*sampled, *([MeasuredAnswers(stage.policy, greedy=True)] if metric else [])]


def measured_logps(stage: Evaluate, base: str) -> list[tuple[str, str]]:
    """(whose samples, who scores them) of all log-probs that drift is made of."""
    own, previous = stage.policy, stage.previous
    return list(dict.fromkeys([(own, own), (own, base), (own, previous), (base, base), (base, own)]))


def measured_against(stage: Evaluate, base: str) -> list[str]:
    """The policies whose samples an oracle compares this one's with."""
    return [policy for policy in dict.fromkeys([base, stage.previous]) if policy != stage.policy]


def samples_judged(policies: Sequence[str], sampling: Sampling, oracle: dict[str, Any]) -> dict[str, Any]:
    """What names the table of an oracle's preferences between one sample of each policy."""
    return judgement_spec([f"{sampling.key(policy)}/0" for policy in policies], oracle)
