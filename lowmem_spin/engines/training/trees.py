"""Prompts with all their answers, and how many of them go through the model at once. Needs no torch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lowmem_spin.common.files import Tokens


class Tree(NamedTuple):
    """A prompt and its answers."""

    prompt: Tokens
    answers: Sequence[Tokens]

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return len(self.prompt) + sum(map(len, self.answers))


def cuts(sizes: Sequence[int], most: int, at_most: int | None = None) -> list[range]:
    """Cut a list of trees into runs, in order.

    Args:
        sizes: tokens of each tree.
        most: tokens of a run; a tree that has more is a run of its own.
        at_most: trees of a run, if they are limited too.
    """
    runs: list[range] = []
    start = total = 0
    for place, size in enumerate(sizes):
        if place > start and (total + size > most or place - start == at_most):
            runs.append(range(start, place))
            start, total = place, 0
        total += size
    return [*runs, range(start, len(sizes))] if sizes else []


def by_prompt(rows: Sequence[tuple[Tokens, Tokens]], most: int) -> list[tuple[Tree, list[int]]]:
    """(prompt, completion) rows as trees, each with its rows' numbers; prompts are in the order of their first row.

    A prompt whose answers have more than `most` tokens with it becomes several trees.
    """
    numbers: dict[bytes, list[int]] = {}
    for number, (prompt, _) in enumerate(rows):
        numbers.setdefault(np.asarray(prompt, np.int32).tobytes(), []).append(number)
    trees = []
    for alike in numbers.values():
        prompt = rows[alike[0]][0]
        for run in cuts([len(rows[number][1]) for number in alike], most - len(prompt)):
            mine = alike[run.start : run.stop]
            trees.append((Tree(prompt, [rows[number][1] for number in mine]), mine))
    return trees
