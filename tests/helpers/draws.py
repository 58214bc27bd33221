"""A draw from ids alone, as games make it."""

from collections.abc import Sequence

from lowmem_spin.algorithm.pair_sources import Draw
from lowmem_spin.data.rows import shuffled, take


def draw_rows(ids: Sequence[str], draw: Draw) -> list[int]:
    """The places of `draw.prompts` rows, without replacement, in their shuffled order."""
    return take(shuffled(ids, draw.seed, draw.round), draw)
