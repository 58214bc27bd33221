"""What a sweep's policies are seen beside: the base, in 4 bits and not, and plain fine-tuning on the same rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowmem_spin.report.intervals import Value, over
from lowmem_spin.report.measures import Measure
from lowmem_spin.report.plots import BASELINE, DARK, GREY, Level
from lowmem_spin.report.results import PolicyResults, RunResults


@dataclass(frozen=True)
class Mark:
    """One policy's number over the seeds: of all games, or, where they have different ones, of a group of them."""

    name: str
    value: Value
    color: str
    group: str | None = None

    def level(self, measure: Measure) -> Level:
        """As a line whose name has the number, rounded as tables round it."""
        whose = self.name if self.group is None else f"{self.name}, {self.group}"
        digits, scale = (1, 100) if measure.percent else (2, 1)
        return self.value.mean, self.color, f"{whose} {scale * self.value.mean:.{digits}f}"


def marks(groups: Mapping[str, Sequence[RunResults]], name: str) -> list[Mark]:
    """The bases' numbers of this name, then plain fine-tuning's; one that differs within a group has no mark."""
    found: list[Mark] = []
    for pick, color in ((_base, GREY), (_unquantized, DARK), (_fine_tuned, BASELINE)):
        whole = _mark([run for runs in groups.values() for run in runs], name, pick, color, None)
        single = [_mark(runs, name, pick, color, group) for group, runs in groups.items()]
        found += [mark for mark in ([whole] if whole is not None else single) if mark is not None]
    return found


Pick = Callable[[RunResults], PolicyResults | None]


def _base(run: RunResults) -> PolicyResults | None:
    return run.base


def _unquantized(run: RunResults) -> PolicyResults | None:
    return run.unquantized


def _fine_tuned(run: RunResults) -> PolicyResults | None:
    return next((policy for policy in reversed(run.baselines) if policy is not run.unquantized), None)


def _mark(runs: Sequence[RunResults], name: str, pick: Pick, color: str, group: str | None) -> Mark | None:
    label, by_seed = "", dict[Any, dict[str, Value]]()
    for run in runs:
        policy = pick(run)
        if policy is not None and name in policy.values:
            label = policy.name
            by_seed.setdefault(run.recipe.get("seed"), {})[policy.key] = policy.values[name]
    if not by_seed or any(len(policies) > 1 for policies in by_seed.values()):
        return None
    values = [value for policies in by_seed.values() for value in policies.values()]
    same = len({value.mean for value in values}) == 1  # the base answers greedily alike, whatever the seed
    return Mark(label, values[0] if same else over(values), color, group)
