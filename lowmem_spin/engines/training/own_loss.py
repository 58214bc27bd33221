"""A loss of a person's own: what it returns is checked wherever it is called, and it is tried before a game begins."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Concatenate

import torch
from torch import Tensor

from lowmem_spin.algorithm.losses import Sides
from lowmem_spin.algorithm.own_functions import BASE_LOGPS, REFERENCE
from lowmem_spin.common.errors import InputError
from lowmem_spin.engines.own_function import OwnFunction

Loss = Callable[Concatenate[Sides, ...], Tensor]
REFERENCES, BASES = ("ref_chosen", "ref_rejected"), ("base_chosen", "base_rejected")
# Made up: a pair that is won, one that is lost by far, and one about even; whoever judges has judged, too.
PAIRS = {
    "chosen": [-12.0, -60.0, -7.5],
    "rejected": [-20.0, -25.0, -7.0],
    "ref_chosen": [-14.0, -28.0, -7.6],
    "ref_rejected": [-15.0, -31.0, -7.2],
    "chosen_lengths": [8, 21, 5],
    "rejected_lengths": [12, 17, 4],
    "chosen_win_rates": [0.9, 0.6, 1.0],
    "rejected_win_rates": [0.2, 0.5, 0.0],
    "head_to_head": [0.8, 0.55, 1.0],
    "base_chosen": [-16.0, -27.0, -7.9],
    "base_rejected": [-14.5, -29.0, -6.9],
}


def opened(own: OwnFunction) -> Loss:
    """The loss, which refuses to return anything but a finite float tensor (B,) for finite log-probs."""

    def loss(sides: Sides, **options: Any) -> Tensor:
        try:
            given = own.call(sides, **options)
        except InputError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                raise error.__cause__ from None  # no fault of the loss
            raise
        pairs = len(sides.chosen)
        if not isinstance(given, Tensor) or given.shape != (pairs,) or not given.is_floating_point():
            got = (
                f"a tensor {tuple(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
            )
            raise InputError(f"{own.field}: {own.place} gave {got} for {pairs} pairs; return a float tensor ({pairs},)")
        wrong = ~torch.isfinite(given) & torch.isfinite(sides.chosen) & torch.isfinite(sides.rejected)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            of = {name: f"{getattr(sides, name)[row].item():.4g}" for name in ("chosen", "rejected", *REFERENCES)}
            values = ", ".join(f"{name} {value}" for name, value in of.items())
            raise InputError(f"{own.field}: {own.place} gave {given[row].item()} for a pair with {values}; guard against it")
        return given

    return loss


def try_loss(own: OwnFunction, options: dict[str, Any], reads: Collection[str], normalised: bool) -> None:
    """Call a loss with made-up pairs, as a training will.

    Args:
        own: the loss.
        options: the recipe's.
        reads: what of a pair its source shows it to read; the rest is not known to it in a training either.
        normalised: whether the reference is a policy, its probabilities summing to 1.

    Raises:
        InputError: it cannot be trained with; one line.
    """
    arguments = ", ".join(["sides", *(f"{name}={value!r}" for name, value in options.items())])
    sides = _sides([0, 1, 2])
    own.check_arguments(f"({arguments})", sides, **options)
    loss, begins = opened(own), f"{own.field}: {own.place}"
    losses = loss(sides, **options)
    for row in range(len(losses)):
        if not _like(loss(_sides([row]), **options), losses[[row]]):
            raise InputError(f"{begins} gives a pair another loss beside other pairs; compute each row from that row alone")
    _check_gradient(losses, sides, begins)
    if not _like(loss(_shifted(sides), **options), losses) and not normalised:
        raise InputError(
            f"{begins} needs a normalised reference: it changes when both sides of one get a constant more, which is all that "
            "a geometric mixture leaves open; use an arithmetic reference, or game.alpha 0 or 1"
        )
    unseen = [*(REFERENCES if REFERENCE not in reads else ()), *(BASES if BASE_LOGPS not in reads else ())]
    blank = replace(sides, **{name: torch.zeros_like(sides.chosen) for name in unseen})
    other = replace(sides, **{name: torch.full_like(sides.chosen, -3.0) for name in unseen})
    if not _like(loss(blank, **options), loss(other, **options)):
        raise InputError(
            f"{begins} reads {unseen[0].partition('_')[0]}_chosen or _rejected unseen; write sides.{unseen[0]} out"
        )


def _sides(rows: list[int]) -> Sides:
    """Made-up pairs, in a training's types; gradients flow to the policy's log-probs."""
    made = {name: torch.tensor([values[row] for row in rows]) for name, values in PAIRS.items()}
    return Sides(**{name: values.requires_grad_(name in ("chosen", "rejected")) for name, values in made.items()})


def _shifted(sides: Sides) -> Sides:
    """The same with another constant in each pair's reference."""
    more = torch.tensor([2.0, -3.0, 5.0])
    return replace(sides, **{name: getattr(sides, name) + more for name in REFERENCES})


def _like(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def _check_gradient(losses: Tensor, sides: Sides, begins: str) -> None:
    remedy = "use sides.chosen and sides.rejected, and detach neither"
    if not losses.requires_grad:
        raise InputError(f"{begins} passes no gradient to the policy's log-probs; {remedy}")
    grads = torch.autograd.grad(losses.sum(), [sides.chosen, sides.rejected], allow_unused=True)
    found = [grad for grad in grads if grad is not None]
    if not any(grad.any() for grad in found):
        raise InputError(f"{begins} passes no gradient to the policy's log-probs; {remedy}")
    if not all(torch.isfinite(grad).all() for grad in found):
        raise InputError(f"{begins} passes a gradient that is not finite to the policy's log-probs; guard against it")
