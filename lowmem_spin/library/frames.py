"""Results as pandas DataFrames. What each column is, report/measures.py says."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lowmem_spin.common.files import read_text
from lowmem_spin.report.measures import MEASURES
from lowmem_spin.report.results import PolicyResults, RunResults, SweepResults
from lowmem_spin.runner.claim import METRICS, SO_FAR

if TYPE_CHECKING:
    from pandas import DataFrame


def fields() -> "DataFrame":
    """What the numbers of `Run.table`, `Run.metrics` and `Sweep.table` are.

    Beside each number stands its standard error over the held-out rows, as `<name>_se`; 1.96 of them to either side are a 95%
    interval, which says nothing about another seed.

    Returns:
        A row per number: its unit, the name that reports give it, and what it is.
    """
    import pandas as pd

    rows = {name: (measure.number_unit, measure.label, measure.meaning) for name, measure in MEASURES.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["unit", "in reports", "meaning"])


def run_frame(results: RunResults) -> "DataFrame":
    """A row per policy."""
    import pandas as pd

    names = _names(results.policies, results.scores[0])
    rows = [_numbers(policy, names) for policy in results.policies]
    return pd.DataFrame(rows, index=pd.Index([policy.name for policy in results.policies], name="policy"))


def metrics_frame(results: RunResults) -> "DataFrame":
    """A row per line of metrics.jsonl, or of what there is of it so far, with all that it has."""
    import pandas as pd

    lines = read_text(results.folder / (METRICS if results.finished else SO_FAR)).removesuffix("\n").split("\n")
    return pd.DataFrame([json.loads(line) for line in lines]).set_index("name")


def sweep_frame(results: SweepResults) -> "DataFrame":
    """A row per game, finished or not: its place on the axes, its seed, and its last iterate's numbers."""
    import pandas as pd

    axes = {axis: _short(axis, list(results.file.axes)) for axis in results.file.axes}
    names = _names([run.last for run in results.runs.values()], results.score)
    rows: list[dict[str, Any]] = []
    for point in results.file.points:
        row = {short: point.setting.get(axis) for axis, short in axes.items()}
        row |= {"seed": point.seed, "status": point.status}
        if point.name in results.runs:
            last = results.runs[point.name].last
            row |= {"policy": last.name, **_numbers(last, names)}
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index([point.name for point in results.file.points], name="game"))


def _names(policies: Sequence[PolicyResults], score: str) -> list[str]:
    """The numbers that any of the policies has: the score that they are compared by, then the others as in MEASURES."""
    found = [name for name in MEASURES if any(name in policy.values for policy in policies)]
    return sorted(found, key=lambda name: name != score)


def _numbers(policy: PolicyResults, names: Sequence[str]) -> dict[str, float]:
    """The means first, then their standard errors; not a number where a policy has none."""
    values = [(name, policy.values.get(name)) for name in names]
    means = {name: float("nan") if value is None else value.mean for name, value in values}
    return means | {f"{name}_se": float("nan") if value is None else value.error for name, value in values}


def _short(axis: str, axes: Sequence[str]) -> str:
    """The last part of an axis's name, unless that is another column's."""
    last = axis.rpartition(".")[2]
    taken = [other.rpartition(".")[2] for other in axes].count(last) > 1 or last in MEASURES
    return axis if taken else last
