"""A plan in the making: each game of it looked up, its stages counted, and its lines timed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lowmem_spin.algorithm.pair_sources import Draw
from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Average, Evaluate, Stage, Train, TrainSampler
from lowmem_spin.algorithm.touches import HeldOutPlaces, Places, Touch, touches
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, check_folder_place
from lowmem_spin.common.parquet import ParquetTable
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.grid import SweepPoint
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.formats import conversations
from lowmem_spin.data.prepare import RowCounts, count_rows
from lowmem_spin.data.rows import READ, Rows, take
from lowmem_spin.data.sources import Sources, has_token
from lowmem_spin.engines.base_check import check_base
from lowmem_spin.engines.known_models import CONFIGS, GATED
from lowmem_spin.engines.row_check import check_rows, unread_rows_note
from lowmem_spin.engines.unquantized import planned, proposal
from lowmem_spin.runner.claim import check_folder, check_owner
from lowmem_spin.runner.game_rows import asked_rows, prompts_again
from lowmem_spin.runner.open import SharedResources
from lowmem_spin.runner.planning.calibration import Calibration, load_calibration
from lowmem_spin.runner.planning.choices import planned_choices
from lowmem_spin.runner.planning.counting import PlanLine, Work
from lowmem_spin.runner.planning.estimates import Clock, Ids, Lengths, Sample, Stored, find_tokenizer
from lowmem_spin.runner.resolved import ResolvedRecipe, name_stages, resolve


@dataclass
class Draft:
    """A plan in the making. What several points have in common is looked at once."""

    recipe_dir: Path
    gpu: str | None
    trust: Trust
    work: Work = field(default_factory=Work)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    founds: list[ResolvedRecipe] = field(default_factory=list)
    played: list[list[tuple[Stage, list[Touch]]]] = field(default_factory=list)  # of each of them, with what it touches
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
    sources: dict[Path, Sources] = field(default_factory=dict)  # by store; each looks a name up once

    def note(self, lines: Iterable[str]) -> None:
        """Say what is not said yet."""
        _add(self.notes, lines)

    def _say(self, line: str) -> None:
        self.note([line])

    def add(self, point: SweepPoint) -> None:
        """Look a game up and count what its stages touch.

        Raises:
            InputError: it cannot be played; nothing of it is counted then.
        """
        found = self._resolved(point)
        loaded = [self._rows(path) for path in found.prepared_files]
        self.exact &= None not in loaded
        usable = self._usable(found)
        touched = self._touched(found, loaded, usable)  # all before anything is counted
        self.founds.append(found)
        self.played.append(touched)
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

    def _resolved(self, point: SweepPoint) -> ResolvedRecipe:
        """What a recipe names, with a note on whatever a person should know of it."""
        recipe, root = point.recipe, Path(point.recipe.output.store)
        check_folder_place(root, "output.store")
        if root not in self.sources:
            self.sources[root] = Sources(self.recipe_dir, root / "sources.json", patient=True, notice=self._say)
        sources = self.sources[root]
        known = len(sources.unresolved)
        choices, notes, missing = planned_choices(recipe, root, self.gpu)
        self.note(notes)
        _add(self.missing, missing)
        found = resolve(recipe, sources, choices, lambda line: None)
        found = found.with_own_mixtures(self.trust, self._say)
        dtype = found.choices.machine.dtype
        self.note(found.notes())
        self.note([_unresolved(name, found) for name in sources.unresolved[known:]])
        if not found.model.resolved and found.model.location in CONFIGS:
            self.note([f"{found.model.location}: memory and times are by its published shape"])
        if not found.model.local and found.model.location.startswith(GATED) and not has_token():
            before = "accept its licence on its hub page and set HF_TOKEN before `run`; no token is set here"
            self.note([f"{found.model.location} is gated: {before}"])
            if not found.model.resolved:
                _add(self.missing, [f"no HF_TOKEN, and {found.model.location} is gated"])
        _add(self.missing, [f"{name} is not here, and the hub cannot be reached" for name in sources.unresolved[known:]])
        self.note(found.model.once(f"check {_apart(found)}", lambda: _checked_base(found)))
        self.note(proposal(recipe, found.model, dtype))
        self.note(planned(found.beside, found.model, found.choices))
        if any(value is not None for value in recipe.game.stop_when.model_dump().values()):
            self.note(["game.stop_when may end a game earlier: this is the most that it takes"])
        return found

    def _rows(self, path: Path) -> Rows | None:
        if path not in self.files:
            try:
                self.files[path] = Rows(ParquetTable(path))
            except (FileNotFoundError, DamagedError):  # not there yet, or to be made again
                self.files[path] = None
        return self.files[path]

    def _usable(self, found: ResolvedRecipe) -> int | None:
        """How many rows there are to learn from, at most; None if they are not here.

        Raises:
            InputError: the data cannot be used; as a run refuses it, except for what only the tokenizer shows.
        """
        recipe, data = found.recipe, found.recipe.data
        for (source, name, split), path in zip(found.data_sources(), found.prepared_files, strict=True):
            if path in self.counted or not source.local or self.files[path] is not None:
                continue
            rows = conversations(source, data, name, split, recipe.evaluation.category, **found.asked_of(source))
            sample = Sample()
            counts = self.counted[path] = count_rows(sample.passing(rows), f"{name}: {source.location!r}", data)
            tokenizer = find_tokenizer(found.model)
            self.lengths[path] = Lengths.sampled(recipe, sample, tokenizer)
            if tokenizer is None:
                self.note(["the tokenizer is not here, or does not read: a token is taken to be four letters long"])
            read, *reasons = counts.lines(data)
            read = f"{source.location}: {read}, before prompt lengths are checked"
            self.note([f"{name}: {line}" for line in (read, *reasons)])
        used = self._used(found.prepared_files[0])
        if used is None or found.held is not None:
            return used
        return used - min(recipe.evaluation.health_prompts, used // 10)

    def _used(self, path: Path) -> int | None:
        """Rows of a data file, at most; None if it is not here."""
        if (prepared := self.files[path]) is not None:
            return len(prepared)
        return self.counted[path].used if path in self.counted else None

    def _held_out(self, found: ResolvedRecipe) -> tuple[int, int]:
        """(rows that are scored, those of them that health is measured on), at most."""
        asked, used = found.recipe.evaluation.health_prompts, self._used(found.prepared_files[-1])
        if used is None:
            self.note([f"{asked} held-out rows are assumed"])
            return asked, asked
        health = min(asked, used if found.held is not None else used // 10)
        return (used if found.held is not None else health), health

    def _touched(
        self, resolved: ResolvedRecipe, loaded: Sequence[Rows | None], usable: int | None
    ) -> list[tuple[Stage, list[Touch]]]:
        recipe, present = resolved.recipe, [rows for rows in loaded if rows is not None]
        for path, (_, name, _) in zip(resolved.prepared_files, resolved.data_sources(), strict=True):
            if (rows := self.files[path]) is not None:
                checked = partial(check_rows, recipe, resolved.model, rows, name)
                resolved.model.once(f"check {name} {path} {_apart(resolved)}", checked)
            elif resolved.model.resolved:
                self.note(unread_rows_note(recipe, resolved.model))
        if len(present) == len(loaded):
            rows = self.shared.split(resolved, *present)
            inputs, stages = name_stages(resolved, rows.set_aside)
            for draw, asking in asked_rows(stages):
                rows.positions(draw, asking)
            names = rows.held.rows.ids
            scored, health = (self.ids.of([names[n] for n in places]) for places in (rows.held.scored, rows.held.health))

            def places(draw: Draw) -> Places:
                if draw not in self.drawn:
                    self.drawn[draw] = self.ids.of([rows.train.ids[place] for place in rows.positions(draw)])
                return self.drawn[draw]
        else:
            inputs, stages = name_stages(resolved, f"{recipe.evaluation.health_prompts}, or less")
            scored, health = (self.ids.block("held", count) for count in self._held_out(resolved))

            if usable is not None:
                for draw, asking in asked_rows(stages):
                    self._take(resolved, usable, draw, asking)

            def places(draw: Draw) -> Places:
                return self.ids.block((draw.data, draw.seed, draw.round), draw.start + draw.prompts)[draw.start :]

        self.note(prompts_again(recipe, stages))
        # else the keys depend on how many rows are usable, or are those of another machine, which has another folder
        known = self.gpu is None and (len(present) == len(loaded) or resolved.held is not None)
        refused = _refused(recipe, stages if known else None)
        self.note([f"a run is refused as it is: {why}" for why in refused])
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
            counts = self.counted.get(resolved.prepared_files[0])
            if counts is None:  # they are prepared
                raise
            became = [reasons] if (reasons := counts.why_left_out(resolved.recipe.data)) else []
            became += [f"{counts.used - usable:,} held out"] if counts.used > usable else []
            read = ": ".join([f"{counts.number[READ]:,} rows read", *([", ".join(became)] if became else [])])
            raise InputError(f"{error} ({read}; prompt lengths are not checked yet)") from None

    def lines(self) -> list[PlanLine]:
        """A line for every unit of work, timed and looked up where the point that first asks for it would do it."""
        clocks: dict[int, tuple[Clock, Lengths]] = {}
        calibrations: dict[Path, Calibration] = {}
        stores: dict[Path, Stored] = {}
        found_lines = []
        for unit in self.work.distinct():
            found = self.askers[unit.table, unit.side]
            root = Path(found.recipe.output.store)
            stored = stores.setdefault(root, Stored(root, self.ids))
            if id(found) not in clocks:
                if root not in calibrations:
                    calibrations[root] = load_calibration(root)
                timed = Clock(found, calibrations[root], self.gpu)
                clocks[id(found)] = timed, replace(self._lengths(found), generated=timed.generated())
            missing = stored.missing(unit)
            (clock, lengths), label = clocks[id(found)], self.labels.get(unit.policy, "base")
            epochs = self.epochs.get(unit.policy, 1)
            seconds, measured = clock.seconds(unit, len(missing), lengths, epochs)
            found_lines.append(PlanLine(unit, label, missing, seconds, clock.memory(unit), measured))
        return found_lines

    def _lengths(self, found: ResolvedRecipe) -> Lengths:
        path = found.prepared_files[0]
        if path not in self.lengths:
            self.lengths[path] = Lengths.of(found.recipe, self.files[path])
        return self.lengths[path]


def _apart(found: ResolvedRecipe) -> str:
    """All that is to be played but what sweeps vary most, which is nothing to the base: most points have it in common."""
    varied = {"game": {"alpha", "history", "loss"}, "seed": True, "output": True}
    return f"{found.adapter} {found.choices} {found.recipe.model_dump_json(exclude=varied)}"


def _checked_base(found: ResolvedRecipe) -> list[str]:
    return check_base(found.recipe, found.model, found.adapter, found.choices.machine.dtype, runs_code=False)


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


def _add(notes: list[str], more: Iterable[str]) -> None:
    notes += [note for note in dict.fromkeys(more) if note not in notes]


def _unresolved(name: str, found: ResolvedRecipe) -> str:
    """What it means that a name could not be looked up on the hub."""
    effect = "; the estimate does not need it"
    if name == found.model.location and name not in CONFIGS:
        effect = "; memory and times are not known without it"
    elif name == getattr(found.recipe.game.oracle, "model", None) and not found.judging("bfloat16"):
        effect = ""  # plan.py says what is not known of an oracle
    return f"{name}: could not check its version on the hub (no connection){effect}"
