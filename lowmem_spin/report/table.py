"""The final table: base, iterates, yardstick."""

from collections.abc import Sequence

from rich.table import Table

from lowmem_spin.evaluation.health import Estimate, Health

Z = 1.96  # normal quantile of a 95% interval


def line(health: Health, metrics: Sequence[dict[str, float]]) -> str:
    """One line on one policy: how training ended and how far it has drifted."""
    parts = []
    if metrics:
        last = metrics[-max(1, len(metrics) // 4) :]

        def late(name: str) -> float:
            return sum(record[name] for record in last) / len(last)

        parts.append(f"loss {late('loss'):.3f}")
        if "rewards/margins" in last[0]:
            parts.append(f"margin {late('rewards/margins'):+.2f}")
            parts.append(f"log-probs chosen {late('logps/chosen'):.1f} rejected {late('logps/rejected'):.1f}")
    parts.append(f"held-out {health.chosen_logp.mean:.2f}")
    parts.append(f"KL base {health.kl_to_base.mean:.2f} previous {health.kl_to_previous.mean:.2f}")
    parts.append(f"length {health.length.mean:.1f}, truncated {health.truncated.mean:.1%}")
    return f"{health.name}: " + ", ".join(parts)


def results(healths: Sequence[Health]) -> Table:
    """Base against iterates; every score with the half-width of its 95% interval."""
    table = Table(title="Held-out results, ± 95% interval; gain is paired with the base")
    table.add_column("policy")
    for name in ("exact match", "gain", "sampled accuracy", "gain", "KL to base", "KL to prev.", "length", "cut", "= data"):
        table.add_column(name, justify="right")
    base = healths[0]
    for health in healths:
        is_base = health is base
        match = [_share(health.exact_match), "" if is_base else _gain(health.exact_match, base.exact_match)]
        sampled = [_share(health.sampled_accuracy), "" if is_base else _gain(health.sampled_accuracy, base.sampled_accuracy)]
        drift = ["", ""] if is_base else [f"{health.kl_to_base.mean:.2f}", f"{health.kl_to_previous.mean:.2f}"]
        shape = [f"{health.length.mean:.1f}", f"{health.truncated.mean:.1%}", f"{health.identical.mean:.1%}"]
        table.add_row(health.name, *match, *sampled, *drift, *shape)
    if base.exact_match is None:
        for column in (1, 1):
            table.columns.pop(column)
    return table


def _share(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.mean:.3f} ± {Z * estimate.error:.3f}"


def _gain(estimate: Estimate | None, base: Estimate | None) -> str:
    if estimate is None or base is None:
        return ""
    difference = estimate.minus(base)
    return f"{difference.mean:+.3f} ± {Z * difference.error:.3f}"
