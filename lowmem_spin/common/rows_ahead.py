"""The rows that a game has still to go through, by kind of work."""

from collections import defaultdict
from collections.abc import Mapping, Sequence


class RowsAhead:
    """Counts down the rows of the steps that lie ahead.

    Args:
        steps: rows of each step by kind, at most.
    """

    def __init__(self, steps: Sequence[Mapping[str, int]] = ()) -> None:
        self.steps = steps
        self._later: list[Mapping[str, int]] = []  # of all steps after each
        later: Mapping[str, int] = {}
        for step in reversed(steps):
            self._later.append(later)
            later = {kind: later.get(kind, 0) + step.get(kind, 0) for kind in {*later, *step}}
        self._later.reverse()
        self.begin(0)

    def begin(self, place: int) -> None:
        """The step of this place begins."""
        self._place, self._done = place, defaultdict[str, int](int)

    def count(self, kind: str, rows: int) -> None:
        """So many rows of the step under way are done, or need not be."""
        self._done[kind] += rows

    def left(self) -> dict[str, int]:
        """Rows by kind, at most, of the step under way and of all after it."""
        if not self.steps:
            return {}
        now, later = self.steps[self._place], self._later[self._place]
        return {kind: max(0, now.get(kind, 0) - self._done[kind]) + later.get(kind, 0) for kind in {*now, *later}}
