"""The game section of a recipe: who plays against whom, what judges, what holds the iterates back, and when it ends."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lowmem_spin.config.bounds import GAMES_LONG, ROWS
from lowmem_spin.config.choices import NoSampler, OracleChoice, Regularizer, Sampler, StopWhen, Weight, named
from lowmem_spin.config.loss_choices import DPO, Loss, own_in_words
from lowmem_spin.config.paths import PathText
from lowmem_spin.config.section import Section


def _infinite(value: Any) -> Any:
    return "inf" if isinstance(value, float) and math.isinf(value) else value


class OwnOpponents(Section):
    """Opponents by a function of your own in a Python file, instead of history, weights and base_weight."""

    function: PathText
    """Your function as file.py:function, the file looked up next to the recipe, then in the working directory. It is called
    with the names of the iterates so far, oldest first, and that of the base, and returns {policy: weight}; weights are divided
    by their sum. In the first iteration, where only the base is there, it is not called. Set it for opponents that history,
    weights and base_weight cannot express. It runs only after --trust, for a plan too."""


class OwnReference(Section):
    """A reference by a function of your own in a Python file, instead of alpha and reference_over."""

    name: Literal["function"] = "function"
    """Selects a reference of your own."""
    function: PathText
    """Your function as file.py:function. It is called as that of game.opponents and returns {policy: weight}: exponents, taken
    as they are whatever their sum, or for `combine` arithmetic shares that sum to 1. In the first iteration the reference is
    the base, and it is not called. Set it for references that alpha cannot express. It runs only after --trust."""
    combine: Literal["geometric", "arithmetic"] = "geometric"
    """How the policies become one reference. geometric: product of powers of their probabilities. arithmetic: average of their
    probabilities of a whole answer, which is normalised, as some losses need it."""


class GameConfig(Section):
    """The self-play game: who plays against whom, with which loss and reference, and when it ends."""

    algorithm: Literal["alpha-spin", "sppo", "offline"] = "alpha-spin"
    """Which answers an iterate learns from. alpha-spin: the data's against past iterates' (Algorithm 2 of arXiv 2404.04291;
    SPIN with alpha 1 and history 1). sppo: the best against the worst of the last iterate's own, as game.oracle judges them
    (arXiv 2405.00675). offline: the data's `chosen` against its `rejected`, as in ordinary DPO."""
    iterations: int = Field(default=3, ge=1, le=GAMES_LONG)
    """Number of iterates to train, one after the other (the paper's T + 1). Raise it while held-out scores still improve."""
    alpha: float = Field(default=0.95, ge=0, le=1)
    """Weight of the previous iterate in the reference, from 0 to 1; the base has the rest. 1 is SPIN; lower it if iterates
    drift away from the base."""
    reference: Literal["geometric", "arithmetic", "ema"] | OwnReference = "geometric"
    """How the reference combines its policies. geometric: product of powers of their probabilities, as in alpha-SPIN.
    arithmetic: average of their probabilities of a whole answer, so that an answer likely under either stays likely. ema: one
    policy, whose weights are the moving average alpha * previous iterate + (1 - alpha) * previous reference. Your own as
    {name: function, function: file.py:function}."""
    ema: Literal["svd", "exact"] = "svd"
    """For game.reference ema: how the average becomes one adapter. svd: the best approximation of rank training.lora.r.
    exact: no approximation, but a rank that grows with every iteration."""
    reference_over: Literal["previous", "history"] = "previous"
    """Which iterates have the weight alpha in the reference: the previous one alone, or all past ones in equal parts."""
    history: Annotated[Annotated[int, Field(ge=1, le=GAMES_LONG)] | Literal["inf"], BeforeValidator(_infinite)] = 2
    """Number of past iterates that play the opponent. 1 is SPIN; inf is all of them, which is fictitious play. Raise it if
    iterates unlearn what they had learned against earlier ones."""
    weights: Literal["algorithm", "distinct"] | list[Weight] = "algorithm"
    """Shares of the prompts that the last `history` policies answer. algorithm: equal, with the base in place of each iterate
    that does not exist yet. distinct: equal, with the base counted once. A list: one number per policy, newest first; those of
    missing iterates go to the base."""
    base_weight: float = Field(default=0.0, ge=0, le=1)
    """Share of prompts, from 0 to 1, that the base answers in every iteration; past iterates answer the rest. Raise it to keep
    easy opponents in the game."""
    opponents: OwnOpponents | None = None
    """Who answers the prompts, by a function of your own as {function: file.py:function}; null is by history, weights and
    base_weight."""
    sampler: Annotated[
        Sampler, Field(discriminator="name"), BeforeValidator(named("rejection"), json_schema_input_type=Sampler | str)
    ] = NoSampler()
    """What opponents' answers, and for sppo the judged ones, are sampled from. none: the iterate itself. Any other name: the
    iterate's geometric mixture with the base by alpha, as in the reference; the name says how that mixture is sampled."""
    mixture_alpha: float | None = Field(default=None, ge=0, le=1)
    """For game.sampler: weight of the iterate in the mixture that answers, from 0 to 1; null is alpha. Set it to mix answers
    otherwise than the reference, as IPO-MD does: alpha 0, and 1 minus the paper's beta here."""
    pairing: Literal["split", "concatenate"] = "split"
    """How prompts go to opponents. split: each prompt to one of them. concatenate: each prompt to all of them, which gives one
    pair per opponent, and fewer prompts for the same number of pairs."""
    pairs: Annotated[int, Field(ge=1, le=ROWS)] | list[Annotated[int, Field(ge=1, le=ROWS)]] = 50000
    """Pairs (rows) to train on in each iteration, counted after pairing; a list has one number per iteration. Lower it for
    a quick trial or a small data set."""
    init: Literal["previous", "base"] = "previous"
    """Weights from which an iterate's training starts: the previous iterate's, as in SPIN, or the base's, which trains
    every iterate afresh."""
    loss: Annotated[Loss, Field(discriminator="name"), BeforeValidator(named("dpo"), json_schema_input_type=Loss | str)] = DPO()
    """Loss that separates chosen from rejected answers: a name alone, or with its own options, for instance
    {name: dpo, beta: 0.1}. Options differ between losses, so set it as a whole: --set 'game.loss={name: ipo, tau: 0.1}'."""
    samples: int = Field(default=5, ge=2, le=1000)
    """For sppo: answers sampled per prompt, of which the best and the worst become a pair. More give a clearer pair and cost
    that much more generation and judging."""
    oracle: (
        Annotated[
            OracleChoice,
            Field(discriminator="name"),
            BeforeValidator(named("function"), json_schema_input_type=OracleChoice | str),
        ]
        | None
    ) = None
    """What judges answers: {name: function, function: exact_match}, {name: reward_model, model: ...}, {name: pairrm} or
    {name: judge, base_url: ..., model: ...}. sppo needs one; any other game then also reports win-rates."""
    win_rates: Literal["pairwise", "aggregated"] = "pairwise"
    """How win-rates follow from preferences. pairwise: their mean over the answers to the prompt, as in SPPO's paper.
    aggregated: by Bradley-Terry, as in SPPO's code, which makes any preference transitive; surer than 1e-6 counts as 1e-6, as
    it does not there."""
    normalizer: Literal["none", "estimated"] = "none"
    """For sppo with a geometric reference: estimated computes the reference's normalising constant from each prompt's samples,
    so that alpha may lie strictly between 0 and 1. none leaves it out."""
    regularizer: Regularizer = Regularizer()
    """RSPO's penalties for leaving the base, which are added to the sppo loss; all weights are 0 by default."""
    stop_when: StopWhen = StopWhen()
    """Bounds on drift, length and win-rate that end the game early; none is set by default."""

    @property
    def window(self) -> int | None:
        """`history` as a number, or None for all of it."""
        return None if self.history == "inf" else int(self.history)

    @property
    def answering_alpha(self) -> float:
        """Weight of the iterate in the mixture that game.sampler samples."""
        return self.alpha if self.mixture_alpha is None else self.mixture_alpha

    def notes(self) -> list[str]:
        """A line for each field that is set and changes nothing, though other values of the same sweep may need it."""
        if self.sampler.name == "none" or self.answering_alpha < 1:
            return []
        weight = "alpha" if self.mixture_alpha is None else "mixture_alpha"
        return [f"game.sampler: {self.sampler.name} mixes nothing with game.{weight} 1: iterates answer by themselves"]

    @property
    def combine(self) -> str:
        """How the reference's policies become one; see algorithm/references.py. The moving average is one policy."""
        if isinstance(self.reference, OwnReference):
            return self.reference.combine
        return "geometric" if self.reference == "ema" else self.reference

    @property
    def normalised(self) -> bool | None:
        """Whether the reference is a policy, its probabilities summing to 1; None: the function that it comes of will say."""
        if self.combine != "geometric" or self.reference == "ema" or self.normalizer == "estimated":
            return True
        if isinstance(self.reference, OwnReference):
            return None
        return self.alpha == 0 or self.iterations == 1 or self.all_previous  # at t = 0 the reference is the base

    @property
    def all_previous(self) -> bool:
        """Whether the reference is the previous iterate alone: it has all of alpha."""
        named = not isinstance(self.reference, OwnReference)
        return named and self.alpha == 1 and (self.reference_over == "previous" or self.iterations == 2)


def rules_in_words(game: dict[str, Any]) -> list[str]:
    """What a title has of a game's reference and opponents: ["alpha 0.95", "history 2"], or functions of one's own."""
    found = []
    for setting, section in (("alpha", game.get("reference")), ("history", game.get("opponents"))):
        own, name = own_in_words(section), "reference" if setting == "alpha" else "opponents"
        found.append(f"{setting} {game.get(setting)}" if own is None else f"{name} {own}")
    return found


def whole_policies(game: GameConfig) -> str | None:
    """What in a game needs answers sampled from the policies themselves, so that no temperature, top_p or top_k may apply."""
    asking = {
        f"game.sampler {game.sampler.name}": game.sampler.name != "none",
        "game.normalizer estimated": game.normalizer == "estimated",
        "game.regularizer.importance corrected": game.regularizer.importance == "corrected" and bool(game.regularizer.weights),
    }
    return next((name for name, asks in asking.items() if asks), None)
