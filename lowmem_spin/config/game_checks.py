"""What in the game section of a recipe does not go together."""

from lowmem_spin.config.choices import GFlowNet
from lowmem_spin.config.game_config import GameConfig, OwnReference


def check_game(game: GameConfig) -> None:
    """Refuse what does not go together.

    Raises:
        ValueError: one line: field, value, remedy.
    """
    if isinstance(game.weights, list):
        if game.window is None:
            raise ValueError(
                "game.weights: a list needs a fixed number of opponents, but game.history is inf; set it to a number"
            )
        if len(game.weights) != game.window:
            raise ValueError(f"game.weights: {len(game.weights)} numbers for game.history {game.history}; give one per policy")
        if not sum(game.weights):
            raise ValueError("game.weights: all are 0; make at least one positive")
    if game.pairing == "concatenate" and (game.base_weight or isinstance(game.weights, list)):
        given = "base_weight" if game.base_weight else "weights"
        raise ValueError(
            f"game.{given}: has no effect with game.pairing concatenate, where every opponent answers every prompt; leave it "
            "out, or use game.pairing split"
        )
    _check_own(game)
    _check_reference(game)
    _check_algorithm(game)
    if game.stop_when.win_rate_below is not None and game.oracle is None:
        rate = game.stop_when.win_rate_below
        raise ValueError(f"game.stop_when.win_rate_below: {rate} needs an oracle that judges answers; set game.oracle")


def _check_own(game: GameConfig) -> None:
    """Refuse settings that functions of a person's own leave without effect, and own functions that have none."""
    instead = {"game.opponents": ["history", "weights", "base_weight"] if game.opponents is not None else []}
    if isinstance(game.reference, OwnReference):
        instead["game.reference"] = ["reference_over"] if game.sampler.name != "none" else ["alpha", "reference_over"]
    for own, names in instead.items():
        for name in names:
            value, default = getattr(game, name), GameConfig.model_fields[name].default
            if value != default:
                raise _without_effect(name, repr(value), f"{own} is a function of your own", "have the function do it")
    if isinstance(game.reference, OwnReference) and game.loss.name == "slic":
        raise ValueError("game.reference: a function has no effect, as game.loss slic uses no reference; leave it out")
    if game.opponents is not None and game.algorithm != "alpha-spin":
        raise _without_opponents(game, "opponents", "a function")


def _check_reference(game: GameConfig) -> None:
    if game.reference == "ema" and game.reference_over == "history":
        raise ValueError(
            "game.reference_over: 'history', but game.reference ema already averages all past iterates; use previous"
        )
    if game.loss.name in ("ipo_length_normalized", "sppo") and game.normalised is False:
        own = game.algorithm == "sppo" and game.sampler.name == "none"  # the answers to estimate from are the iterate's
        anywhere = "game.loss ipo works with any" if game.loss.name == "ipo_length_normalized" else ""
        anywhere = anywhere or ("game.normalizer estimated allows any" if own else "")
        over = " over history" if game.reference_over == "history" else ""
        raise ValueError(
            f"game.loss.name: {game.loss.name} works only with game.alpha 0{' or 1' * (not over)}, or with game.reference "
            f"arithmetic, not with game.alpha {game.alpha}{over}" + (f"; {anywhere}" if anywhere else "")
        )
    combined = "ema" if game.reference == "ema" else game.combine
    if game.normalizer == "estimated" and (game.algorithm != "sppo" or combined != "geometric"):
        raise ValueError(
            f"game.normalizer: estimated needs game.algorithm sppo and game.reference geometric, not {game.algorithm} and "
            f"{combined}; use none"
        )
    if game.normalizer == "estimated" and game.sampler.name != "none":
        raise ValueError(
            f"game.normalizer: estimated needs answers of the iterate itself, not of its mixture by game.sampler "
            f"{game.sampler.name}; use none with game.loss ipo, whose constant cancels, or game.sampler none"
        )
    if game.regularizer.weights and game.loss.name != "sppo":
        kinds = ", ".join(game.regularizer.weights)
        raise ValueError(
            f"game.regularizer: {kinds} can only be added to the sppo loss, not to {game.loss.name}; use game.loss sppo"
        )
    if game.regularizer.importance == "corrected" and not (
        game.algorithm == "sppo" and game.all_previous and game.sampler.name == "none"
    ):
        raise ValueError(
            "game.regularizer.importance: corrected needs answers sampled from the reference itself; use game.algorithm sppo, "
            "game.alpha 1, game.reference_over previous and game.sampler none"
        )
    if game.loss.name == "ipo" and game.loss.targets == "soft" and game.algorithm != "sppo":
        raise ValueError(
            f"game.loss.targets: soft needs the win-rates of answers that an oracle has judged, and {game.algorithm} has none; "
            "use hard, or game.algorithm sppo"
        )


def _check_algorithm(game: GameConfig) -> None:
    opponents = {"history": (1, 2), "weights": ("algorithm",), "base_weight": (0,), "pairing": ("split",)}
    if game.algorithm != "alpha-spin":
        for name, free in opponents.items():
            if (value := getattr(game, name)) not in free:
                raise _without_opponents(game, name, repr(value))
        if game.sampler.name != "none" and game.algorithm == "offline":
            why, remedy = "in offline no policy answers", "use game.algorithm alpha-spin or sppo"
            raise _without_effect("sampler", game.sampler.name, why, remedy)
    if game.algorithm == "sppo" and game.oracle is None:
        raise ValueError("game.oracle: missing, but sppo needs one to judge answers; set it, for instance to {name: function}")
    if game.mixture_alpha is not None and game.sampler.name == "none":
        why = "game.sampler none mixes no answers"
        raise _without_effect("mixture_alpha", repr(game.mixture_alpha), why, "use game.sampler rejection")
    if isinstance(game.sampler, GFlowNet) and game.sampler.batch_size % game.sampler.samples:
        samples, sequences = game.sampler.samples, game.sampler.batch_size
        raise ValueError(
            f"game.sampler.samples: {samples} does not divide game.sampler.batch_size {sequences}, the sequences of a step; "
            "set either so that it does"
        )
    if game.sampler.name != "none" and game.reference_over == "history":
        raise ValueError(
            f"game.sampler: {game.sampler.name} samples the mixture of one iterate with the base, not of the whole history; "
            "use game.reference_over previous"
        )


def _without_effect(field: str, value: str, why: str, remedy: str) -> ValueError:
    """What a field of a game is refused with that would change nothing."""
    return ValueError(f"game.{field}: {value} has no effect, as {why}; leave it out, or {remedy}")


def _without_opponents(game: GameConfig, field: str, value: str) -> ValueError:
    return _without_effect(field, value, f"{game.algorithm} has no opponents", "use game.algorithm alpha-spin")
