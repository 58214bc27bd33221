"""The numbers of a policy that metrics.jsonl has, and how each is shown, whatever table or picture it stands in."""

import math
from dataclasses import dataclass

from lowmem_spin.report.intervals import Value

MATCH, WINS, GAIN, GAIN_UNQUANTIZED = "exact_match", "win_rate_to_base", "gain", "gain_over_unquantized"
TASKS = (MATCH, "final_number", "regex", "contains", "function")  # what evaluation.metric may be


@dataclass(frozen=True)
class Measure:
    """What one number is called and how it is written."""

    label: str
    unit: str = ""  # "%" for shares
    brief: str = ""  # heading in a terminal, where there is a column for it
    mean: str = ""  # format of the mean in a terminal, where there is no room for the interval
    meaning: str = ""  # what the number is, of one policy

    @property
    def percent(self) -> bool:
        return self.unit == "%"

    @property
    def heading(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def in_words(self) -> str:
        """In a sentence: exact match in %."""
        return f"{self.label} in {self.unit}" if self.unit else self.label

    @property
    def number_unit(self) -> str:
        """The unit of the number as metrics.jsonl has it: shares are from 0 to 1 there."""
        return "share" if self.percent else self.unit or ("" if self.label.startswith(GAIN) else "nats")

    def text(self, value: Value, sign: str = "", brief: bool = False) -> str:
        """The number with the half-width of its 95% interval; `brief` may leave that out."""
        if brief and self.mean and not math.isnan(value.mean):
            return format(value.mean, self.mean)
        return value.text(self.percent, 1 if self.percent else 2, sign)


MEASURES = {
    MATCH: Measure(
        "exact match",
        "%",
        "exact\nmatch",
        meaning="share of held-out prompts whose greedy answer ends and equals the data's to the letter",
    ),
    "final_number": Measure(
        "final number",
        "%",
        "final\nnumber",
        meaning="share of held-out prompts whose greedy answer ends and has the data's last number as its last",
    ),
    "regex": Measure(
        "pattern",
        "%",
        meaning="share of held-out prompts whose greedy answer ends and in which the pattern finds what it finds in the data's",
    ),
    "contains": Measure(
        "contains",
        "%",
        meaning="share of held-out prompts whose greedy answer ends and has the data's in it",
    ),
    "function": Measure(
        "own metric",
        "points",
        "own\nmetric",
        meaning="mean of what the function of evaluation.metric gives for the greedy answers to held-out prompts",
    ),
    GAIN: Measure(
        "gain",
        meaning="by how much the score is above the base's on the same rows: evaluation.metric if there is one, else "
        "chosen_logp, else win_rate_to_base",
    ),
    GAIN_UNQUANTIZED: Measure(
        "gain over unquantized",
        brief="gain over\nunquant.",
        meaning="by how much the score is above that of the base before its weights were put in 4 bits, on the same rows: of "
        "the base itself it is what nf4 costs",
    ),
    "sampled_accuracy": Measure(
        "sampled accuracy",
        "%",
        "sampled\naccuracy",
        meaning="expected share of samples that equal the data's answer: the mean of exp(its log-prob), without sampling noise",
    ),
    "chosen_logp": Measure(
        "log-prob of data",
        "nats",
        "log-prob\nof data",
        meaning="log-prob of a whole answer of the data on held-out prompts; nearer to 0 is likelier",
    ),
    WINS: Measure(
        "wins over base", "%", meaning="share of own samples that the game's oracle prefers to the base's on the same prompt"
    ),
    "win_rate_to_previous": Measure(
        "wins over previous",
        "%",
        "wins over\nprev.",
        meaning="share of own samples that the game's oracle prefers to the previous policy's on the same prompt",
    ),
    "kl_to_base": Measure(
        "KL to base",
        "nats",
        "KL to\nbase",
        "z.2f",
        meaning="KL(policy || base) per answer, estimated on the policy's own samples: how far it has moved from the base",
    ),
    "kl_to_previous": Measure(
        "KL to previous",
        "nats",
        "KL to\nprev.",
        "z.2f",
        meaning="KL(policy || previous policy) per answer, estimated on the policy's own samples: the last step alone",
    ),
    "kl_from_base": Measure(
        "KL from base",
        "nats",
        meaning="KL(base || policy) per answer, estimated on the base's samples: what of the base has been given up",
    ),
    "length": Measure("length", "tokens", "length", ".1f", meaning="length of an own sample, its end token included"),
    "truncated": Measure(
        "truncated", "%", "trun-\ncated", ".1%", meaning="share of own samples that reached max_new_tokens without an end"
    ),
    "identical": Measure(
        "as in data",
        "%",
        "as in\ndata",
        ".0%",
        meaning="share of own samples that equal the data's answer; it rises as the game is won",
    ),
    "engine_gap": Measure(
        "engine gap",
        meaning="|generator's - learner's log-prob| of an own sample: far from 0, opponents are not quite the policy scored",
    ),
}
"""Beside each, metrics.jsonl has its standard error over the held-out rows, as <name>_se."""
