"""Task metrics: one greedy answer against the data's, as a number."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

import regex

from lowmem_spin.common.errors import InputError, quoted
from lowmem_spin.config.metric_choices import Contains, FinalNumber, OwnMetric, Regex
from lowmem_spin.engines.own_function import OwnFunction

FIELD = "evaluation.metric"
SEARCHED = 10.0  # seconds in one text, after which a pattern is taken to backtrack without end
NUMBER = re.compile(r"(?:(?<![\w.)])-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")  # 3-4 ends in 4, a change of -4 in -4


def final_number(text: str) -> Decimal | None:
    """The last number of a text, after the last #### where there is one; None if it has none."""
    found = NUMBER.findall(text.rpartition("####")[2])
    return Decimal(re.sub(r"[\s$,]", "", found[-1])) if found else None


def first_group(pattern: str, text: str) -> str | None:
    """What the first group of a pattern's last match in a text is; None without a match.

    Raises:
        InputError: the search does not end; one line.
    """
    found = None
    try:
        for found in regex.finditer(pattern, text, timeout=SEARCHED):  # noqa: B007 - the last one
            pass
    except TimeoutError:
        why = f"{quoted(pattern)} is still searching an answer of {len(text):,} characters after {SEARCHED:g} s"
        raise InputError(f"{FIELD}: {why}; avoid repetitions within repetitions, such as (a+)+") from None
    return None if found is None else found[1]


@dataclass(frozen=True)
class TaskMetric:
    """A recipe's metric other than exact match."""

    section: FinalNumber | Contains | Regex | OwnMetric
    own: OwnFunction | None = None

    @property
    def name(self) -> str:
        """As recipes, metrics.jsonl and tables know it."""
        return self.section.name

    def score(self, prompt: str, answer: str, expected: str) -> float:
        """1 for right and 0 for wrong; of an own function, what it returns.

        Raises:
            InputError: that is no number; one line.
        """
        match self.section:
            case Contains():
                return float(expected.strip() in answer)
            case OwnMetric():
                return self._own(prompt, answer, expected)
        meant = self._found(expected)
        return float(meant is not None and self._found(answer) == meant)

    def _found(self, text: str) -> Decimal | str | None:
        return first_group(self.section.pattern, text) if isinstance(self.section, Regex) else final_number(text)

    def _own(self, prompt: str, answer: str, expected: str) -> float:
        assert self.own is not None  # noqa: S101  # there with such a section
        returned = self.own.call(prompt, answer, expected)
        try:
            value = float(returned)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{self.own.field}: {self.own.place} gave {quoted(returned)}, which is no number")
        return value

    def check(self, expected: Sequence[str]) -> Iterator[str]:
        """Hold the metric against the data's answers on held-out rows, before anything is computed.

        Yields:
            A line if some of them have nothing to compare with, which no answer can be right by.

        Raises:
            InputError: none of them has, or an own function cannot be called; one line.
        """
        if self.own is not None:
            self.own.check_arguments("(prompt, answer, expected)", "prompt", "answer", "expected")
        if not isinstance(self.section, FinalNumber | Regex):
            return
        what = "number" if isinstance(self.section, FinalNumber) else f"match of {quoted(self.section.pattern)}"
        without = sum(self._found(text) is None for text in expected)
        if without == len(expected):
            raise InputError(f"{FIELD}: none of the {len(expected):,} held-out answers has a {what}; use another metric")
        if without:
            has = "has" if without == 1 else "have"
            count = f"{without:,} of {len(expected):,} held-out answers {has} no {what}"
            yield f"{FIELD}: {count}; every policy counts as wrong there"
