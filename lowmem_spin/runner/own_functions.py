"""A person's own loss, opponents, reference and metric: found in their files, asked where they may run, tried before
anything is computed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lowmem_spin.algorithm.own_functions import (
    BASE,
    BASE_LOGPS,
    REFERENCE,
    is_whole,
    iterates_before,
    read_opponents,
    read_reference,
)
from lowmem_spin.algorithm.pair_sources import Mixture
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.trust import Code
from lowmem_spin.config.game_config import GameConfig, OwnReference
from lowmem_spin.config.loss_choices import OwnLoss
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.foreign_code import code_of_functions
from lowmem_spin.engines.own_function import OwnFunction
from lowmem_spin.engines.training.trial import check_loss


@dataclass(frozen=True)
class OwnFunctions:
    """Those that a recipe names; of each, only its file has been read."""

    loss: OwnFunction | None = None
    opponents: OwnFunction | None = None
    reference: OwnFunction | None = None
    metric: OwnFunction | None = None

    @classmethod
    def find(cls, recipe: Recipe, recipe_dir: Path) -> Self:
        """Look them up.

        Raises:
            InputError: one is not there; one line.
        """
        game = recipe.game
        sections = {"game.loss": game.loss, "game.opponents": game.opponents, "game.reference": game.reference}
        sections["evaluation.metric"] = recipe.evaluation.metric
        named = {field: getattr(section, "function", None) for field, section in sections.items()}
        return cls(
            **{
                field.rpartition(".")[2]: OwnFunction.find(f"{field}.function", function, recipe_dir)
                for field, function in named.items()
                if function is not None
            }
        )

    def files(self) -> dict[str, str]:
        """{field: file.py:name from the root}"""
        every = (self.loss, self.opponents, self.reference, self.metric)
        return {one.field: one.place for one in every if one is not None}

    def code(self) -> list[Code]:
        """All that a game would run."""
        return code_of_functions([self.loss, self.opponents, self.reference, self.metric])

    def deciding(self) -> list[Code]:
        """What has to run to know the stages, for a plan too."""
        return code_of_functions([self.opponents, self.reference])

    def loss_identity(self) -> dict[str, Any] | None:
        """What of an own loss is in keys or decides about stages, without running it."""
        if self.loss is None:
            return None
        found = {
            REFERENCE: self.loss.shows("ref_chosen", "ref_rejected", "logps") or self.loss.hands_on(),
            BASE_LOGPS: self.loss.shows("base_chosen", "base_rejected"),
        }
        return {"content": self.loss.content, "reads": [what for what, read in found.items() if read]}

    def notices(self) -> list[str]:
        """What a person should know, each in one line."""
        if self.loss is None or REFERENCE in (self.loss_identity() or {})["reads"]:
            return []
        return [f"game.loss: {self.loss.place} reads no reference, so none is scored: game.reference and alpha have no effect"]


@dataclass(frozen=True)
class OwnMixtures:
    """What own opponents and an own reference have said of each iteration, by name; None where the recipe names no function."""

    opponents: list[Mixture] | None = None
    reference: list[Mixture] | None = None


def ask_own_functions(own: OwnFunctions, game: GameConfig) -> OwnMixtures:
    """Ask own opponents and an own reference for every iteration. This runs them: they have to be trusted by then.

    Raises:
        InputError: what one says cannot be played; one line.
    """
    opponents = reference = None
    if own.opponents is not None:
        opponents = _of_each(own.opponents, game, read_opponents)
        _check_pairing(own.opponents, opponents, game)
    if own.reference is not None:
        reference = _of_each(own.reference, game, lambda given, t: read_reference(given, t, game.combine))
        if game.loss.name in ("ipo_length_normalized", "sppo") and not _normalised(game, reference):
            raise InputError(
                f"{own.reference.field}: game.loss {game.loss.name} needs a normalised reference, and {own.reference.place} "
                "gives a geometric mixture of several policies, or a power of one; use combine arithmetic, or weight 1 for one"
            )
        if own.loss is not None and own.notices():
            raise InputError(
                f"{own.reference.field}: has no effect, as {own.loss.place} reads no reference; leave it out, or read "
                "sides.ref_chosen and sides.ref_rejected"
            )
    return OwnMixtures(opponents, reference)


def try_own_loss(own: OwnFunctions, mixtures: OwnMixtures, game: GameConfig) -> None:
    """Try an own loss on made-up pairs.

    Raises:
        InputError: it cannot be trained with; one line.
    """
    if own.loss is not None and isinstance(game.loss, OwnLoss):
        reads = (own.loss_identity() or {})["reads"]
        check_loss(own.loss, game.loss.options, reads, _normalised(game, mixtures.reference))


def _of_each(own: OwnFunction, game: GameConfig, read: Callable[[Any, int], Mixture]) -> list[Mixture]:
    """What a function says of each iteration; of the first there is nothing to say."""
    found: list[Mixture] = [{BASE: 1.0}]
    own.check_arguments("(iterates, base)", ["iterate 0"], BASE)
    for t in range(1, game.iterations):
        iterates = iterates_before(t)
        try:
            found.append(read(own.call(iterates, BASE), t))
        except ValueError as error:
            raise InputError(f"{own.field}: {own.place} {error} (iteration {t})") from None
    return found


def _check_pairing(own: OwnFunction, said: list[Mixture], game: GameConfig) -> None:
    unequal = [t for t, mixture in enumerate(said) if max(mixture.values()) - min(mixture.values()) > 1e-9]
    if game.pairing == "concatenate" and unequal:
        raise InputError(
            f"{own.field}: {own.place} gives unequal weights (iteration {unequal[0]}), which have no effect with game.pairing "
            "concatenate, where every opponent answers every prompt; give equal ones, or use game.pairing split"
        )


def _normalised(game: GameConfig, reference: list[Mixture] | None) -> bool:
    if game.normalised is not None:
        return game.normalised
    return isinstance(game.reference, OwnReference) and all(map(is_whole, reference or []))
