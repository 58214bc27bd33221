"""How trees become rows of a model: packed without padding, or padded where a model's attention cannot be packed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_spin.engines.training.attention import attending_to_trees
from lowmem_spin.engines.training.logps import LaidOutRows, States, collate, completion_logps
from lowmem_spin.engines.training.packing import pack
from lowmem_spin.engines.training.trees import Tree, cuts

NEAR = {"float32": 1e-3, "bfloat16": 0.02, "float16": 0.005}
"""How far log-probs of the two layouts are apart, relatively, by rounding alone."""


@dataclass(frozen=True)
class RowLayout:
    """One model's layout."""

    packs: bool
    pad: int  # the token that padding is made of
    attending: Callable[[Any], AbstractContextManager[None]] = attending_to_trees  # has the model attend to packed trees

    def rows(self, trees: Sequence[Tree]) -> LaidOutRows:
        """Trees as the model reads them; their answers stay in order."""
        if self.packs:
            return pack(trees)
        return collate([(tree.prompt, answer) for tree in trees for answer in tree.answers], self.pad)

    def training(self, model: Any) -> AbstractContextManager[None]:
        """Around a forward and its backward, in which layers may be computed once more."""
        return self.attending(model) if self.packs else nullcontext()

    def batches(self, trees: Sequence[Tree], tokens: int, at_most: int) -> list[range]:
        """What goes through the model at once: packed, at most `tokens` tokens; padded, at most `at_most` trees."""
        if self.packs:
            return cuts([tree.tokens for tree in trees], tokens)
        return cuts([0] * len(trees), 0, at_most)


def why_not_packed(model: Any, states: States, tokens: Sequence[int], pad: int, device: torch.device, dtype: str) -> str | None:
    """Why this model's rows have to be padded, if they have to.

    The log-probs of three short trees must be those of padded rows, and what is said of one answer must not depend on
    another one, bit for bit.

    Args:
        model: with nothing random in it, PEFT's wrapper taken off.
        states: how the engine computes the hidden states.
        tokens: some ordinary tokens of the model.
        pad: the token that padding is made of.
        device: the model's.
        dtype: that it computes in.
    """
    some = [tokens[place * 7 % len(tokens)] for place in range(1, 31)]
    others = [Tree(some[16:17], [some[17:20]]), Tree(some[20:], [some[:3], some[3:10]])]
    trees = [Tree(some[:9], [some[9:14], some[14:16]]), *others]
    changed = [Tree(some[:9], [some[10:15], some[14:16]]), *others]
    padded = RowLayout(packs=False, pad=pad).rows(trees).to(device)
    try:
        expected = completion_logps(model, padded, states)
        found, beside_another = (completion_logps(model, pack(rows).to(device), states) for rows in (trees, changed))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:  # a kernel that refuses is a RuntimeError
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not torch.allclose(found, expected, rtol=NEAR[dtype], atol=NEAR[dtype]):
        return f"log-probs of {expected.tolist()} become {found.tolist()}"
    if not torch.equal(found[1:], beside_another[1:]):
        return "an answer's log-probs depend on another answer"
    return None
