"""Results as tables of text: the same cells for the page, for Markdown and for the terminal."""

import html
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from lowmem_spin.common.errors import printable
from lowmem_spin.report.intervals import Value, within_noise
from lowmem_spin.report.results import MATCH, Configuration, Policy, Run, Sweep, plain
from lowmem_spin.runner.health import ALARM

NAMES = {
    MATCH: "exact match, %",
    "sampled_accuracy": "sampled accuracy, %",
    "chosen_logp": "log-prob of data",
    "kl_to_base": "KL to base",
    "kl_to_previous": "KL to previous",
    "kl_from_base": "KL from base",
    "length": "length, tokens",
    "truncated": "truncated, %",
    "identical": "= data, %",
    "win_rate_to_base": "wins over base, %",
    "win_rate_to_previous": "wins over previous, %",
}
SHARES = {MATCH, "sampled_accuracy", "truncated", "identical", "win_rate_to_base", "win_rate_to_previous"}  # shown in percent


@dataclass(frozen=True)
class Grid:
    """A table of text: the first `names` columns name a row, the rest are numbers."""

    headings: list[str]
    rows: list[list[str]]
    names: int = 1

    def markdown(self) -> str:
        """As a GitHub table; text that is not ours cannot break out of its cell."""
        rule = ["---"] * self.names + ["---:"] * (len(self.headings) - self.names)
        cells = [[plainly(cell) for cell in row] for row in [self.headings, *self.rows]]
        return "".join(f"| {' | '.join(row)} |\n" for row in [cells[0], rule, *cells[1:]])

    def table(self, title: str) -> Table:
        """For a terminal."""
        table = Table(title=escape(printable(title)), box=box.SIMPLE_HEAD)
        table.show_edge, table.padding = False, (0, 1, 0, 0)  # type: ignore[assignment]
        for place, heading in enumerate(self.headings):
            table.add_column(
                escape(printable(heading)), justify="left" if place < self.names else "right", no_wrap=place < self.names
            )
        for row in self.rows:
            table.add_row(*(escape(printable(cell)) for cell in row))
        return table


def show(value: Value, name: str, sign: str = "") -> str:
    """A number with the half-width of its 95% interval, shares in percent."""
    scale, digits = (100, 1) if name in SHARES else (1, 2)
    mean = f"{round(scale * value.mean, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: there is no -0.00
    return mean if math.isnan(value.half) else f"{mean} ±{scale * value.half:.{digits}f}"


def run_grid(run: Run) -> Grid:
    """A row per policy."""
    score = MATCH if MATCH in run.base.values else "chosen_logp"
    scores = [MATCH, "sampled_accuracy", "chosen_logp"] if score == MATCH else ["chosen_logp"]
    wins = ["win_rate_to_base", "win_rate_to_previous"] if "win_rate_to_base" in run.last.values else []
    drift, shape = [*wins, "kl_to_base", "kl_to_previous", "kl_from_base"], ["length", "truncated", "identical"]
    headings = ["policy", NAMES[scores[0]], "gain", *(NAMES[name] for name in [*scores[1:], *drift, *shape])]
    rows = []
    for policy in run.policies:
        base = policy is run.base
        gain = "" if base else show(_gain(run, policy), score, "+")
        cells = [policy.name, show(policy.values[score], score), gain]
        cells += [show(policy.values[name], name) for name in scores[1:]]
        cells += ["" if base or name not in policy.values else show(policy.values[name], name) for name in drift]
        rows.append(cells + [show(policy.values[name], name) for name in shape])
    return Grid(headings, rows)


def _gain(run: Run, policy: Policy) -> Value:
    """Paired over the held-out rows; a record from before gains were kept gives the difference alone."""
    return policy.values.get("gain", Value(policy.score.mean - run.base.score.mean, math.nan))


def sweep_grid(sweep: Sweep) -> Grid:
    """A row per configuration: its last iterate, over the seeds."""
    score = sweep.score
    shown = ["sampled_accuracy"] * (score == MATCH) + ["kl_to_base", "kl_from_base", "length", "truncated", "identical"]
    axes = list(sweep.plan.axes) or ["configuration"]
    headings = [*axes, "seeds", NAMES[score], "against the best", "best policy", *(NAMES[name] for name in shown)]
    rows = []
    for configuration in sweep.configurations:
        cells = _naming(sweep, configuration)
        if configuration.runs:
            cells += [show(configuration.value(score), score), _against(sweep, configuration), _best(configuration, score)]
            cells += [show(configuration.value(name), name) for name in shown]
        rows.append(cells + [""] * (len(headings) - len(cells)))
    return Grid(headings, rows, len(axes) + 1)


def sweep_table(sweep: Sweep) -> Table:
    """The sweep for a terminal: a line per configuration."""
    percent = ", %" if sweep.score == MATCH else ""
    name = NAMES[sweep.score].removesuffix(", %")
    table = Table(title=f"Last iterates: {name}{percent}, ± 95% interval", box=box.SIMPLE_HEAD)
    table.show_edge, table.padding = False, (0, 1, 0, 0)  # type: ignore[assignment]
    for axis in list(sweep.plan.axes) or ["configuration"]:
        table.add_column(escape(printable(axis.rpartition(".")[2])), no_wrap=True)
    table.add_column("seeds")
    for heading in (name, "against the best", "KL to base", "best policy"):
        table.add_column(heading, justify="right")
    for configuration in sweep.configurations:
        cells = _naming(sweep, configuration)
        if configuration.runs:
            cells += [show(configuration.value(sweep.score), sweep.score), _against(sweep, configuration)]
            cells += [
                show(Value(configuration.value("kl_to_base").mean, math.nan), "kl_to_base"),
                _policy(configuration.best(sweep.score)),
            ]
        table.add_row(*(escape(printable(cell)) for cell in cells))
    return table


def points_grid(sweep: Sweep) -> Grid:
    """Every point with its state."""
    rows = [[point.name, point.status, point.error or ""] for point in sweep.plan.points]
    return Grid(["point", "state", "error"], rows, 3)


def _naming(sweep: Sweep, configuration: Configuration) -> list[str]:
    """The values of the axes, and which seeds there are: "2", or "1 of 3, 1 failed, 1 waiting"."""
    values = [plain(configuration.setting.get(axis)) for axis in sweep.plan.axes] or [configuration.label]
    states = Counter(point.status for point in configuration.points if point.status != "finished")
    done, asked = len(configuration.runs), len(configuration.points)
    seeds = ", ".join([f"{done} of {asked}" if states else f"{done}", *(f"{count} {state}" for state, count in states.items())])
    return [*values, seeds]


def _against(sweep: Sweep, configuration: Configuration) -> str:
    """The difference from the best configuration, and in words if it is none to speak of."""
    if configuration is sweep.best:
        return "the best"
    if configuration.same_as(sweep.best):
        return "the same policy"
    difference = configuration.against(sweep.best, sweep.score)
    return show(difference, sweep.score, "+") + (", within noise" if within_noise(difference) else "")


def _best(configuration: Configuration, score: str) -> str:
    place = configuration.best(score)
    last = place == configuration.iterates - 1
    return _policy(place) + (" (the last)" if last else f", {show(configuration.value(score, place), score)}")


def _policy(place: int) -> str:
    return "base" if place == 0 else f"iterate {place - 1}"


def verdict(run: Run) -> list[str]:
    """What a run's numbers say, in sentences that claim no more than the intervals allow."""
    score = MATCH if MATCH in run.base.values else "chosen_logp"
    unit = "exact match, in percent" if score == MATCH else "log-prob of the data's answers, in nats"
    best = max(run.played, key=lambda policy: policy.score.mean)
    gain = "" if best is run.base else f", {show(_gain(run, best), score, '+')} over the base"
    lines = [f"Of the base and the iterates, {best.name} has the highest {unit}: {show(best.score, score)}{gain}."]
    others = [policy for policy in [run.last, *run.yardsticks] if policy is not best]
    lines += [f"{other.name} {_compared(other, best, score)}." for other in others]
    lines += [_drawn(policy.name, policy.sampler) for policy in run.policies if policy.sampler]
    if "stopped" in run.record:
        stopped = run.record["stopped"]
        lines.append(f"The game was ended after {stopped['after']}: {stopped['why']}. {stopped['keep']} is the one to keep.")
    gaps = [(policy.name, policy.values["engine_gap"].mean) for policy in run.policies if "engine_gap" in policy.values]
    alarm = "{}: generator and learner differ by {:.3f} nats on its own samples; opponents are not quite the policy scored."
    return lines + [alarm.format(name, gap) for name, gap in gaps if gap > ALARM]


def _drawn(name: str, sampler: dict[str, Any]) -> str:
    """How hard an iterate's opponents were to sample."""
    said = f"Opponents of {name} answered by {sampler['sampler'].replace('_', '-')} from mixtures: "
    if sampler["acceptance"] is not None:
        said += f"{sampler['acceptance']:.1%} of {sampler['proposals']:,} proposals accepted, "
        said += f"{sampler['rejected']} prompts without an answer, "
    else:
        said += f"effective sample size {sampler['ess']:.1f} of {sampler['proposals'] / sampler['prompts']:.0f}, "
    return said + ("log Z unknown." if sampler["log_z"] is None else f"log Z {sampler['log_z']:.3f}.")


def sweep_verdict(sweep: Sweep) -> list[str]:
    """Which configuration is ahead, and how many of the others might as well be."""
    if not sweep.finished:
        return ["No point is finished yet."]
    best, others = sweep.best, [configuration for configuration in sweep.finished if configuration is not sweep.best]
    close = [c for c in others if c.same_as(best) or within_noise(c.against(best, sweep.score))]
    name = NAMES[sweep.score].replace(", %", ", in percent")
    lines = [f"{best.label} ends with the highest {name}: {show(best.value(sweep.score), sweep.score)}."]
    return lines + [f"{len(close)} of the {len(others)} others are within noise of it."] * bool(others)


def _compared(policy: Policy, best: Policy, score: str) -> str:
    apart = Value(policy.score.mean - best.score.mean, math.hypot(policy.score.error, best.score.error))
    if within_noise(apart):
        return f"differs from {best.name} by no more than noise ({show(apart, score, '+')})"
    return f"is {'above' if apart.mean > 0 else 'below'} {best.name} ({show(apart, score, '+')})"


def plainly(text: str) -> str:
    """One line of text that means nothing to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]|~#$!])", r"\\\1", html.escape(printable(text), quote=False))


def duration(seconds: Sequence[float]) -> str:
    """A time as a person says it."""
    total = sum(seconds)
    return f"{total / 3600:.2f} h" if total >= 3600 else f"{total / 60:.1f} min" if total >= 60 else f"{total:.1f} s"
