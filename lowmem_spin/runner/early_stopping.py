"""Early stopping: whether a game whose iterates get worse ends before its last iteration, and which iterate to keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lowmem_spin.config.choices import StopWhen
from lowmem_spin.runner.health import Health


@dataclass(frozen=True)
class EarlyStop:
    """The end of a game before its time."""

    after: str  # name of the iterate that has gone wrong
    keep: str  # name of the policy before that
    why: str


def stops_early(when: StopWhen, healths: Sequence[Health]) -> EarlyStop | None:
    """Whether the last of these policies, the game's base first, has gone wrong; None if it has not.

    Where several bounds are passed, the one that goes back furthest is told.
    """
    last = healths[-1]
    reasons: list[tuple[int, str]] = []  # (how many policies back, why)
    if when.kl_to_base is not None and last.kl_to_base.mean > when.kl_to_base:
        reasons.append((1, f"KL to base is {last.kl_to_base.mean:.2f}, over {when.kl_to_base:g}"))
    drift = last.length.mean / healths[0].length.mean - 1
    if when.length_drift is not None and abs(drift) > when.length_drift:
        reasons.append((1, f"answers are {abs(drift):.0%} {'longer' if drift > 0 else 'shorter'} than {healths[0].name}'s"))
    wins = last.win_rate_to_previous
    if when.win_rate_below is not None and wins is not None and wins.mean < when.win_rate_below:
        reasons.append((1, f"win-rate against {healths[-2].name} is {wins.mean:.2f}, below {when.win_rate_below:g}"))
    falls = when.chosen_logp_falls
    if falls is not None and len(healths) > falls:
        means = [health.chosen_logp.mean for health in healths[-1 - falls :] if health.chosen_logp is not None]
        if len(means) > falls and all(later < earlier for earlier, later in pairwise(means)):
            times = f"{falls} iterations" if falls > 1 else "an iteration"
            reasons.append((falls, f"the log-prob of held-out answers has fallen for {times}, to {means[-1]:.2f}"))
    if not reasons:
        return None
    back, why = max(reasons)
    return EarlyStop(last.name, healths[-1 - back].name, why)
