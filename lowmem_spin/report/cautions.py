"""What a person should know before believing a game's numbers: a line for each sign that something else was learned.

All of it is read from what games have stored, so that earlier ones are looked at too. What their last tokens have won is known
of trainings since that is recorded.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lowmem_spin.report.intervals import Value, difference
from lowmem_spin.report.results import PolicyResults, RunResults, SweepResults, recipe_field

CUT = 0.3  # share of own samples that are truncated: above it, the end is what tells a good answer from a bad one
WON = 0.99  # of the pairs told apart: at it, nothing is left to learn
ALONE, GROWN = 0.8, 1.0  # the part of a margin that last tokens have won, and how many nats the margin has to have grown
EARLY, AT_LEAST = 0.1, 3  # the part of a training, and how many of its steps, that are its beginning
# Nats per answer: choosing the best of n of the base's answers comes to log n - (n - 1)/n at most, which is 10 for 60,000.
FAR = 10.0
WASTE = 2.0  # a policy that answers as the data is as far from the base as its log-prob of the data is above the base's


@dataclass(frozen=True)
class Caution:
    """One line on a game; the same `kind` in several games is the same trouble."""

    kind: str
    line: str


def caution_lines(results: RunResults | SweepResults) -> list[str]:
    """The lines on a run, or on a sweep's games, of which the first with each kind of trouble stands for the others."""
    if isinstance(results, RunResults):
        return [caution.line for caution in cautions(results)]
    found: dict[str, list[tuple[str, str]]] = {}
    for name, run in results.runs.items():
        for caution in cautions(run):
            found.setdefault(caution.kind, []).append((name, caution.line))
    return _of_one_seed(results) + [
        f"{games[0][0]}: {games[0][1]}" + (f" So in {len(games)} of {len(results.runs)} games." if len(games) > 1 else "")
        for games in found.values()
    ]


def _of_one_seed(sweep: SweepResults) -> list[str]:
    """That rows tell two policies apart, and only seeds the settings that made them."""
    if len(sweep.finished) < 2 or all(len(configuration.runs) > 1 for configuration in sweep.finished):
        return []
    said = "Where there is one seed, intervals are over its held-out rows: they tell these policies apart, not their settings."
    return [f"{said} Another seed may change the order; play three or more."]


def cautions(run: RunResults) -> Iterator[Caution]:
    """What of a run's numbers may mean something else than it seems."""
    looked_for = {"cut": _cut, "won": _won_early, "end": _end_alone, "far": _far, "fallen": _fallen}
    for kind, look in looked_for.items():
        if (line := look(run)) is not None:
            yield Caution(kind, line)


def _cut(run: RunResults) -> str | None:
    """Whose samples are truncated at max_new_tokens, and the length that would do."""
    opponents = [run.warm_start or run.base, *run.played[1:]]  # a base that was fine-tuned first has no part in the game
    shares = {policy.name: policy.values["truncated"].mean for policy in opponents}
    cut = {name: share for name, share in shares.items() if share > CUT}
    if not cut:
        return None
    limit, data = recipe_field(run.recipe, "generation.max_new_tokens"), run.answer_tokens
    if data is None:
        remedy = "raise it until few are"
    elif isinstance(limit, int) and data > limit:
        remedy = f"95% of the data's answers have up to {data} tokens: set it to {data}"
    else:
        remedy = f"95% of the data's answers have up to {data} tokens: so it is not too short, but these policies do not end; "
        remedy += "a warm_start teaches that" if run.warm_start is None else "a longer warm_start teaches that"
    said = ", ".join(f"{share:.0%} of {name}'s" for name, share in cut.items())
    truncated = f"Samples are truncated at generation.max_new_tokens {limit} ({said})"
    return f"{truncated}, and a missing end alone may win the game; {remedy}."


def _won_early(run: RunResults) -> str | None:
    """From which step on an iterate's training told all pairs apart, if that was at its beginning."""
    for name, manifest in run.trainings.items():
        records = [record for record in manifest["metrics"] if record.get("rewards/accuracies") is not None]
        first = _told_apart_from(records)
        if first is None:
            continue
        last = manifest["metrics"][-1]["step"]
        if first <= max(AT_LEAST, math.ceil(EARLY * last)) and last >= 2 * AT_LEAST:
            easy = "too easy to be about what the answers say"
            look = "Look at the samples: does a missing end, a length or a format give them away?"
            return f"{name} tells all pairs apart from step {first:g} of {last:g} on (reward accuracy 1): {easy}. {look}"
    return None


def _end_alone(run: RunResults) -> str | None:
    """The iterate whose margin between chosen and rejected answers is, nearly all of it, that of their last tokens.

    The margin is against the reference; the reference's own last tokens are not known, but they stay what they are, and so
    what the training has changed is compared.
    """
    for name, manifest in run.trainings.items():
        records = [record for record in manifest["metrics"] if record.get("logps/chosen_last") is not None]
        if len(records) < 2:
            continue
        scale = manifest["asked"]["loss"].get("beta", 1.0)
        begin, end = records[: math.ceil(EARLY * len(records))], records[-max(1, len(records) // 4) :]
        whole = (_mean(end, "rewards/margins") - _mean(begin, "rewards/margins")) / scale
        last = _last_margin(end) - _last_margin(begin)
        if whole >= GROWN and last >= ALONE * whole:
            grew = f"In {name}'s training the margin between chosen and rejected answers grew by {whole:.1f} nats"
            look = "see whether rejected ones are truncated, or end otherwise"
            return f"{grew}, and that between their last tokens alone by {last:.1f}: what they say is hardly learned; {look}."
    return None


def _last_margin(records: Sequence[dict[str, Any]]) -> float:
    return _mean(records, "logps/chosen_last") - _mean(records, "logps/rejected_last")


def _mean(records: Sequence[dict[str, Any]], name: str) -> float:
    return fmean(record[name] for record in records)


def _told_apart_from(records: Sequence[dict[str, Any]]) -> float | None:
    """The first step from which on the accuracy is 1; None if it is not at the end."""
    first = None
    for record in reversed(records):
        if record["rewards/accuracies"] < WON:
            break
        first = record["step"]
    return first


def _far(run: RunResults) -> str | None:
    """The iterate that has gone furthest from the base without the data's answers becoming as much likelier."""
    worst = max(run.played[1:], key=lambda policy: policy.values["kl_to_base"].mean, default=run.base)
    kl, gained = worst.values["kl_to_base"].mean, _logp_gain(run, worst, run.base)
    bought = worst.values["length"].mean if gained is None else WASTE * gained.mean  # of prompts alone: a nat a token
    if kl <= max(FAR, bought):
        return None
    what = f"{worst.name} is {kl:.1f} nats from the base, "
    if gained is None:
        what += f"over a nat for each of its {worst.values['length'].mean:.0f} tokens"
    else:
        than = f"{abs(gained.mean):.1f} nats {'likelier' if gained.mean >= 0 else 'less likely'}"
        what += f"and the data's answers are {than} to it: it has moved, and not towards them"
    lower = "lower training.learning_rate or game.alpha, raise game.loss.beta, or end it with game.stop_when.kl_to_base"
    return f"{what} (the best of 60,000 of the base's answers would be {FAR:g} nats away); {lower}."


def _fallen(run: RunResults) -> str | None:
    """Whose log-prob of the data's held-out answers is, by more than noise, below that of what the game began with."""
    begin = run.warm_start or run.base
    gains = {policy.name: _logp_gain(run, policy, begin) for policy in run.played[1:]}
    fallen = {name: gain for name, gain in gains.items() if gain is not None and gain.mean < -gain.half}
    if not fallen:
        return None
    said = ", ".join(f"{name} {gain.text(False, 2, '+')}" for name, gain in fallen.items())
    ends = "an earlier iterate may be the one to keep, and game.stop_when.chosen_logp_falls ends such a game"
    return (
        f"The data's own held-out answers have become less likely than they are to the {begin.name} (in nats: {said}); {ends}."
    )


def _logp_gain(run: RunResults, policy: PolicyResults, over: PolicyResults) -> Value | None:
    """By how much the data's answers are likelier than to another policy: row by row where that was stored."""
    if "chosen_logp" not in policy.values:
        return None
    if over is run.base and run.scores[0] == "chosen_logp":
        return policy.values["gain"]
    return difference({0: policy.values["chosen_logp"]}, {0: over.values["chosen_logp"]})
