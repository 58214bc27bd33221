"""The numbers of a policy that metrics.jsonl has, and how each is shown, whatever table or picture it stands in."""

import math
from dataclasses import dataclass

from lowmem_spin.report.intervals import Value

MATCH, WINS = "exact_match", "win_rate_to_base"


@dataclass(frozen=True)
class Measure:
    """What one number is called and how it is written."""

    label: str
    unit: str = ""  # "%" for shares
    brief: str = ""  # heading in a terminal, where there is a column for it
    mean: str = ""  # format of the mean in a terminal, where there is no room for the interval

    @property
    def percent(self) -> bool:
        return self.unit == "%"

    @property
    def heading(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def text(self, value: Value, sign: str = "", brief: bool = False) -> str:
        """The number with the half-width of its 95% interval; `brief` may leave that out."""
        if brief and self.mean and not math.isnan(value.mean):
            return format(value.mean, self.mean)
        return value.text(self.percent, 1 if self.percent else 2, sign)


MEASURES = {
    MATCH: Measure("exact match", "%", "exact\nmatch"),
    "sampled_accuracy": Measure("sampled accuracy", "%", "sampled\naccuracy"),
    "chosen_logp": Measure("log-prob of data", "nats", "log-prob\nof data"),
    WINS: Measure("wins over base", "%"),
    "win_rate_to_previous": Measure("wins over previous", "%", "wins over\nprev."),
    "kl_to_base": Measure("KL to base", "nats", "KL to\nbase", "z.2f"),
    "kl_to_previous": Measure("KL to previous", "nats", "KL to\nprev.", "z.2f"),
    "kl_from_base": Measure("KL from base", "nats"),
    "length": Measure("length", "tokens", "length", ".1f"),
    "truncated": Measure("truncated", "%", "cut", ".1%"),
    "identical": Measure("= data", "%", "= data", ".0%"),
}
