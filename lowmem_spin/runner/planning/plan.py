"""What a recipe, or a sweep of it, will compute: rows by stage, what is stored already, time. Nothing is run or loaded.

It reads config.json, manifests and the id columns of the store's tables, never torch. Before the data is prepared its
rows have no ids yet: counts are then upper bounds, as if no two draws had a prompt in common.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Average, Draw, Evaluate, Stage, Train, TrainSampler
from lowmem_spin.algorithm.touches import HeldOutPlaces, Places, Touch, touches
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, check_folder_place, read_parquet
from lowmem_spin.common.trust import Trust, UntrustedError
from lowmem_spin.config.grid import SweepPoint
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.formats import conversations
from lowmem_spin.data.prepare import RowCounts, count_rows
from lowmem_spin.data.rows import READ, Rows, take
from lowmem_spin.data.sources import Sources, has_token
from lowmem_spin.engines.base_check import check_base
from lowmem_spin.engines.known_models import CONFIGS, GATED
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.pool import EngineChoices, choose_engines
from lowmem_spin.engines.registry import gpu_engine, installed
from lowmem_spin.engines.row_check import check_rows, unread_rows_note
from lowmem_spin.engines.training.trial import warmup_note
from lowmem_spin.engines.unquantized import planned, proposal
from lowmem_spin.runner.claim import check_folder, check_owner
from lowmem_spin.runner.game_rows import asked_rows, prompts_again
from lowmem_spin.runner.open import ResolvedRecipe, SharedResources, name_stages, resolve
from lowmem_spin.runner.planning.calibration import WITHOUT_BFLOAT16, load_calibration
from lowmem_spin.runner.planning.counting import GAME_KINDS, Unit, Work
from lowmem_spin.runner.planning.estimates import Clock, Ids, Lengths, Sample, Stored, find_tokenizer
from lowmem_spin.runner.planning.total import Total, card


@dataclass(frozen=True)
class PlanLine:
    """Rows of one table or adapter: needed, stored, and how long the rest takes."""

    unit: Unit
    label: str
    stored: int
    seconds: float  # not a number: the model is not known yet
    memory: float  # bytes on a GPU, by engines/memory.py; not a number, too
    measured: bool  # the seconds, on this device, by `lowmem-spin bench`; else computed from FLOP

    @property
    def rows(self) -> int:
        return len(self.unit.places)

    @property
    def to_do(self) -> int:
        return self.rows - self.stored


@dataclass
class PlannedWork:
    """The whole of it."""

    points: list[str]
    found: ResolvedRecipe  # of the first point
    work: Work
    lines: list[PlanLine]
    exact: bool  # the data is prepared, so counts are of the very rows
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # what a run on this machine still lacks, beside time and memory
    gpu: str | None = None  # planned for, instead of for this machine

    def total(self) -> Total:
        """What it comes to; a judge's time, which nobody knows, is left out."""
        timed = [line.seconds for line in self.lines if line.unit.side != "judgements"]
        peaks = [line.memory for line in self.lines if not math.isnan(line.memory)]
        left = sum(line.to_do for line in self.lines)
        untimed = any(line.to_do for line in self.lines if line.unit.side == "judgements")
        machine, forced = self.found.choices.machine, self.found.recipe.runtime.device == "cpu"
        return Total(left, sum(timed), untimed, max(peaks, default=math.nan), machine, forced, self.gpu)

    def totals(self) -> dict[str, dict[str, Any]]:
        """By kind: rows of independent runs, of runs that share an empty store, stored, still to do, and its seconds."""
        found = {}
        without_judge = [kind for kind in GAME_KINDS if kind != "judge" or self.work.independent.get(kind)]
        for kind in dict.fromkeys([*without_judge, *(line.unit.kind for line in self.lines)]):
            lines = [line for line in self.lines if line.unit.kind == kind]
            timed = [line.seconds for line in lines if kind == "judge" or line.unit.side != "judgements"]
            found[kind] = {
                "independent": self.work.independent.get(kind, 0),
                "shared": sum(line.rows for line in lines),
                "stored": sum(line.stored for line in lines),
                "to_do": sum(line.to_do for line in lines),
                "seconds": _number(sum(timed)),
            }
        return found

    def record(self) -> dict[str, Any]:
        """The plan as JSON."""
        choices = self.found.choices
        stages = [
            {
                **{"kind": line.unit.kind, "label": line.label, "policy": line.unit.policy, "table": line.unit.table},
                **{"side": line.unit.side, "rows": line.rows, "stored": line.stored, "to_do": line.to_do},
                **{"seconds": _number(line.seconds), "measured": line.measured, "gpu_memory_bytes": _number(line.memory)},
            }
            for line in self.lines
        ]
        engines = {"generation": choices.generator, "training": choices.learner}
        machine = {"device": choices.machine.device, "dtype": choices.machine.dtype, "engines": engines}
        return {
            "points": self.points,
            **machine,
            "total": self.total().record(),
            "exact": self.exact,
            "notes": self.notes,
            "totals": self.totals(),
            "stages": stages,
        }


def _number(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(seconds, 1)


def plan(points: Sequence[SweepPoint], recipe_dir: Path, gpu: str | None = None, trust: Trust | None = None) -> PlannedWork:
    """Plan one game or all games of a sweep; a point of a sweep that cannot be played becomes a note.

    Args:
        points: the games.
        recipe_dir: the recipe's folder, from which its paths are looked for.
        gpu: one of calibration.PEAK, to plan for instead of for this machine.
        trust: in a recipe's own opponents and reference, which decide what the stages are; nothing else is run.

    Raises:
        InputError: no point can be played, for too few rows for instance.
        UntrustedError: there are such functions, and they may not run.
    """
    draft = _Draft(recipe_dir, gpu, trust or Trust())
    for point in points:
        try:
            draft.add(point)
        except InputError as error:
            if len(points) == 1 or isinstance(error, UntrustedError):
                raise
            _add(draft.notes, [f"{point.name} cannot be played: {error}"])
    if not draft.founds:
        raise InputError(f"no point can be played: {draft.notes[0]}")
    if not draft.exact:
        _add(
            draft.notes,
            [
                "the data is not loaded and tokenised yet, so row counts are maxima, nothing counts as stored, and "
                f"{draft.founds[0].recipe.evaluation.health_prompts} held-out rows are assumed"
            ],
        )
    names, lines = [point.name for point in points], draft.lines()
    return PlannedWork(names, draft.founds[0], draft.work, lines, draft.exact, draft.notes, draft.missing, gpu)


@dataclass
class _Draft:
    """A plan in the making. What several points have in common is looked at once."""

    recipe_dir: Path
    gpu: str | None
    trust: Trust
    work: Work = field(default_factory=Work)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    founds: list[ResolvedRecipe] = field(default_factory=list)
    exact: bool = True
    ids: Ids = field(default_factory=Ids)
    files: dict[Path, Rows | None] = field(default_factory=dict)
    shared: SharedResources = field(default_factory=SharedResources)  # of which only orders and splits are used
    drawn: dict[Draw, Places] = field(default_factory=dict)
    counted: dict[Path, RowCounts] = field(default_factory=dict)  # of files that are not prepared yet
    lengths: dict[Path, Lengths] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)  # of every training
    askers: dict[tuple[str, str], ResolvedRecipe] = field(default_factory=dict)  # who first asks for a table's side

    def add(self, point: SweepPoint) -> None:
        recipe, root = point.recipe, Path(point.recipe.output.store)
        check_folder_place(root, "output.store")
        sources = Sources(self.recipe_dir, root / "sources.json", patient=True, notice=lambda line: _add(self.notes, [line]))
        found = resolve(recipe, sources, _choices(recipe, root, self.gpu, self.notes, self.missing), lambda line: None)
        found = found.asked(self.trust, lambda line: _add(self.notes, [line]))
        _add(self.notes, [*found.own.notices(), *warmup_note(found.recipe)])
        _add(self.notes, [_unresolved(name, found) for name in sources.unresolved])
        if not found.model.resolved and found.model.location in CONFIGS:
            _add(self.notes, [f"{found.model.location}: memory and times are by its published shape"])
        if not found.model.local and found.model.location.startswith(GATED) and not has_token():
            _add(
                self.notes,
                [
                    f"{found.model.location} is gated: accept its licence on its hub page and set HF_TOKEN before `run`; no "
                    "token is set here"
                ],
            )
            if not found.model.resolved:
                _add(self.missing, [f"no HF_TOKEN, and {found.model.location} is gated"])
        _add(self.missing, [f"{name} is not here, and the hub cannot be reached" for name in sources.unresolved])
        _add(self.notes, check_base(recipe, found.model, found.adapter, found.choices.machine.dtype, runs_code=False))
        _add(self.notes, proposal(recipe, found.model, found.choices.machine.dtype))
        _add(self.notes, planned(found.beside, found.model, found.choices))
        if found.oracle is not None:
            _add(self.notes, ["the time that game.oracle takes to judge is not counted"])
        if any(value is not None for value in recipe.game.stop_when.model_dump().values()):
            _add(self.notes, ["game.stop_when may end a game earlier: this is the most that it takes"])
        loaded = [self._rows(path) for path in _files(found)]
        self.exact &= None not in loaded
        usable = self._usable(found)
        touched = self._touched(
            found, loaded, usable
        )  # whole before anything is counted: what cannot be played leaves no trace
        self.founds.append(found)
        for stage, touches_of_stage in touched:
            if isinstance(stage, Train | Average | TrainSampler):
                self.labels.setdefault(stage.policy, stage.name)
            if isinstance(stage, Train):
                self.epochs.setdefault(stage.policy, stage.settings["num_train_epochs"])
            if isinstance(stage, TrainSampler):
                self.epochs.setdefault(stage.policy, stage.passes)
            asker = found
            if isinstance(stage, Evaluate) and stage.role is Role.UNQUANTIZED:
                self.labels.setdefault(stage.policy, stage.name)
                asker = found.unquantized or found
            self.work.add(stage, touches_of_stage)
            for touch in touches_of_stage:
                self.askers.setdefault((touch.key, touch.side), asker)

    def _rows(self, path: Path) -> Rows | None:
        if path not in self.files:
            try:
                self.files[path] = Rows(read_parquet(path))
            except (FileNotFoundError, DamagedError):  # not there yet, or to be made again
                self.files[path] = None
        return self.files[path]

    def _usable(self, found: ResolvedRecipe) -> int | None:
        """How many rows there are to learn from, at most, if they are not prepared yet but here to be read.

        Raises:
            InputError: the data cannot be used; as a run refuses it, except for what only the tokenizer shows.
        """
        recipe, data = found.recipe, found.recipe.data
        for (source, name, split), path in zip(found.data_sources(), _files(found), strict=True):
            if path in self.counted or not source.local or self.files[path] is not None:
                continue
            rows = conversations(source, data, name, split, recipe.evaluation.category, **found.asked_of(source))
            sample = Sample()
            counts = self.counted[path] = count_rows(sample.passing(rows), f"{name}: {source.location!r}", data)
            tokenizer = find_tokenizer(found.model)
            self.lengths[path] = Lengths.sampled(recipe, sample, tokenizer)
            if tokenizer is None:
                _add(self.notes, ["the tokenizer is not here, or does not read: a token is taken to be four letters long"])
            read, *reasons = counts.lines(data)
            read = f"{source.location}: {read}, before prompt lengths are checked"
            _add(self.notes, [f"{name}: {line}" for line in (read, *reasons)])
        train = self.counted.get(_files(found)[0])
        if train is None or found.held is not None:
            return None if train is None else train.used
        return train.used - min(recipe.evaluation.health_prompts, train.used // 10)

    def _touched(
        self, resolved: ResolvedRecipe, loaded: Sequence[Rows | None], usable: int | None
    ) -> list[tuple[Stage, list[Touch]]]:
        recipe, present = resolved.recipe, [rows for rows in loaded if rows is not None]
        for rows, (_, name, _) in zip(loaded, resolved.data_sources(), strict=True):
            if rows is not None:
                check_rows(recipe, resolved.model, rows, name)
            elif resolved.model.resolved:
                _add(self.notes, unread_rows_note(recipe, resolved.model))
        if len(present) == len(loaded):
            rows = self.shared.split(resolved, *present)
            inputs, stages = name_stages(resolved, rows.set_aside)
            names = rows.held.rows.ids
            scored, health = (self.ids.of([names[n] for n in places]) for places in (rows.held.scored, rows.held.health))

            def places(draw: Draw) -> Places:
                if draw not in self.drawn:
                    self.drawn[draw] = self.ids.of([rows.train.ids[place] for place in rows.positions(draw)])
                return self.drawn[draw]
        else:
            inputs, stages = name_stages(resolved, f"{recipe.evaluation.health_prompts}, or less")
            scored = health = self.ids.block("held", recipe.evaluation.health_prompts)

            if usable is not None:
                for draw, asking in asked_rows(stages):
                    self._take(resolved, usable, draw, asking)

            def places(draw: Draw) -> Places:
                return self.ids.block((draw.data, draw.seed, draw.round), draw.start + draw.prompts)[draw.start :]

        _add(self.notes, prompts_again(recipe, stages))
        known = len(present) == len(loaded) or resolved.held is not None  # else the keys depend on how many rows are usable
        refused = _refused(recipe, stages if known else None)
        _add(self.notes, [f"a run is refused as it is: {why}" for why in refused])
        _add(self.missing, refused)
        held = HeldOutPlaces(scored, health)
        return [(stage, list(touches(stage, recipe, inputs, places, held))) for stage in stages]

    def _take(self, resolved: ResolvedRecipe, usable: int, draw: Draw, field: str) -> None:
        """Refuse too few rows as a run does, and say what else it would have said of the file by then.

        Raises:
            InputError: there are too few.
        """
        try:
            take(range(usable), draw, field)
        except InputError as error:
            counts = self.counted[_files(resolved)[0]]
            became = [reasons] if (reasons := counts.why_left_out(resolved.recipe.data)) else []
            became += [f"{counts.used - usable:,} held out"] if counts.used > usable else []
            read = ": ".join([f"{counts.number[READ]:,} rows read", *([", ".join(became)] if became else [])])
            raise InputError(f"{error} ({read}; prompt lengths are not checked yet)") from None

    def lines(self) -> list[PlanLine]:
        """A line for every unit of work, timed and looked up where the point that first asks for it would do it."""
        clocks: dict[int, Clock] = {}
        stores: dict[str, Stored] = {}
        found_lines = []
        for unit in self.work.distinct():
            found = self.askers[unit.table, unit.side]
            root = Path(found.recipe.output.store)
            stored = stores.setdefault(str(root), Stored(root, self.ids))
            if id(found) not in clocks:
                clocks[id(found)] = Clock(found, load_calibration(root), self.gpu)
            there = stored.count(unit)
            clock, label = clocks[id(found)], self.labels.get(unit.policy, "base")
            epochs = self.epochs.get(unit.policy, 1)
            lengths = replace(self._lengths(found), generated=clock.generated())
            seconds, measured = clock.seconds(unit, len(unit.places) - there, lengths, epochs)
            found_lines.append(PlanLine(unit, label, there, seconds, clock.memory(unit), measured))
        return found_lines

    def _lengths(self, found: ResolvedRecipe) -> Lengths:
        path = _files(found)[0]
        if path not in self.lengths:
            self.lengths[path] = Lengths.of(found.recipe, self.files[path])
        return self.lengths[path]


class _Planned(NamedTuple):
    recipe: Recipe
    stages: list[Stage]
    folder: Path


def _refused(recipe: Recipe, stages: list[Stage] | None) -> list[str]:
    """Why, if a run would refuse the folder; None: which policies it makes is not known yet, only whose the folder is."""
    folder = Path(recipe.output.dir or "runs/game")
    try:
        check_owner(folder) if stages is None else check_folder(_Planned(recipe, stages, folder))
    except InputError as error:
        return [str(error)]
    return []


def _files(found: ResolvedRecipe) -> list[Path]:
    return [Path(found.recipe.output.store) / "data" / f"{name}.parquet" for name in found.data_files()]


def _add(notes: list[str], more: list[str]) -> None:
    notes += [note for note in more if note not in notes]


def _unresolved(name: str, found: ResolvedRecipe) -> str:
    """What it means that a name could not be looked up on the hub."""
    needed = name == found.model.location and name not in CONFIGS
    effect = "memory and times are not known without it" if needed else "the estimate does not need it"
    return f"{name}: could not check its version on the hub (no connection); {effect}"


def _choices(recipe: Recipe, root: Path, gpu: str | None, notes: list[str], missing: list[str]) -> EngineChoices:
    """Where and with what: this machine, or a GPU that has every engine, for a recipe that only one can play too."""
    why = ""
    if gpu is None:
        try:
            choices = choose_engines(recipe, root, None)
        except InputError as error:
            why = str(error)
            _add(missing, [why])
        else:
            names = dict.fromkeys((choices.generator, choices.learner))
            _add(missing, [f"{name} is not installed" for name in names if not installed(name)])
            return choices
    generator = gpu_engine("generation").name if recipe.generation.engine == "auto" else recipe.generation.engine
    learner = gpu_engine("training").name if recipe.training.engine == "auto" else recipe.training.engine
    automatic = "float16" if gpu in WITHOUT_BFLOAT16 else "bfloat16"
    dtype = automatic if recipe.model.dtype == "auto" else recipe.model.dtype
    instead = f"planned for {gpu or 'a GPU'} with {generator} and {learner}, not for this machine"
    _add(notes, [f"{instead} ({why})" if why else instead])
    size, given = 0.0 if gpu is None else card(gpu)[1], recipe.runtime.vram_gb
    size = size if gpu is None or given is None else given * 1e9
    return EngineChoices(Machine("cuda", dtype, size, size), generator, learner)
