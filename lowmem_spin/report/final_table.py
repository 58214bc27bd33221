"""The final table: base, iterates, yardstick."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from lowmem_spin.report.intervals import Z
from lowmem_spin.runner.health import Estimate, Health


def results(healths: Sequence[Health]) -> Table:
    """Base against iterates, at most 80 columns wide; scores in percent with the half-width of their 95% interval."""
    base = healths[0]
    scored = base.exact_match is not None
    table = Table(title="Held-out results: %, ± 95% interval, gain over the base", box=box.SIMPLE_HEAD)
    table.show_edge, table.padding = False, (0, 1, 0, 0)  # type: ignore[assignment]
    headings = ["exact\nmatch", "gain"] if scored else []
    headings += ["sampled\naccuracy"] if scored else ["log-prob\nof data"]
    table.add_column("policy", no_wrap=True)
    judged = any(health.win_rate_to_previous is not None for health in healths)
    headings += ["wins over\nprev."] if judged else []
    for heading in [*headings, "KL to\nbase", "KL to\nprev.", "length", "cut", "= data"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for health in healths:
        is_base = health is base
        scores = [f"{health.chosen_logp.mean:.2f} ±{Z * health.chosen_logp.error:.2f}"]
        if health.exact_match is not None and base.exact_match is not None:
            gain = "" if is_base else _percent(health.exact_match.minus(base.exact_match), "+")
            scores = [_percent(health.exact_match), gain, _percent(health.sampled_accuracy)]
        if judged:
            scores.append("" if health.win_rate_to_previous is None else _percent(health.win_rate_to_previous))
        drift = ["", ""] if is_base else [f"{health.kl_to_base.mean:.2f}", f"{health.kl_to_previous.mean:.2f}"]
        shape = [f"{health.length.mean:.1f}", f"{health.truncated.mean:.1%}", f"{health.identical.mean:.0%}"]
        table.add_row(health.name, *scores, *drift, *shape)
    return table


def _percent(estimate: Estimate, sign: str = "") -> str:
    return f"{100 * estimate.mean:{sign}.1f} ±{100 * Z * estimate.error:.1f}"
