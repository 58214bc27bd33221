"""The work of games in rows, counted before anything runs: what each stage touches, and what games have in common.

A row is one completion generated, one prompt's answers judged, one completion scored, or one pair trained on (once,
however many epochs). Rows are known by what names them in the store, so that what is counted as shared is what the store
will share. Which of several judged answers are scored is not known before they are judged: they count as a best and a worst
of their own, unless another game scores all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from lowmem_spin.algorithm.stages import Evaluate, Generate, Judge, Score, Stage, is_baseline
from lowmem_spin.algorithm.touches import Gathered, Places, Touch, each_sample

GAME_KINDS = ("generate", "judge", "score", "train")
MEASURING = {"evaluate": "held-out evaluation", "baseline": "plain SFT"}  # the other kinds, as people know them


def kind_of(stage: Stage) -> str:
    """What the work of a stage is counted as: one of GAME_KINDS, or of MEASURING."""
    match stage:
        case Generate():
            return "generate"
        case Judge():
            return "judge"
        case Score():
            return "score"
        case Evaluate():
            return "evaluate"
        case _:
            return "baseline" if is_baseline(stage) else "train"


def _two_of(among: Places, scored: Places | None) -> Places | None:
    """The best and the worst answer to each of the prompts all of whose answers another game has scored."""
    return None if scored is None else each_sample(among[0, np.isin(among, scored).all(0)], 2)


@dataclass
class Unit:
    """All rows that any game asks of one table and side, for the game itself or for measuring."""

    kind: str  # of the stages that ask, see kind_of
    table: str  # key of the table or of the adapter
    side: str  # see Touch
    policy: str
    places: Places
    among: Places | None = None


@dataclass(frozen=True)
class PlanLine:
    """Rows of one table or adapter: needed, stored, and how long the rest takes."""

    unit: Unit
    label: str
    missing: Places  # those of the unit's rows that are not stored
    seconds: float  # not a number: the model is not known yet
    memory: float  # bytes on a GPU, by engines/memory.py; not a number, too
    measured: bool  # the seconds, on this device, by `lowmem-spin bench`; else computed from FLOP

    @property
    def rows(self) -> int:
        return len(self.unit.places)

    @property
    def to_do(self) -> int:
        return len(self.missing)

    @property
    def untimed(self) -> bool:
        """Whether it is an oracle's work, and nobody knows how long that takes."""
        return self.unit.side == "judgements" and self.to_do > 0 and not self.measured

    @property
    def stored(self) -> int:
        return self.rows - self.to_do


@dataclass
class Work:
    """Games added up: what they would compute each alone, reusing nothing, and what they compute together."""

    independent: dict[str, int] = field(default_factory=dict)
    units: dict[tuple[str, str, str], Unit] = field(default_factory=dict)
    gathered: dict[tuple[str, str, str], Gathered] = field(default_factory=dict)  # the rows of each unit

    def add(self, stage: Stage, touched: Iterable[Touch]) -> None:
        """Add a stage and what it touches."""
        kind = kind_of(stage)
        for touch in touched:
            self.independent[kind] = self.independent.get(kind, 0) + len(touch.places)
            name = (kind, touch.key, touch.side)
            rows = self.gathered.setdefault(name, Gathered())
            rows.add(touch.places)
            unit = self.units.setdefault(name, Unit(kind, touch.key, touch.side, touch.policy, rows.places, touch.among))
            unit.places = rows.places

    def distinct(self) -> list[Unit]:
        """Every row once, in the order in which it is first asked for; one that a game needs is not counted as measuring."""
        games = {(unit.table, unit.side): unit.places for unit in self.units.values() if unit.kind in GAME_KINDS}
        units = []
        for unit in self.units.values():
            if unit.among is not None:
                known = _two_of(unit.among, games.get((unit.table, unit.side.partition("/")[0])))
            else:
                known = games.get((unit.table, unit.side)) if unit.kind not in GAME_KINDS else None
            units.append(unit if known is None else replace(unit, places=np.setdiff1d(unit.places, known, assume_unique=True)))
        return [unit for unit in units if len(unit.places)]
