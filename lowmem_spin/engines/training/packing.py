"""Prompts with their answers as trees, laid out one after another in a single row without padding.

A tree is `prompt answer answer ...`: the prompt goes through the model once, whatever the number of its answers. Positions
restart: every answer continues at its prompt's end. Only attention mixes tokens, so only attention has to know which keys
a query may see (attention.py); for all else the row is a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowmem_spin.engines.training.trees import Tree

SHORT, TOGETHER = 128, 64  # keys of a segment that is attended to together with others, and how many of these there are


class Segment(NamedTuple):
    """Queries that follow each other in the row, and their keys: those of `prompt` and then their own, causally.

    The first answer of a tree and its prompt are one segment, whose prompt is empty.
    """

    start: int
    end: int
    prompt_start: int
    prompt_end: int

    @property
    def queries(self) -> int:
        return self.end - self.start

    @property
    def length(self) -> int:
        """Of its keys."""
        return self.prompt_end - self.prompt_start + self.queries

    @property
    def keys(self) -> np.ndarray:
        """Places of the keys in the row."""
        return np.r_[self.prompt_start : self.prompt_end, self.start : self.end]


class Group(NamedTuple):
    """N short segments whose attention is computed together: queries and keys are padded, but nothing else is."""

    queries: Tensor  # (N, longest): places in the row
    keys: Tensor  # (N, longest): places in the row
    asked: Tensor  # (N, longest queries), bool: whether a query is one of the segment's own
    held: Tensor  # (N, longest keys), bool: whether a key is


@dataclass
class PackedRow:
    """Trees in one row of T tokens, with A answers of P tokens in all; a segment for each answer."""

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T)
    predictors: Tensor  # (P,): places in the row whose states predict the answers' tokens
    labels: Tensor  # (P,): those tokens
    lengths: Tensor  # (A,): tokens of each answer
    keys: Tensor  # (K,): places of the segments' keys in the row, one segment after another
    query_ends: Tensor  # (A + 1,), int32: where the segments' queries end in the row; 0 comes first
    key_ends: Tensor  # (A + 1,), int32: where their keys end in `keys`
    segments: list[Segment]
    long: list[Segment]  # those that are attended to one by one
    groups: list[Group]  # the others
    order: Tensor  # (T,): where each of the row's tokens is among the queries of `long` and then of `groups`

    def to(self, device: torch.device) -> "PackedRow":
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        groups = [Group(*(tensor.to(device) for tensor in group)) for group in self.groups]
        return PackedRow(**moved, segments=self.segments, long=self.long, groups=groups)

    def states_before(self, hidden: Tensor) -> Tensor:
        """The states (P, width) that predict the answers' tokens, of all states (1, T, width)."""
        return hidden[0, self.predictors]


def pack(trees: Sequence[Tree]) -> PackedRow:
    """Lay trees out in one row, answers in the order in which they are given."""
    ids: list[Any] = []
    positions: list[Any] = []
    predictors: list[Any] = []
    segments: list[Segment] = []
    place = 0
    for tree in trees:
        first, size = place, len(tree.prompt)
        ids.append(tree.prompt)
        positions.append(np.arange(size))
        place += size
        for number, answer in enumerate(tree.answers):
            end = place + len(answer)
            predictors.append(np.r_[first + size - 1, place : end - 1])
            ids.append(answer)
            positions.append(np.arange(size, size + len(answer)))
            segments.append(Segment(place, end, first, first + size) if number else Segment(first, end, first, first))
            place = end
    answers = [answer for tree in trees for answer in tree.answers]
    keys = [segment.keys for segment in segments]
    long = [segment for segment in segments if segment.length > SHORT]
    groups = [
        _group(some)
        for whole in (True, False)  # segments that ask at every key, and those that ask at the last ones only
        for some in _runs([one for one in segments if one.length <= SHORT and (one.queries == one.length) == whole])
    ]
    queries = [np.arange(segment.start, segment.end) for segment in long]
    queries += [group.queries[group.asked].numpy() for group in groups]
    return PackedRow(
        input_ids=_row(ids)[None],
        position_ids=_row(positions)[None],
        predictors=_row(predictors),
        labels=_row(answers),
        lengths=torch.tensor([len(answer) for answer in answers]),
        keys=_row(keys),
        query_ends=torch.tensor([0, *(segment.end for segment in segments)], dtype=torch.int32),
        key_ends=torch.from_numpy(np.cumsum([0, *map(len, keys)]).astype(np.int32)),
        segments=segments,
        long=long,
        groups=groups,
        order=torch.from_numpy(np.argsort(np.concatenate(queries))),
    )


def _runs(segments: list[Segment]) -> list[list[Segment]]:
    """Segments of like length, side by side."""
    ordered = sorted(segments, key=lambda segment: (segment.length, segment.queries, segment.start))
    return [ordered[start : start + TOGETHER] for start in range(0, len(ordered), TOGETHER)]


def _group(segments: Sequence[Segment]) -> Group:
    queries, asked = _padded([np.arange(segment.start, segment.end) for segment in segments])
    keys, held = _padded([segment.keys for segment in segments])
    return Group(queries, keys, asked, held)


def _padded(places: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(N, longest) places, the first one of each for padding, and which of them are not padding."""
    lengths = np.array([len(some) for some in places])
    inside = np.arange(lengths.max()) < lengths[:, None]
    filled = np.repeat(np.array([some[0] for some in places])[:, None], lengths.max(), 1)
    filled[inside] = np.concatenate(places)
    return torch.from_numpy(filled.astype(np.int64)), torch.from_numpy(inside)


def _row(pieces: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(pieces).astype(np.int64))
