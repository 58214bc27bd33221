"""What a person's own functions say of a game: checked, and put where the built-in rules would be.

They are asked for names, not for keys: "base", and "iterate 0" for the first iterate. What they give are plain values that the
stages carry, and so in the key of all that they concern: whatever their source, the same mixtures are the same game.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from lowmem_spin.algorithm.pair_sources import Mixture
from lowmem_spin.algorithm.stages import Inputs
from lowmem_spin.common.errors import quoted, shortened
from lowmem_spin.config.bounds import SINGLE
from lowmem_spin.config.game_config import GameConfig, OwnReference
from lowmem_spin.config.loss_choices import OwnLoss

BASE = "base"
REFERENCE, BASE_LOGPS = "reference", "base"  # that a loss may read


def iterates_before(t: int) -> list[str]:
    """The names of the iterates that iteration t can play against, oldest first."""
    return [f"iterate {number}" for number in range(t)]


def read_mixture(given: Any, t: int) -> Mixture:
    """{name: weight} of iteration t, without zero weights, newest iterate first and the base last.

    Raises:
        ValueError: it is no such thing; one line.
    """
    names = [*reversed(iterates_before(t)), BASE]
    if not isinstance(given, Mapping):
        raise ValueError(f"gave {quoted(given)}; return {{policy: weight}}")
    for name, weight in given.items():
        if name not in names:
            raise ValueError(f"gave a weight to {quoted(name)}; the policies are {shortened(', '.join(reversed(names)))}")
        if not _is_number(weight) or not 0 <= weight <= SINGLE:
            raise ValueError(f"gave {name} the weight {quoted(weight)}; give a finite number that is not negative")
    found = {name: float(given[name]) for name in names if given.get(name)}
    if not found:
        raise ValueError("gave no policy a weight above 0; give at least one")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)  # numpy's are, too


def read_opponents(given: Any, t: int) -> Mixture:
    """As read_mixture, divided by their sum. Raises as it does."""
    found = read_mixture(given, t)
    total = math.fsum(found.values())
    return found if abs(total - 1) < 1e-9 else {name: weight / total for name, weight in found.items()}


def read_reference(given: Any, t: int, combine: str) -> Mixture:
    """As read_mixture; an arithmetic one has to be a distribution already. Raises as it does."""
    found = read_mixture(given, t)
    total = math.fsum(found.values())
    if combine == "arithmetic" and abs(total - 1) > 1e-6:
        raise ValueError(f"gave weights that sum to {total:g}; those of an arithmetic mixture have to sum to 1")
    return found


def in_place(said: Sequence[Mixture] | None, iterates: Sequence[str], base: str) -> Mixture:
    """What was said of this iteration, by the policies' keys.

    Raises:
        ValueError: nothing was.
    """
    t = len(iterates)
    if said is None or t >= len(said):
        raise ValueError(f"a function of the recipe's own returned nothing for iteration {t}")
    keys = dict(zip(iterates_before(t), iterates, strict=True)) | {BASE: base}
    return {keys[name]: weight for name, weight in read_mixture(said[t], t).items()}


def is_whole(reference: Mixture) -> bool:
    """Whether a reference is one policy as it is."""
    return list(reference.values()) == [1.0]


def reads(game: GameConfig, inputs: Inputs, what: str) -> bool:
    """Whether a loss of the recipe's own reads the reference, or the base's log-probs."""
    return isinstance(game.loss, OwnLoss) and what in (inputs.loss or {}).get("reads", ())


def check_inputs(game: GameConfig, inputs: Inputs) -> None:
    """Refuse the inputs of a game that was played without the functions that its recipe names now.

    Raises:
        ValueError: one line.
    """
    named = {"opponents": game.opponents is not None, "reference": isinstance(game.reference, OwnReference)}
    for field in (field for field, own in named.items() if own):
        said = getattr(inputs, field)
        if not isinstance(said, list) or len(said) != game.iterations:
            raise ValueError(f"inputs.{field} does not say what game.{field} gives in each iteration")
        for t, mixture in enumerate(said):
            read_mixture(mixture, t)
    if isinstance(game.loss, OwnLoss):
        known = inputs.loss if isinstance(inputs.loss, dict) else {}
        if not isinstance(known.get("content"), str) or not isinstance(known.get("reads"), list):
            raise ValueError("inputs.loss does not say which loss was played with")
