"""From a recipe to a game that can be played on this machine: sources found, keys named, rows prepared."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.stages import Average, Draw, Inputs, Stage, Train, TrainSampler
from lowmem_spin.common.display import Display
from lowmem_spin.common.files import DamagedError, write_parquet
from lowmem_spin.common.keys import digest
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data import template_date
from lowmem_spin.data.prepare import prepare, prepared_key
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.rows import Rows
from lowmem_spin.data.sources import Source, Sources, base_key
from lowmem_spin.engines.base_check import check_base
from lowmem_spin.engines.foreign_code import code_of_model, code_of_oracle, key_of_judge
from lowmem_spin.engines.oracles.base import Oracle, OracleContext, open_oracle
from lowmem_spin.engines.pool import EngineChoices, EnginePool, GameEngines, choose_engines
from lowmem_spin.engines.row_check import check_rows, letters_notes
from lowmem_spin.engines.training.trial import check_optimizer, warmup_note
from lowmem_spin.engines.unquantized import Beside, measured_beside
from lowmem_spin.runner.game_rows import GameRows, Orders, asked_rows, prompts_again, split_rows
from lowmem_spin.runner.health import HeldOut, notices
from lowmem_spin.runner.own_functions import OwnFunctions, Said, ask, try_own_loss
from lowmem_spin.runner.task_metrics import TaskMetric
from lowmem_spin.store.memo import Tables
from lowmem_spin.store.store import Store
from lowmem_spin.store.table import Table


class RowsAsked(TypedDict):
    """What rows have to have, and where on the hub they are: arguments of data.formats.conversations."""

    with_rejected: bool
    needs_answers: str | None
    name: str | None


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe:
    """What a recipe names: model, data and engines, all known by their content; nothing is read yet."""

    recipe: Recipe
    recipe_dir: Path
    model: Source
    adapter: Source | None
    train: Source
    held: Source | None
    choices: EngineChoices
    oracle: Oracle | None
    own: OwnFunctions = field(default_factory=OwnFunctions)
    said: Said = field(default_factory=Said)  # by its own opponents and reference, as far as they were asked

    @property
    def base(self) -> str:
        """Key of the base policy."""
        return base_key(self.recipe, self.model, self.adapter)

    @cached_property
    def beside(self) -> Beside:
        """The unquantized base, if it is measured beside the one that plays."""
        return measured_beside(self.recipe, self.model, self.choices)

    @property
    def unquantized(self) -> "ResolvedRecipe | None":
        """The same on the unquantized base, if that is measured too."""
        return None if self.beside.recipe is None else replace(self, recipe=self.beside.recipe)

    @property
    def oracle_spec(self) -> dict[str, Any] | None:
        """What judges samples, if anything does."""
        return None if self.oracle is None else self.oracle.spec()

    @property
    def metric(self) -> TaskMetric | None:
        """What scores greedy answers, if it is not exact match."""
        asked = self.recipe.evaluation.metric
        return None if isinstance(asked, str) else TaskMetric(asked, self.own.metric)

    def data_sources(self) -> list[tuple[Source, str, str]]:
        """All the data that the game reads: (source, the recipe's field, split). Held-out rows of their own come second."""
        recipe = self.recipe
        held = [] if self.held is None else [(self.held, "evaluation.path", recipe.evaluation.split)]
        return [(self.train, "data.path", recipe.data.split), *held]

    def data_key(self, source: Source, split: str) -> str:
        data, template, asked = self.recipe.data, self.recipe.model.chat_template, self.asked_of(source)
        alone = asked["needs_answers"] is None
        return prepared_key(source, self.model, data, template, split, asked["with_rejected"], alone, asked["name"])

    def asked_of(self, source: Source) -> RowsAsked:
        """What the rows of one of the data sources have to have."""
        recipe, held_out = self.recipe, source is not self.train
        return {
            "with_rejected": recipe.game.algorithm == "offline" and not held_out,
            "needs_answers": recipe.needs_answers(held_out),
            "name": recipe.evaluation.name if held_out else recipe.data.name,
        }

    def file(self, source: Source, split: str) -> str:
        """Name of the store's file with these rows, prepared. Their labels and conversations are in it."""
        return digest([self.data_key(source, split), self.recipe.evaluation.category, "messages"])

    def data_files(self) -> list[str]:
        """Names of the store's data files, one for each of `data_sources`."""
        return [self.file(source, split) for source, _, split in self.data_sources()]

    def inputs(self, set_aside: int | str) -> Inputs:
        """What the game is played with, when so many of the rows are set aside to measure on."""
        key = self.data_key(self.train, self.recipe.data.split)
        if self.held is None:
            key = digest({"rows": key, "set aside": set_aside})
        own = {"loss": self.own.loss_identity(), "opponents": self.said.opponents, "reference": self.said.reference}
        if (beside := self.unquantized) is not None:
            generator, learner = self.choices.specs(beside.recipe)
            own["unquantized"] = {"base": beside.base, "generator": generator, "learner": learner}
        return Inputs(self.base, key, *self.choices.specs(self.recipe), self.oracle_spec, **own)

    def asked(self, trust: Trust, notify: Callable[[str], None]) -> "ResolvedRecipe":
        """The same with what its own opponents and reference say, which decides what the stages are. Only this runs them.

        Raises:
            InputError: they may not run, or what they say cannot be played; one line.
        """
        trust.check(self.own.deciding(), notify)
        return replace(self, said=ask(self.own, self.recipe.game))


@dataclass
class SharedResources:
    """What the games of a sweep have in common in this process: engines, stores, tables and rows are opened once."""

    engines: EnginePool = field(default_factory=EnginePool)
    stores: dict[str, Store] = field(default_factory=dict)
    rows: dict[Path, Rows] = field(default_factory=dict)
    tables: dict[str, dict[str, Table]] = field(default_factory=dict)  # by store
    orders: Orders = field(default_factory=Orders)
    splits: dict[tuple[Any, ...], tuple[list[int], HeldOut]] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)  # what the games of a sweep have in common is said once
    trust: Trust = field(default_factory=Trust)  # in code that comes with recipes and models

    def split(self, resolved: ResolvedRecipe, train: Rows, held: Rows | None = None) -> GameRows:
        """As split_rows; each file's rows are split once."""
        recipe = resolved.recipe
        name = (recipe.output.store, *resolved.data_files(), recipe.evaluation.health_prompts, recipe.evaluation.metric)
        if name not in self.splits:
            self.splits[name] = split_rows(recipe, train, held)
        pool, held_out = self.splits[name]
        measured = replace(held_out, oracle=resolved.oracle_spec, metric=resolved.metric)
        return GameRows(train=train, pool=pool, held=measured, orders=self.orders)

    def say(self, lines: Iterable[str], display: Display) -> None:
        """Show notices that no earlier game has shown."""
        for line in lines:
            if line not in self.said:
                self.said.add(line)
                display.log(line, "yellow")

    def store(self, root: str, display: Display) -> Store:
        if root not in self.stores:
            self.stores[root] = Store(Path(root), lambda line: display.log(line, "yellow"))
        return self.stores[root]


@dataclass(kw_only=True)
class OpenGame:
    """A recipe made concrete on this machine: its keys, rows and tables."""

    resolved: ResolvedRecipe
    inputs: Inputs
    stages: list[Stage]
    rows: GameRows
    tables: Tables
    engines: GameEngines
    folder: Path
    unquantized: Tables | None = None  # of the unquantized base, if it is measured too

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe

    @property
    def store(self) -> Store:
        return self.tables.store

    @property
    def signature(self) -> str:
        """The same for games that take open engines from each other."""
        choices = self.resolved.choices
        return " ".join(self.engines.signature(name) for name in (choices.generator, choices.learner))

    def name(self, policy: str) -> str:
        """What people call a policy."""
        made = {stage.policy: stage.name for stage in self.stages if isinstance(stage, Train | Average | TrainSampler)}
        return made.get(policy, "base")

    def positions(self, draw: Draw) -> list[int]:
        """The rows of a draw, in its order."""
        return self.rows.positions(draw)


def open_game(recipe: Recipe, recipe_dir: Path, display: Display, shared: SharedResources) -> OpenGame:
    """Find model and data, prepare the rows, and name every stage; no model is loaded."""
    store = shared.store(recipe.output.store, display)
    sources = Sources(recipe_dir, store.root / "sources.json", notice=store.notice)
    choices = choose_engines(recipe, store.root, display)
    resolved = resolve(recipe, sources, choices, lambda line: display.log(line, "yellow"))
    code = [*resolved.own.code(), *code_of_oracle(resolved.oracle), *code_of_model(recipe, resolved.model)]
    code += [*key_of_judge(recipe.game.oracle, "game.oracle"), *key_of_judge(recipe.evaluation.judge, "evaluation.judge")]
    shared.trust.check(code, lambda line: display.log(line, "yellow"))
    resolved = resolved.asked(shared.trust, lambda line: display.log(line, "yellow"))
    try_own_loss(resolved.own, resolved.said, recipe.game)
    notices_of_base = check_base(recipe, resolved.model, resolved.adapter, choices.machine.dtype)
    left_out = [] if resolved.beside.why_not is None else [resolved.beside.why_not]
    shared.say([*resolved.own.notices(), *notices_of_base, *warmup_note(recipe), *left_out], display)
    rows = prepare_rows(resolved, display, shared)
    inputs, stages = name_stages(resolved, rows.set_aside)
    shared.say(prompts_again(recipe, stages), display)
    return assemble(resolved, rows, inputs, stages, display, shared)


def resolve(recipe: Recipe, sources: Sources, choices: EngineChoices, notify: Callable[[str], None]) -> ResolvedRecipe:
    """Look up everything that a recipe names.

    Raises:
        InputError: something is not there; one line.
    """
    path = recipe.evaluation.path
    check_optimizer(recipe, choices.machine.device)
    return ResolvedRecipe(
        recipe=recipe,
        recipe_dir=sources.recipe_dir,
        model=sources.model(recipe.model.name_or_path, recipe.model.revision),
        adapter=sources.adapter(recipe.model.adapter) if recipe.model.adapter else None,
        train=sources.data(recipe.data.path, recipe.data.revision, "data.path"),
        held=None if path is None else sources.data(path, None, "evaluation.path"),
        choices=choices,
        oracle=open_oracle(
            recipe.game.oracle, OracleContext(sources, choices.machine, sources.memory.parent / "judge", notify)
        ),
        own=OwnFunctions.find(recipe, sources.recipe_dir),
    )


def prepare_rows(resolved: ResolvedRecipe, display: Display, shared: SharedResources) -> GameRows:
    """Read and render the data that the store does not have yet, and set rows aside to measure on.

    Raises:
        InputError: the data cannot be used; one line.
    """
    prepared = [_prepared(resolved, *data, display, shared) for data in resolved.data_sources()]
    for rows, (_, name, _) in zip(prepared, resolved.data_sources(), strict=True):
        check_rows(resolved.recipe, resolved.model, rows, name)
    train, *held = prepared
    known = len(shared.splits)
    rows = shared.split(resolved, train, *held)
    if (metric := rows.held.metric) is not None:
        shared.say(metric.check([rows.held.rows.completions[place] for place in rows.held.scored]), display)
    if len(shared.splits) > known:
        for line in notices(rows.train, rows.pool, rows.held, "evaluation.path" if held else "data.path"):
            display.log(line, "yellow")
    return rows


def _prepared(
    resolved: ResolvedRecipe, source: Source, name: str, split: str, display: Display, shared: SharedResources
) -> Rows:
    """Rows from memory, from the store, or read and rendered now."""
    recipe, store = resolved.recipe, shared.store(resolved.recipe.output.store, display)
    path = store.data(resolved.file(source, split))
    if path in shared.rows:
        return shared.rows[path]
    rows = read_rows(store, path)
    if rows is None:
        with display.start_up(f"reading {source.location}"):
            from lowmem_spin.engines.loading import load_tokenizer

            tokenizer = load_tokenizer(resolved.model, recipe.model.trust_remote_code)
            renderer, asked = Renderer.of(tokenizer, recipe), resolved.asked_of(source)
            shared.say(template_date.notes(tokenizer.get_chat_template(), recipe.data.template_date), display)
            table = prepare(source, recipe.data, name, split, recipe.evaluation.category, renderer, **asked)
            write_parquet(path, table)
            rows = Rows(table)
    shared.rows[path] = rows
    read, *reasons = rows.counts_lines(recipe.data)
    for line in (f"{source.location}: {read}", *reasons):
        display.log(f"{name}: {line}")
    shared.say(letters_notes(resolved.model, rows, name), display)
    return rows


def read_rows(store: Store, path: Path) -> Rows | None:
    """Prepared rows that the store has; damaged ones are set aside and count as missing."""
    table = store.read(path)
    try:
        return None if table is None else Rows(table)
    except DamagedError as error:
        store.set_aside(path, str(error))
        return None


def name_stages(resolved: ResolvedRecipe, set_aside: int | str) -> tuple[Inputs, list[Stage]]:
    """What the game is played with, when so many of the rows are set aside to measure on, and its stages in order."""
    inputs = resolved.inputs(set_aside)
    return inputs, list(play(resolved.recipe, inputs))


def assemble(
    resolved: ResolvedRecipe, rows: GameRows, inputs: Inputs, stages: list[Stage], display: Display, shared: SharedResources
) -> OpenGame:
    """Put tables, engines and folder to it; the engines open when they are first needed.

    Raises:
        InputError: there are too few rows for one of the stages.
    """
    recipe = resolved.recipe
    store = shared.store(recipe.output.store, display)
    weights_dir = store.root / "weights"
    engines = GameEngines(recipe, resolved.model, resolved.choices, weights_dir, display, shared.engines, resolved.oracle)
    tables = Tables(
        store=store,
        base=inputs.base,
        base_adapter=Path(resolved.adapter.location) if resolved.adapter else None,
        learner=inputs.learner,
        engines=engines,
        progress=display,
        generation_batch=recipe.runtime.generation_batch_size,
        scoring_tokens=recipe.scoring_tokens,
        opened=shared.tables.setdefault(recipe.output.store, {}),
        own_loss=resolved.own.loss,
    )
    for draw, field_asking in asked_rows(stages):  # too few rows for a later iteration is said now
        rows.positions(draw, field_asking)
    game = OpenGame(
        resolved=resolved,
        inputs=inputs,
        stages=stages,
        rows=rows,
        tables=tables,
        engines=engines,
        folder=Path(recipe.output.dir or "runs/game"),
    )
    if (beside := resolved.unquantized) is not None and inputs.unquantized is not None:
        known = {name: inputs.unquantized[name] for name in ("base", "learner")}
        game.unquantized = replace(tables, **known, engines=replace(engines, recipe=beside.recipe))
    return game
