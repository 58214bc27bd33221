"""What runs and sweeps have found, in tables and in sentences."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.report.grid import Grid, TerminalTable
from lowmem_spin.report.intervals import Value, difference, notation, within_noise
from lowmem_spin.report.marks import ComparisonPolicy, comparisons
from lowmem_spin.report.measures import GAIN, GAIN_UNQUANTIZED, MATCH, MEASURES, WINS
from lowmem_spin.report.results import Configuration, PolicyResults, RunResults, SweepResults, plain_value
from lowmem_spin.runner.health import ALARM

DRIFT = ["win_rate_to_base", "win_rate_to_previous", "kl_to_base", "kl_to_previous", "kl_from_base"]
SHAPE = ["length", "truncated", "identical"]


def terminal_table(results: RunResults | SweepResults) -> TerminalTable:
    """What of a run's or a sweep's table fits a terminal of 80 columns; a narrower one has it in parts."""
    if isinstance(results, RunResults):
        unit = MEASURES[results.scores[0]].unit
        units = "scores and KL in nats" if unit == "nats" else f"scores in {unit}, KL in nats"
        grid = run_grid(results, brief=True)
        return grid.table(f"Held-out results, ± 95% interval; {units}; gain over the base{grid_notation(grid)}")
    measure = MEASURES[results.score]
    grid = sweep_grid(results, brief=True)
    return grid.table(f"Last iterates: {measure.in_words}, ± 95% interval; KL in nats{grid_notation(grid)}")


def grid_notation(grid: Grid) -> str:
    """What its title adds on how its numbers are written."""
    return notation(cell for row in grid.rows for cell in row[grid.names :])


def run_grid(run: RunResults, brief: bool = False) -> Grid:
    """A row per policy; `brief` for a terminal."""
    score, *others = run.scores[:2] if brief else run.scores
    measured = [n for n in DRIFT + SHAPE if n not in run.scores and any(n in policy.values for policy in run.policies)]
    gains = [GAIN, *([] if run.unquantized is None else [GAIN_UNQUANTIZED])]
    names = [score, *gains, *others, *(name for name in measured if MEASURES[name].brief or not brief)]

    def cell(policy: PolicyResults, name: str) -> str:
        if name not in policy.values or (policy is run.base and name != score and name in [GAIN, *DRIFT]):
            return ""
        if name in gains:
            itself = policy is run.unquantized and name == GAIN_UNQUANTIZED
            return "" if itself else MEASURES[score].text(policy.values[name], "+", brief)
        return MEASURES[name].text(policy.values[name], "", brief)

    headings = [_heading(name, brief, MEASURES[score].unit) for name in names]
    return Grid(["policy", *headings], [[policy.name, *(cell(policy, name) for name in names)] for policy in run.policies])


def _heading(name: str, brief: bool, unit: str) -> str:
    """Of a column; `unit` is the score's, which the title of a brief table says and gains have."""
    measure = MEASURES[name]
    if name in (GAIN, GAIN_UNQUANTIZED):
        return (measure.brief or measure.label) if brief else ", ".join(filter(None, [measure.label, unit]))
    if brief and measure.brief:
        return measure.brief + (f", {measure.unit}" if measure.unit not in ("", unit) and not measure.mean else "")
    return measure.heading


def sweep_grid(sweep: SweepResults, brief: bool = False) -> Grid:
    """A row per configuration: its last iterate, over the seeds; `brief` for a terminal."""
    score = sweep.score
    shape = [name for name in SHAPE if sweep.has(name)]
    runs, gains = list(sweep.runs.values()), []
    if runs and all(run.scores[0] == score for run in runs):  # else they are differences of something else
        gains += [GAIN] * (score != MATCH)  # a log-prob says something beside the base's alone
        gains += [GAIN_UNQUANTIZED] * all(run.unquantized is not None for run in runs)
    names = ["kl_to_base"] if brief else [*sweep.scores[1:2], "kl_to_base", "kl_from_base", *shape]
    axes = [axis.rpartition(".")[2] if brief else axis for axis in sweep.file.axes] or ["configuration"]
    unit = MEASURES[score].unit
    headings = [*axes, "seeds", *(_heading(name, brief, unit) for name in (score, *gains)), "against the best", "best policy"]
    headings += [_heading(name, brief, unit) for name in names]
    rows = []
    for configuration in sweep.configurations:
        cells = _naming(sweep, configuration)
        if configuration.runs:
            cells += [MEASURES[score].text(configuration.value(score), "", brief)]
            cells += [MEASURES[score].text(configuration.value(name), "+", brief) for name in gains]
            cells += [_against(sweep, configuration)]
            cells += [_best(configuration, score, brief)]
            cells += [MEASURES[name].text(configuration.value(name), "", brief) for name in names]
        rows.append(cells + [""] * (len(headings) - len(cells)))
    rows += [
        [one.name, *[""] * (len(axes) - 1), str(len(one.by_seed)), *_numbers(sweep, one, gains, names, brief)]
        for one in _common(sweep)
    ]
    return Grid(headings, rows, len(axes) + 1, parted=len(sweep.configurations) - 1)


def _common(sweep: SweepResults) -> list[ComparisonPolicy]:
    """The policies that all games are measured against; of others there is another one beside each configuration."""
    found = comparisons({c.label: list(c.runs.values()) for c in sweep.finished}, sweep.score)
    return [one for one in found if one.group is None]


def _from_best(sweep: SweepResults, one: ComparisonPolicy) -> Value:
    """Its difference from the best configuration; of the base, whose gain is 0, by gains where games have them."""
    best, mine = sweep.best.runs, {seed: policy.values[sweep.score] for seed, policy in one.by_seed.items()}
    gains_known = all(run.scores[0] == sweep.score and GAIN in run.last.values for run in best.values())
    by_gain = one.role is Role.BASE and gains_known
    theirs, mine = (GAIN, dict.fromkeys(best, Value(0.0, 0.0))) if by_gain else (sweep.score, mine)
    return difference(mine, {seed: run.last.values[theirs] for seed, run in best.items()})


def _numbers(sweep: SweepResults, one: ComparisonPolicy, gains: Sequence[str], names: Sequence[str], brief: bool) -> list[str]:
    """What a configuration has in its row, of a policy that the games are measured against."""
    score, base = sweep.score, one.role is Role.BASE

    def text(name: str, unit: str, sign: str = "") -> str:
        known = all(name in policy.values for policy in one.by_seed.values())
        return MEASURES[unit].text(one.value(name), sign, brief) if known else ""

    gained = ["" if base and name == GAIN else text(name, score, "+") for name in gains]
    return [
        text(score, score),
        *gained,
        _apart(_from_best(sweep, one), score),
        "",
        *("" if base and n in DRIFT else text(n, n) for n in names),
    ]


def points_grid(sweep: SweepResults) -> Grid:
    """Every point with its state."""
    rows = [[point.name, point.status, point.error or ""] for point in sweep.file.points]
    return Grid(["game", "state", "error"], rows, 3)


def _naming(sweep: SweepResults, configuration: Configuration) -> list[str]:
    """The values of the axes, and which seeds there are: "2", or "1 of 3, 1 failed, 1 waiting"."""
    values = [plain_value(configuration.setting.get(axis)) for axis in sweep.file.axes] or [configuration.label]
    states = Counter(point.status for point in configuration.points if point.status != "finished")
    done, planned = len(configuration.runs), len(configuration.points)
    counts = [f"{count} {state}" for state, count in states.items()]
    seeds = ", ".join([f"{done} of {planned}" if states else f"{done}", *counts])
    return [*values, seeds]


def _against(sweep: SweepResults, configuration: Configuration) -> str:
    """The difference from the best configuration, and in words if it is none to speak of."""
    if configuration is sweep.best:
        return "the best"
    if configuration.same_as(sweep.best):
        return "the same policy"
    difference = configuration.against(sweep.best, sweep.score)
    return _apart(difference, sweep.score)


def _apart(difference: Value, score: str) -> str:
    return MEASURES[score].text(difference, "+") + (", within noise" if within_noise(difference) else "")


def _best(configuration: Configuration, score: str, brief: bool) -> str:
    index = configuration.best(score)
    name = next(iter(configuration.runs.values())).played[index].name
    if brief:
        return name
    last = index == configuration.iterates - 1
    return name + (" (the last)" if last else f", {MEASURES[score].text(configuration.value(score, index))}")


UNITS = {
    MATCH: "exact match, in percent",
    "final_number": "share of right final numbers, in percent",
    "regex": "share of answers in which the pattern finds what it finds in the data's, in percent",
    "contains": "share of answers that contain the data's, in percent",
    "function": "own metric",
    "chosen_logp": "log-prob of the data's answers, in nats",
    WINS: "share of wins over the base, in percent",
}


def verdict(run: RunResults) -> list[str]:
    """What a run's numbers say, in sentences that claim no more than the intervals allow."""
    score = run.scores[0]
    unit = UNITS[score]
    best = max(run.played, key=lambda policy: policy.score.mean)
    gain = "" if best is run.base else f", {MEASURES[score].text(best.values['gain'], '+')} over the base"
    lines = [f"Of the base and the iterates, {best.name} has the highest {unit}: {MEASURES[score].text(best.score)}{gain}."]
    others = [policy for policy in [run.last, *run.baselines] if policy not in (best, run.unquantized)]
    lines += [_compared(other.name, difference({0: other.score}, {1: best.score}), best.name, score) for other in others]
    lines += _over_unquantized(run, best, score)
    lines += [_drawn(policy.name, policy.sampler) for policy in run.policies if policy.sampler]
    if "stopped" in run.record:
        stopped = run.record["stopped"]
        lines.append(f"The game was ended after {stopped['after']}: {stopped['why']}. {stopped['keep']} is the one to keep.")
    gaps = [(policy.name, policy.values["engine_gap"].mean) for policy in run.policies if "engine_gap" in policy.values]
    alarm = "{}: generator and learner differ by {:.3f} nats on its own samples; opponents are not quite the policy scored."
    return lines + [alarm.format(name, gap) for name, gap in gaps if gap > ALARM]


def _over_unquantized(run: RunResults, best: PolicyResults, score: str) -> list[str]:
    """What of the gain is over the model that a person has, and what only makes up for nf4."""
    if run.unquantized is None:
        return []

    def apart(policy: PolicyResults) -> str:
        gain = policy.values[GAIN_UNQUANTIZED]
        noise = ", within noise" if within_noise(gain) else ""
        return f"{MEASURES[score].text(gain, '+')}{noise}"

    line = f"Against the unquantized base, the base in nf4 is at {apart(run.base)}"
    return [f"{line}." if best is run.base else f"{line}, and {best.name} at {apart(best)}."]


def _drawn(name: str, sampler: dict[str, Any]) -> str:
    """How hard it was to sample the mixtures whose answers an iterate has learned from."""
    text = f"Answers for {name} were drawn from mixtures by {sampler['sampler'].replace('_', '-')}: "
    if sampler["acceptance"] is not None:
        text += f"{sampler['acceptance']:.1%} of {sampler['proposals']:,} proposals accepted, "
        text += f"{sampler['rejected']} prompts left out, "
    else:
        text += f"effective sample size {sampler['ess']:.1f} of {sampler['proposals'] / sampler['prompts']:.0f}, "
    return text + ("log Z unknown." if sampler["log_z"] is None else f"log Z {sampler['log_z']:.3f}.")


def sweep_verdict(sweep: SweepResults) -> list[str]:
    """Which configuration is ahead, how many others might as well be, and what is not behind without any game."""
    if not sweep.finished:
        return ["No game is finished yet."]
    best = sweep.best
    highest = [c for c in sweep.finished if c.value(sweep.score).mean == best.value(sweep.score).mean]
    others = [configuration for configuration in sweep.finished if configuration not in highest]
    close = [c for c in others if c.same_as(best) or within_noise(c.against(best, sweep.score))]
    measure = MEASURES[sweep.score]
    name = measure.heading.replace(", %", ", in percent")
    ahead = f"{best.label} ends with the highest"
    if not others and highest[1:]:
        ahead = f"{'Both' if len(highest) == 2 else f'All {len(highest)}'} configurations end with the same"
    elif highest[1:]:
        ahead = (
            f"{len(highest)} of the {len(sweep.finished)} configurations, {best.label} among them, end with the same highest"
        )
    lines = [f"{ahead} {name}: {measure.text(best.value(sweep.score))}."]
    if len(others) == 1:
        lines.append("The other is within noise of it." if close else "The other is further from it than noise.")
    elif others:
        lines.append(f"{len(close)} of the {len(others)} others are within noise of it.")
    beside = [(one, _from_best(sweep, one)) for one in _common(sweep)]
    lines += [
        _compared(one.name, apart, best.label, sweep.score)
        for one, apart in beside  # that a base is below says nothing new
        if one.role in (Role.WARM_START, Role.BASELINE) or apart.mean > 0 or within_noise(apart)
    ]
    return lines + _unpaired(best, [one for one in sweep.finished if one is not best and not one.same_as(best)])


def _unpaired(best: Configuration, others: Sequence[Configuration]) -> list[str]:
    """Of what the differences from the best are, where it is not of pairs of runs with the same seeds; a line each."""
    lines = []
    for other in others:
        common = sorted(set(best.runs) & set(other.runs), key=str)
        seeds = f"{best.label} has seed{'s' * (len(best.runs) > 1)} {_listed(best.runs)}, {other.label} {_listed(other.runs)}"
        if len(common) == 1 and max(len(best.runs), len(other.runs)) > 1:
            lines.append(f"{seeds}: their difference is of seed {common[0]} alone, with its held-out rows' interval.")
        elif not common:
            lines.append(f"{seeds}, none in common: their difference is partly that of the seeds.")
    return lines if len(lines) < 4 else [lines[0], f"So it is, in one way or the other, with {len(lines) - 1} more."]


def _listed(seeds: Iterable[Any]) -> str:
    return ", ".join(map(str, seeds))


def _compared(name: str, apart: Value, best: str, score: str) -> str:
    """How far one policy is from the best, in words."""
    shown = MEASURES[score].text(apart, "+")
    if within_noise(apart):
        return f"{name} differs from {best} by no more than noise ({shown})."
    return f"{name} is {'above' if apart.mean > 0 else 'below'} {best} ({shown})."


def duration(seconds: Sequence[float]) -> str:
    """A time as a person says it."""
    total = sum(seconds)
    return f"{total / 3600:.2f} h" if total >= 3600 else f"{total / 60:.1f} min" if total >= 60 else f"{total:.1f} s"
