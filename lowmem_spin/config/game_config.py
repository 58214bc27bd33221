"""The game section of a recipe: who plays against whom, what judges, what holds the iterates back, and when it ends."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lowmem_spin.config.choices import DPO, Loss, NoSampler, Oracle, Regularizer, Sampler, StopWhen, Weight, named
from lowmem_spin.config.section import Section


def _infinite(value: Any) -> Any:
    return "inf" if isinstance(value, float) and math.isinf(value) else value


class Game(Section):
    """Who plays against whom, and what holds the iterates back."""

    algorithm: Literal["alpha-spin", "sppo", "offline"] = "alpha-spin"
    """alpha-spin: the data's answers against past iterates', Algorithm 2 of arXiv 2404.04291; with alpha 1 and history 1
    it is SPIN. sppo: the better of the last iterate's own answers against the worse, as game.oracle judges them
    (arXiv 2405.00675). offline: the data's `chosen` answers against its `rejected` ones, as in ordinary DPO."""
    iterations: int = Field(default=3, ge=1)
    """How many iterates to train (the paper's T + 1)."""
    alpha: float = Field(default=0.95, ge=0, le=1)
    """Weight of the previous iterate in the reference; the base has the rest. 1 is SPIN."""
    reference: Literal["geometric", "arithmetic", "ema"] = "geometric"
    """How the reference mixes its policies: geometric multiplies powers of their probabilities, as alpha-SPIN does.
    arithmetic adds their probabilities of a whole answer: near it where either policy is likely. ema is one policy whose
    weights are a moving average: alpha of the previous iterate's and the rest of the reference's before it."""
    ema: Literal["svd", "exact"] = "svd"
    """The moving average as one adapter: the best one of training.lora.r, or the exact one, whose rank grows."""
    reference_over: Literal["previous", "history"] = "previous"
    """Who has alpha in the reference: the previous iterate, or all past iterates in equal parts."""
    history: Annotated[Annotated[int, Field(ge=1)] | Literal["inf"], BeforeValidator(_infinite)] = 2
    """How many past iterates play the opponent. inf: all of them, which is fictitious play."""
    weights: Literal["algorithm", "distinct"] | list[Weight] = "algorithm"
    """Before `history` iterates exist, count the base once per missing one (algorithm) or only once (distinct). Or a
    number for each of the `history` last policies, the newest first; those of missing iterates go to the base."""
    base_weight: float = Field(default=0.0, ge=0, le=1)
    """Share of the prompts that the base always answers; the past iterates have the rest."""
    sampler: Annotated[
        Sampler, Field(discriminator="name"), BeforeValidator(named("rejection"), json_schema_input_type=Sampler | str)
    ] = NoSampler()
    """Who answers for an iterate: none is the iterate itself, the others its geometric mixture with the base by alpha, which
    is the policy that the next iterate is held to."""
    pairing: Literal["split", "concatenate"] = "split"
    """split: each prompt is answered by one opponent. concatenate: by every opponent, one row for each."""
    pairs: Annotated[int, Field(ge=1)] | list[Annotated[int, Field(ge=1)]] = 50000
    """Rows to train on per iteration, after pairing; or a list with one number per iteration."""
    init: Literal["previous", "base"] = "previous"
    """Where an iterate's weights start."""
    loss: Annotated[Loss, Field(discriminator="name"), BeforeValidator(named("dpo"), json_schema_input_type=Loss | str)] = DPO()
    """What tells the data's answers from the opponents': {name: dpo, beta: 0.1}, {name: ipo, tau: 0.1}, ... or a name
    alone. Each loss has options of its own, so change it whole: --set 'game.loss={name: ipo, tau: 0.1}'."""
    samples: int = Field(default=5, ge=2)
    """Of sppo: answers to each prompt, of which the best and the worst are learned from."""
    oracle: (
        Annotated[Oracle, Field(discriminator="name"), BeforeValidator(named("function"), json_schema_input_type=Oracle | str)]
        | None
    ) = None
    """What judges answers: {name: function, function: exact_match}, {name: reward_model, model: ...}, {name: pairrm},
    {name: judge, base_url: ..., model: ...}. sppo needs one; any other game is then measured by win-rates too."""
    win_rates: Literal["pairwise", "aggregated"] = "pairwise"
    """How win-rates come of preferences: pairwise is the paper's mean; aggregated is its code's, which makes any preference
    transitive."""
    normalizer: Literal["none", "estimated"] = "none"
    """Of sppo: estimated makes a geometric mixture a distribution, its constant estimated from the answers of each prompt;
    alpha may then be between 0 and 1."""
    regularizer: Regularizer = Regularizer()
    """RSPO's penalties for leaving the base, for the sppo loss."""
    stop_when: StopWhen = StopWhen()
    """When the game ends early."""

    @property
    def window(self) -> int | None:
        """`history` as a number, or None for all of it."""
        return None if self.history == "inf" else int(self.history)


def check(game: Game) -> None:
    """Refuse what does not go together.

    Raises:
        ValueError: one line: field, value, remedy.
    """
    if isinstance(game.pairs, list) and len(game.pairs) != game.iterations:
        raise ValueError(f"game.pairs: has {len(game.pairs)} numbers for {game.iterations} iterations; give one each")
    if isinstance(game.weights, list):
        if game.window is None or len(game.weights) != game.window:
            raise ValueError(f"game.weights: {len(game.weights)} numbers for history {game.history}; give one for each policy")
        if not sum(game.weights):
            raise ValueError("game.weights: all are 0; give at least one policy a part")
    if game.pairing == "concatenate" and (game.base_weight or isinstance(game.weights, list)):
        given = "base_weight" if game.base_weight else "weights"
        raise ValueError(
            f"game.{given}: with pairing concatenate every opponent answers every prompt; leave it out, or use split"
        )
    _check_reference(game)
    _check_algorithm(game)
    if game.stop_when.win_rate_below is not None and game.oracle is None:
        raise ValueError("game.stop_when.win_rate_below: nothing judges here; give game.oracle")


def _check_reference(game: Game) -> None:
    if game.reference == "ema" and game.reference_over == "history":
        raise ValueError("game.reference_over: 'history', but ema is over all past iterates by itself; use previous")
    alone = game.alpha == 1 and (game.reference_over == "previous" or game.iterations == 2)  # one iterate has all of alpha
    one = alone or game.alpha == 0 or game.iterations == 1  # at t = 0 the reference is the base
    normalised = one or game.reference != "geometric" or game.normalizer == "estimated"
    if game.loss.name in ("ipo_length_normalized", "sppo") and not normalised:
        remedy = "use ipo" if game.loss.name == "ipo_length_normalized" else "use game.normalizer estimated"
        over = " over history" if game.reference_over == "history" else ""
        raise ValueError(
            f"game.loss.name: {game.loss.name} needs a normalised reference, which alpha {game.alpha}{over} does not "
            f"give (its constant cancels only between sums); {remedy}, or game.alpha 0{' or 1' * (not over)}"
        )
    if game.normalizer == "estimated" and (game.algorithm != "sppo" or game.reference != "geometric"):
        raise ValueError("game.normalizer: estimated from a policy's own answers to a prompt, for geometric references of sppo")
    if game.regularizer.weights and game.loss.name != "sppo":
        kinds = ", ".join(game.regularizer.weights)
        raise ValueError(f"game.regularizer: {kinds} is added to the sppo loss, not to {game.loss.name}; use game.loss sppo")
    if game.regularizer.importance == "corrected" and not (game.algorithm == "sppo" and alone):
        raise ValueError(
            "game.regularizer.importance: corrected needs answers of the reference itself; use game.algorithm sppo, alpha 1 "
            "and reference_over previous"
        )


def whole_policies(game: Game) -> str | None:
    """What in a game takes answers for draws from whole policies, so that no temperature or top_p may change them."""
    asking = {
        game.sampler.name: game.sampler.name != "none",
        "game.normalizer estimated": game.normalizer == "estimated",
        "game.regularizer.importance corrected": game.regularizer.importance == "corrected" and bool(game.regularizer.weights),
    }
    return next((name for name, asks in asking.items() if asks), None)


def _check_algorithm(game: Game) -> None:
    opponents = {"history": (1, 2), "weights": ("algorithm",), "base_weight": (0,), "pairing": ("split",)}
    if game.algorithm != "alpha-spin":
        for name, free in opponents.items():
            if getattr(game, name) not in free:
                raise ValueError(f"game.{name}: {game.algorithm} has no opponents; leave it out, or use alpha-spin")
        if game.sampler.name != "none":
            raise ValueError(f"game.sampler: {game.algorithm} has no opponents to sample; leave it out, or use alpha-spin")
    if game.algorithm == "sppo" and game.oracle is None:
        raise ValueError("game.oracle: sppo needs something that judges answers; for instance {name: function}")
    if game.sampler.name != "none" and game.reference_over == "history":
        raise ValueError("game.sampler: draws from mixtures of one iterate with the base; use game.reference_over previous")
