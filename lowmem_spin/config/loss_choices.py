"""The losses that a game chooses from by name, each with options of its own."""

from typing import Any, Literal

from pydantic import Field

from lowmem_spin.config.bounds import SINGLE
from lowmem_spin.config.choices import Option
from lowmem_spin.config.paths import PathText
from lowmem_spin.config.per_iteration import Positive
from lowmem_spin.config.section import Section


class DPO(Section):
    """The logistic loss of DPO and SPIN, on the log-prob margin of chosen over rejected relative to the reference."""

    name: Literal["dpo"] = "dpo"
    """Selects the loss -log sigmoid(beta * margin) of DPO and SPIN. It has no minimum, so each pair keeps pulling."""
    beta: Positive | list[Positive] = 0.1
    """Strength of the pull to the reference; it multiplies the margin, which is in nats. A list has one number per iteration:
    SPIN's code has 0.1, and 5 in the last one. Raise it if iterates drift too far, lower it if they hardly move."""


class IPO(Section):
    """The squared loss of IPO, on log-probs summed over a completion's tokens."""

    name: Literal["ipo"] = "ipo"
    """Selects IPO's loss (margin - 1 / (2 tau))^2, which stops pulling once a pair reaches its target margin."""
    tau: float = Field(default=0.1, gt=0, le=SINGLE)
    """Strength of the pull to the reference; the target margin is 1 / (2 tau) nats per completion, 5 for 0.1. Raise it if
    iterates drift; SPIN trained to convergence in every iteration is stable only above 1/8."""
    targets: Literal["hard", "soft"] = "hard"
    """Margins that the loss aims at. hard: 1 / (2 tau) for every pair, as in IPO. soft: of answers that an oracle has judged,
    their difference in win-rate divided by tau, so that equally good ones are left alone; with game.samples 2 this is what
    INPO, Nash-MD and IPO-MD minimise, for any preference."""


class IPOLengthNormalized(Section):
    """IPO as TRL computes it: each side's log-ratio is divided by its length in tokens."""

    name: Literal["ipo_length_normalized"] = "ipo_length_normalized"
    """Selects the loss (margin per token - 1 / (2 tau))^2, TRL's "ipo". Needs a normalised reference: game.alpha 0
    or 1, or game.reference arithmetic or ema."""
    tau: float = Field(default=0.1, gt=0, le=SINGLE)
    """Strength of the pull to the reference; the target margin is 1 / (2 tau) nats per token, 5 for TRL's 0.1. Raise it
    to aim at a smaller margin."""


class Hinge(Section):
    """The hinge loss of TRL and of SPIN's code, relative to the reference."""

    name: Literal["hinge"] = "hinge"
    """Selects the loss max(0, 1 - beta * margin), which leaves pairs alone once they are far enough apart."""
    beta: Positive | list[Positive] = 0.1
    """Strength of the pull to the reference: a pair counts as far enough apart at a margin of 1 / beta nats. A list has one
    number per iteration. Raise it if iterates drift too far."""


class SLiC(Section):
    """SLiC's rank loss plus a likelihood term on the chosen answer. It uses no reference, so game.alpha has no effect on it."""

    name: Literal["slic"] = "slic"
    """Selects the loss max(0, delta - chosen + rejected) - lam * chosen, in log-probs of the policy alone."""
    delta: float = Field(default=1.0, gt=0, le=SINGLE)
    """Margin in nats per completion by which the chosen answer has to be likelier than the rejected one. Raise it to
    separate the two further."""
    lam: float = Field(default=0.5, ge=0, le=SINGLE)
    """Weight of the chosen answer's own log-prob, an SFT term that keeps the policy near the data; 0 turns it off."""


class SPPO(Section):
    """The squared loss of SPPO: each answer's log-ratio is regressed on how far its win-rate is from 1/2."""

    name: Literal["sppo"] = "sppo"
    """Selects the loss (log-ratio - eta * (win-rate - 1/2))^2, averaged over a pair's two answers. Needs a normalised
    reference: game.alpha 0 or 1, game.reference arithmetic or ema, or game.normalizer estimated."""
    eta: float = Field(default=1000.0, gt=0, le=SINGLE)
    """Step size in nats per unit of win-rate; the paper's is 1000. Lower it if iterates move too far in one iteration."""
    targets: Literal["soft", "hard", "head_to_head"] = "soft"
    """Win-rates that the loss aims at. soft: the oracle's estimates. hard: 1 for the better answer and 0 for the worse,
    however close the oracle found them. head_to_head: how likely the better answer beats the worse one, and 1 minus that,
    which is `sppo_single` of SPPO's code; other answers to the prompt then decide only which two are taken."""


class OwnLoss(Section):
    """A loss of your own, a function in a Python file. It runs only after --trust, and is tried before the game starts."""

    name: Literal["function"] = "function"
    """Selects a loss of your own."""
    function: PathText
    """Your loss as file.py:function, the file looked up next to the recipe, then in the working directory. Called with B pairs
    as algorithm.losses.Sides, and with `options`, it returns a float tensor (B,), each pair's loss from that pair alone. Change
    the file as you like: another content is another loss, the same one elsewhere is not. What it imports is not looked at."""
    options: dict[str, Option] = Field(default_factory=dict)
    """Keyword arguments of your loss, for instance {margin: 2.0}, in whatever unit it takes them. Change one here, not in the
    file, to vary it in a sweep."""


Loss = DPO | IPO | IPOLengthNormalized | Hinge | SLiC | SPPO | OwnLoss


def in_words(loss: dict[str, Any]) -> str:
    """{"name": "ipo", "tau": 0.1} as a title has it: ipo, tau 0.1. Of a list, as of [0.1, 5.0]: beta 0.1 then 5.0."""
    words = (f"{'' if name == 'name' else name + ' '}{_plain(value)}" for name, value in loss.items())
    return own_in_words(loss) or ", ".join(words)


def own_in_words(section: Any) -> str | None:
    """A section that names a function in somebody's file, as a title has it: mine.py:loss, margin 2.0. None: it names none."""
    function = section.get("function") if isinstance(section, dict) else None
    if not isinstance(function, str) or ":" not in function:
        return None
    options = section.get("options")
    rest = {name: value for name, value in section.items() if name not in ("name", "function", "options")}
    rest |= options if isinstance(options, dict) else {}
    return ", ".join([function.rpartition("/")[2], *(f"{name} {_plain(value)}" for name, value in rest.items())])


def _plain(value: Any) -> str:
    return " then ".join(map(str, value)) if isinstance(value, list) else str(value)
