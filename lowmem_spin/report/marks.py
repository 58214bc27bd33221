"""What a sweep's policies are seen beside: the base, in 4 bits and not, what a game began with, and plain fine-tuning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.report.intervals import Value, over
from lowmem_spin.report.measures import Measure
from lowmem_spin.report.plots import BASELINE, DARK, GREY, WARM, Level
from lowmem_spin.report.results import PolicyResults, RunResults

Pick = Callable[[RunResults], PolicyResults | None]
PICKED: list[tuple[Pick, str]] = [
    (lambda run: run.base, GREY),
    (lambda run: run.unquantized, DARK),
    (lambda run: run.warm_start, WARM),
    (lambda run: run.fine_tuned, BASELINE),
]


@dataclass(frozen=True)
class ComparisonPolicy:
    """One such policy, of all games, or, where they have different ones, of a group of them."""

    name: str
    by_seed: Mapping[Any, PolicyResults]
    color: str
    group: str | None = None

    @property
    def role(self) -> Role:
        return next(iter(self.by_seed.values())).part.role

    def value(self, name: str) -> Value:
        """A number of it, over the seeds."""
        values = [policy.values[name] for policy in self.by_seed.values()]
        same = len({value.mean for value in values}) == 1  # the base answers greedily alike, whatever the seed
        return values[0] if same else over(values)


@dataclass(frozen=True)
class Mark:
    """A number of one such policy."""

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
    """The numbers of this name of all that have it."""
    return [Mark(one.name, one.value(name), one.color, one.group) for one in comparisons(groups, name)]


def comparisons(groups: Mapping[str, Sequence[RunResults]], name: str) -> list[ComparisonPolicy]:
    """Those that have this number: the bases, a warm start, plain fine-tuning; one that differs within a group is left out."""
    found: list[ComparisonPolicy] = []
    for pick, color in PICKED:
        whole = _comparison([run for runs in groups.values() for run in runs], name, pick, color, None)
        single = [_comparison(runs, name, pick, color, group) for group, runs in groups.items()]
        found += [one for one in ([whole] if whole is not None else single) if one is not None]
    return found


def _comparison(runs: Sequence[RunResults], name: str, pick: Pick, color: str, group: str | None) -> ComparisonPolicy | None:
    by_seed: dict[Any, PolicyResults] = {}
    for run in runs:
        policy = pick(run)
        if policy is None or name not in policy.values:
            continue
        if by_seed.setdefault(run.recipe.get("seed"), policy).key != policy.key:
            return None
    return ComparisonPolicy(next(iter(by_seed.values())).name, by_seed, color, group) if by_seed else None
