"""What a recipe, or a sweep of it, will compute: rows by stage, what is stored already, time. Nothing is run or loaded.

It reads config.json, manifests and the id columns of the store's tables, never torch. Before the data is prepared its
rows have no ids yet: counts are then upper bounds, as if no two draws had a prompt in common.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lowmem_spin import data
from lowmem_spin.budget import read_shape
from lowmem_spin.calibration import Calibration, Kind, device_name
from lowmem_spin.calibration import load as load_calibration
from lowmem_spin.counting import GAME_KINDS, Held, Places, Unit, Work, needs
from lowmem_spin.data import Rows
from lowmem_spin.engines import Machine
from lowmem_spin.game import Draw, Stage, Train, play, sampling
from lowmem_spin.grid import Point
from lowmem_spin.opening import Found, find, split
from lowmem_spin.recipe import InputError, Recipe
from lowmem_spin.sources import Sources
from lowmem_spin.store import read_parquet
from lowmem_spin.tenants import Choices, choose


@dataclass
class Lengths:
    """Mean tokens of a row, for the time it takes."""

    prompt: float
    chosen: float
    generated: float  # at most

    @classmethod
    def of(cls, recipe: Recipe, rows: Rows | None) -> "Lengths":
        longest = float(recipe.generation.max_new_tokens)
        if rows is None or not len(rows):
            return cls(float(recipe.data.max_prompt_length), float(recipe.data.max_completion_length), longest)
        places = range(0, len(rows), max(1, len(rows) // 1000))
        prompt, chosen = (float(np.mean([len(side(place)) for place in places])) for side in (rows.prompt, rows.chosen))
        return cls(prompt, chosen, longest)


@dataclass(frozen=True)
class Line:
    """Rows of one table or adapter: needed, stored, and how long the rest takes."""

    unit: Unit
    label: str
    stored: int
    seconds: float  # not a number: the model is not known yet
    measured: bool  # on this device, by `lowmem-spin bench`; else computed from FLOP

    @property
    def rows(self) -> int:
        return len(self.unit.places)

    @property
    def to_do(self) -> int:
        return self.rows - self.stored


@dataclass
class Plan:
    """The whole of it."""

    points: list[str]
    found: Found  # of the first point
    work: Work
    lines: list[Line]
    exact: bool  # the data is prepared, so counts are of the very rows
    notes: list[str] = field(default_factory=list)

    def totals(self) -> dict[str, dict[str, Any]]:
        """By kind: rows of independent runs, of runs that share an empty store, stored, still to do, and its seconds."""
        found = {}
        for kind in dict.fromkeys([*GAME_KINDS, *(line.unit.kind for line in self.lines)]):
            lines = [line for line in self.lines if line.unit.kind == kind]
            found[kind] = {
                "independent": self.work.independent.get(kind, 0),
                "shared": sum(line.rows for line in lines),
                "stored": sum(line.stored for line in lines),
                "to_do": sum(line.to_do for line in lines),
                "seconds": _number(sum(line.seconds for line in lines)),
            }
        return found

    def record(self) -> dict[str, Any]:
        """The plan as JSON."""
        choices = self.found.choices
        stages = [
            {
                **{"kind": line.unit.kind, "label": line.label, "policy": line.unit.policy, "table": line.unit.table},
                **{"side": line.unit.side, "rows": line.rows, "stored": line.stored, "to_do": line.to_do},
                **{"seconds": _number(line.seconds), "measured": line.measured},
            }
            for line in self.lines
        ]
        engines = {"generation": choices.generator, "training": choices.learner}
        where = {"device": choices.where.device, "dtype": choices.where.dtype, "engines": engines}
        return {
            "points": self.points,
            **where,
            "exact": self.exact,
            "notes": self.notes,
            "totals": self.totals(),
            "stages": stages,
        }


def _number(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(seconds, 1)


def plan(points: Sequence[Point], beside: Path) -> Plan:
    """Plan one game or all games of a sweep.

    Raises:
        InputError: a point cannot be played, for too few rows for instance.
    """
    ids = _Ids()
    work, labels = Work(), {}
    lengths: dict[str, Lengths] = {}
    notes: list[str] = []
    exact = True
    founds: list[Found] = []
    for point in points:
        recipe, root = point.recipe, Path(point.recipe.output.store)
        sources = Sources(beside, root / "sources.json", patient=True)
        found = find(recipe, sources, _choices(recipe, root, notes))
        founds.append(found)
        _add(notes, [f"{name}: its revision is not resolved yet: the hub cannot be reached" for name in sources.unresolved])
        rows, held_rows, prepared = _rows(found, root)
        exact &= prepared
        stages, asked = _asked(found, rows, held_rows, prepared, ids)
        _label(stages, labels)
        for _, wanted in asked:
            work.add(wanted)
            for need in wanted:
                lengths.setdefault(need.table, Lengths.of(recipe, rows))
    if not exact:
        _add(notes, ["the data is not prepared yet: rows are upper bounds, and nothing of them counts as stored"])
    return Plan([point.name for point in points], founds[0], work, _lines(founds[0], work, ids, lengths, labels), exact, notes)


def _add(notes: list[str], more: list[str]) -> None:
    notes += [note for note in more if note not in notes]


def _choices(recipe: Recipe, root: Path, notes: list[str]) -> Choices:
    """Where and with what: this machine, or for a recipe that only a GPU can play, a GPU that has every engine."""
    try:
        return choose(recipe, root, None)
    except InputError as error:
        generator = "vllm" if recipe.generation.engine == "auto" else recipe.generation.engine
        learner = "unsloth" if recipe.training.engine == "auto" else recipe.training.engine
        dtype = "bfloat16" if recipe.model.dtype == "auto" else recipe.model.dtype
        _add(notes, [f"planned for a GPU with {generator} and {learner}, not for this machine ({error})"])
        return Choices(Machine("cuda", dtype), generator, learner)


class _Ids:
    """A number for every row; a block of fresh ones for rows that have no ids yet."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.blocks: dict[Any, int] = {}

    def of(self, ids: Sequence[str]) -> Places:
        return np.array([self.numbers.setdefault(name, len(self.numbers)) for name in ids], np.int64)

    def block(self, name: Any, count: int) -> Places:
        start = self.blocks.setdefault(name, 10**12 * (1 + len(self.blocks)))
        return np.arange(start, start + count)


def _rows(found: Found, root: Path) -> tuple[Rows | None, Rows | None, bool]:
    """(training rows, held-out rows, whether all are prepared)"""
    loaded: list[Rows | None] = []
    for name in found.data_files():
        try:
            loaded.append(Rows(read_parquet(root / "data" / f"{name}.parquet")))
        except (OSError, pa.ArrowInvalid):  # not there yet, or to be made again
            loaded.append(None)
    return loaded[0], loaded[1] if found.held is not None else None, None not in loaded


def _asked(found: Found, rows: Rows | None, held_rows: Rows | None, prepared: bool, ids: _Ids) -> tuple[list[Stage], Any]:
    recipe = found.recipe
    if prepared and rows is not None:
        pool, measured = split(recipe, rows, held_rows)
        inputs = found.inputs(pool, len(rows))
        pool_ids = [rows.ids[place] for place in pool]
        scored, health = (ids.of([measured.rows.ids[n] for n in places]) for places in (measured.scored, measured.health))

        def places(draw: Draw) -> Places:
            return ids.of([pool_ids[place] for place in data.draw(pool_ids, draw)])
    else:
        inputs = found.inputs([], 0)
        scored = health = ids.block("held", recipe.evaluation.health_prompts)

        def places(draw: Draw) -> Places:
            return ids.block((draw.data, draw.seed if draw.round is not None else None, draw.round), draw.prompts)

    greedy = sampling(recipe, inputs, greedy=True) if recipe.evaluation.metric == "exact_match" else None
    stages = list(play(recipe, inputs))
    held = Held(scored, health, greedy)
    return stages, needs(stages, places, held, sampling(recipe, inputs), inputs.base, inputs.learner)


def _label(stages: Sequence[Stage], labels: dict[str, str]) -> None:
    for stage in stages:
        if isinstance(stage, Train):
            labels.setdefault(stage.policy, stage.name)


def _lines(found: Found, work: Work, ids: _Ids, lengths: dict[str, Lengths], labels: dict[str, str]) -> list[Line]:
    root = Path(found.recipe.output.store)
    clock = _Clock(found, load_calibration(root))
    stored = _Stored(root, ids)
    lines = []
    for unit in work.distinct():
        there = stored.count(unit)
        seconds, measured = clock.seconds(unit, len(unit.places) - there, lengths[unit.table])
        lines.append(Line(unit, labels.get(unit.policy, "base"), there, seconds, measured))
    return lines


class _Stored:
    """How many of a unit's rows the store has."""

    def __init__(self, root: Path, ids: _Ids) -> None:
        self.root, self.ids = root, ids
        self.tables: dict[tuple[str, str], dict[str, list[str]]] = {}

    def count(self, unit: Unit) -> int:
        if unit.side == "pairs":
            return len(unit.places) if (self.root / "adapters" / unit.table / "manifest.json").exists() else 0
        kind, side = ("completions", "completions") if unit.side == "completions" else ("logps", unit.side)
        names = self._names(kind, unit.table).get(side, [])
        known = [self.ids.numbers[name] for name in names if name in self.ids.numbers]
        return int(np.isin(unit.places, np.array(known, np.int64)).sum())

    def _names(self, kind: str, table: str) -> dict[str, list[str]]:
        """Prompt ids in a table by side. A shard that does not read back is redone, so it does not count."""
        if (kind, table) not in self.tables:
            found: dict[str, list[str]] = {}
            for path in sorted((self.root / kind / table).glob("[!.]*.parquet")):
                try:
                    rows = read_parquet(path)
                except (OSError, pa.ArrowInvalid):
                    continue
                sides = ["completions"] * len(rows) if kind == "completions" else rows["completion"].to_pylist()
                for side, name in zip(sides, rows["prompt_id"].to_pylist(), strict=True):
                    found.setdefault(side.partition("/")[0], []).append(name)
            self.tables[kind, table] = found
        return self.tables[kind, table]


@dataclass
class _Clock:
    """Seconds by what bench measured on this device, or by FLOP."""

    found: Found
    calibration: Calibration

    def __post_init__(self) -> None:
        choices = self.found.choices
        self.device = device_name(choices.where.device)
        self.parameters: int | None = None
        if self.found.model.resolved:
            shape = read_shape(self.found.model)
            self.parameters = shape.body + shape.rest

    def seconds(self, unit: Unit, rows: int, lengths: Lengths) -> tuple[float, bool]:
        training, choices = self.found.recipe.training, self.found.choices
        kind: Kind = "generate" if unit.side == "completions" else "train" if unit.side == "pairs" else "score"
        per_row = {
            "generate": lengths.generated,
            "score": lengths.prompt + (lengths.chosen if unit.side == "chosen" else lengths.generated),
            "train": training.num_train_epochs * (2 * lengths.prompt + lengths.chosen + lengths.generated),
        }[kind]
        if unit.kind == "yardstick":
            per_row = training.num_train_epochs * (lengths.prompt + lengths.chosen)
        if self.parameters is None:
            return float("nan"), False
        engine = choices.generator if kind == "generate" else choices.learner
        tokens = round(rows * per_row)
        checkpointing = training.gradient_checkpointing
        return self.calibration.seconds(kind, tokens, self.parameters, self.device, engine, checkpointing)
