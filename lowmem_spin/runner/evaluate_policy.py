"""Measures one policy: what the store lacks is generated and scored, the rest is arithmetic on its tables."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowmem_spin.algorithm.measured import MeasuredAnswers, measured_against, measured_answers, measured_logps, samples_judged
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.preferences import Comparison
from lowmem_spin.algorithm.stages import Evaluate
from lowmem_spin.data.formats import conversation_text
from lowmem_spin.data.rows import Rows
from lowmem_spin.runner.health import Estimate, Health, HeldOut
from lowmem_spin.store.memo import Tables
from lowmem_spin.store.rows import Answer, Compared, Prompt, Scored

SHOWN = 8  # held-out prompts that a report shows with every policy's answer


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What a policy is measured by."""

    tables: Tables  # of the base that it is an adapter on
    stage: Evaluate
    held: HeldOut
    sampling: Sampling
    greedy: Sampling  # where there is a right answer

    @property
    def wanted(self) -> list[MeasuredAnswers]:
        metric = self.held.exact_match or self.held.metric is not None
        return measured_answers(self.stage, self.tables.base, metric)

    def name(self, policy: str) -> str:
        """What people call it."""
        names = {self.stage.previous: "the previous policy", self.tables.base: "base", self.stage.policy: self.stage.name}
        return names[policy]

    def prompts(self, positions: Sequence[int]) -> list[Prompt]:
        return [Prompt(self.held.rows.ids[position], self.held.rows.prompt(position)) for position in positions]

    def answers(self, wanted: MeasuredAnswers) -> list[Answer]:
        """Those that the store has, or generated now."""
        positions, how, what = self.held.health, self.sampling, "samples"
        if wanted.greedy:
            positions, how, what = self.held.scored, self.greedy, "held-out answers"
        label = f"{what} by {self.name(wanted.policy)}"
        (answers,) = self.tables.answers([(wanted.policy, self.prompts(positions))], how, label)
        return answers

    def logps(self, answers: Sequence[Answer], drawn_from: str, by: str) -> np.ndarray:
        """What a policy gives another's samples: nats per completion."""
        scored = [
            Scored(prompt.id, prompt.tokens, answer.name, answer.tokens)
            for prompt, answer in zip(self.prompts(self.held.health), answers, strict=True)
        ]
        return self.tables.logps(by, scored, f"samples of {self.name(drawn_from)} by {self.name(by)}")


def sample_policy(measuring: Measuring) -> None:
    """Generate all that `evaluate_policy` will ask the policy for, so that it then only scores."""
    for wanted in measuring.wanted:
        if wanted.policy == measuring.stage.policy:
            measuring.answers(wanted)


def evaluate_policy(measuring: Measuring) -> Health:
    """Measure one policy, generating and scoring only what the store lacks."""
    tables, stage, held = measuring.tables, measuring.stage, measuring.held
    rows, policy, base = held.rows, stage.policy, tables.base
    answers = {(wanted.policy, wanted.greedy): measuring.answers(wanted) for wanted in measuring.wanted}
    own, greedy = answers[policy, False], answers.get((policy, True))
    chosen = [Scored(rows.ids[position], rows.prompt(position), "chosen", rows.chosen(position)) for position in held.scored]
    answered = set(rows.answered(held.health))
    equal = [
        answer.text == rows.completions[position]
        for position, answer in zip(held.health, own, strict=True)
        if position in answered
    ]
    labels = [rows.categories[position] for position in held.scored]
    scored = None if greedy is None else _by_metric(held, greedy)
    chosen_logp = Estimate(tables.logps(policy, chosen, f"held-out data by {stage.name}")) if chosen else None
    logps = {
        (drawn_from, by): measuring.logps(answers[drawn_from, False], drawn_from, by)
        for drawn_from, by in measured_logps(stage, base)
    }
    wins = {other: _wins(measuring, other) for other in measured_against(stage, base)}
    return Health(
        name=stage.name,
        role=stage.role,
        iteration=stage.iteration,
        policy=policy,
        held_out=held.fingerprint,
        chosen_logp=chosen_logp,
        kl_to_base=Estimate(logps[policy, policy] - logps[policy, base]),
        kl_to_previous=Estimate(logps[policy, policy] - logps[policy, stage.previous]),
        kl_from_base=Estimate(logps[base, base] - logps[base, policy]),
        length=Estimate(np.array([len(answer.tokens) for answer in own], float)),
        truncated=Estimate(np.array([answer.finish_reason == "length" for answer in own], float)),
        engine_gap=Estimate(np.abs(np.array([answer.logp for answer in own]) - logps[policy, policy])),
        identical=Estimate(np.array(equal, float)) if equal else None,
        exact_match=scored if held.metric is None else None,
        task=(held.metric.name, scored) if held.metric is not None and scored is not None else None,
        categories={} if scored is None else _by_category(scored, labels),
        win_rate_to_base=wins.get(base),
        win_rate_to_previous=wins.get(stage.previous),
        samples=[_sample(rows, position, answer) for position, answer in zip(held.health[:SHOWN], own, strict=False)],
    )


def _wins(measuring: Measuring, against: str) -> Estimate | None:
    """How often the policy's samples are preferred to another's, if there is an oracle."""
    tables, stage, held = measuring.tables, measuring.stage, measuring.held
    if held.oracle is None:
        return None
    rows, prompts, both = held.rows, measuring.prompts(held.health), [stage.policy, against]
    answers = tables.answers([(policy, prompts) for policy in both], measuring.sampling, f"samples by {stage.name}")
    compared = [
        Compared(
            rows.ids[position],
            Comparison(rows.messages(position), [answer.text for answer in some], rows.completions[position]),
            [answer.tokens for answer in some],
        )
        for position, some in zip(held.health, zip(*answers, strict=True), strict=True)
    ]
    spec = samples_judged(both, measuring.sampling, held.oracle)
    return Estimate(np.array([matrix[0, 1] for matrix in tables.preferences(spec, compared, f"samples of {stage.name}")]))


def _sample(rows: Rows, position: int, answer: Answer) -> dict[str, str]:
    """One of the policy's own answers beside the data's."""
    prompt = {"prompt_id": rows.ids[position], "prompt": conversation_text(rows.messages(position))}
    return {**prompt, "data": rows.completions[position], "answer": answer.text, "finish_reason": answer.finish_reason}


def _by_metric(held: HeldOut, answers: Sequence[Answer]) -> Estimate:
    """Greedy answers by the metric, or by exact match; a truncated one counts 0."""
    right = []
    for position, answer in zip(held.scored, answers, strict=True):
        expected = held.rows.completions[position]
        if answer.finish_reason != "stop":
            right.append(0.0)
        elif held.metric is None:
            right.append(float(answer.text == expected))
        else:
            right.append(held.metric.score(conversation_text(held.rows.messages(position)), answer.text, expected))
    return Estimate(np.array(right, float))


def _by_category(match: Estimate, labels: Sequence[str | None]) -> dict[str, Estimate]:
    names = sorted({label for label in labels if label is not None})
    return {name: Estimate(match.values[np.array([label == name for label in labels])]) for name in names}
