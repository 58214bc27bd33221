"""From a recipe to a game that can be played on this machine: sources found, keys named, rows prepared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.pair_sources import Draw
from lowmem_spin.algorithm.stages import Average, Inputs, Stage, Train, TrainSampler
from lowmem_spin.common.display import Display
from lowmem_spin.common.files import DamagedError
from lowmem_spin.common.parquet import ParquetTable, write_parquet
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data import template_date
from lowmem_spin.data.prepare import prepare
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.rows import Rows, take
from lowmem_spin.data.sources import Source, Sources
from lowmem_spin.engines.base_check import check_base
from lowmem_spin.engines.foreign_code import code_of_model, code_of_oracle, key_of_judge
from lowmem_spin.engines.passes import tokens_scored_together
from lowmem_spin.engines.pool import EnginePool, GameEngines, choose_engines
from lowmem_spin.engines.row_check import check_rows, letters_notes
from lowmem_spin.runner.game_rows import GameRows, Orders, asked_rows, prompts_again, split_rows
from lowmem_spin.runner.health import HeldOut, notices
from lowmem_spin.runner.own_functions import try_own_loss
from lowmem_spin.runner.resolved import ResolvedRecipe, name_stages, resolve
from lowmem_spin.store.memo import Tables
from lowmem_spin.store.store import Store
from lowmem_spin.store.table import Table


@dataclass
class SharedResources:
    """What the games of a sweep have in common in this process: engines, stores, tables and rows are opened once."""

    engines: EnginePool = field(default_factory=EnginePool)
    stores: dict[str, Store] = field(default_factory=dict)
    rows: dict[Path, Rows] = field(default_factory=dict)
    tables: dict[str, dict[str, Table]] = field(default_factory=dict)  # by store
    orders: Orders = field(default_factory=Orders)
    splits: dict[tuple[Any, ...], tuple[Sequence[int], HeldOut]] = field(default_factory=dict)
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
    resolved = check_resolved(resolved, display, shared)
    rows = prepare_rows(resolved, display, shared)
    inputs, stages = name_stages(resolved, rows.set_aside)
    return assemble(resolved, rows, inputs, stages, display, shared)


def check_resolved(resolved: ResolvedRecipe, display: Display, shared: SharedResources) -> ResolvedRecipe:
    """Refuse what no game can be played with, before rows are read, and say what a person should know of the rest.

    Returns:
        The same with its own opponents and reference, which are trusted by then.

    Raises:
        InputError: code that may not run, functions of the recipe's own or a base that cannot be used; one line.
    """
    recipe = resolved.recipe
    code = [*resolved.own.code(), *code_of_oracle(resolved.oracle), *code_of_model(recipe, resolved.model)]
    code += [*key_of_judge(recipe.game.oracle, "game.oracle"), *key_of_judge(recipe.evaluation.judge, "evaluation.judge")]
    shared.trust.check(code, lambda line: display.log(line, "yellow"))
    resolved = resolved.with_own_mixtures(shared.trust, lambda line: display.log(line, "yellow"))
    try_own_loss(resolved.own, resolved.mixtures, recipe.game)
    notices_of_base = check_base(recipe, resolved.model, resolved.adapter, resolved.choices.machine.dtype)
    left_out = [] if resolved.beside.why_not is None else [resolved.beside.why_not]
    shared.say([*resolved.notes(), *notices_of_base, *left_out], display)
    return resolved


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
        if rows.set_aside:
            every = f"{rows.set_aside:,} of {len(rows.train):,} rows"
            display.log(f"data.path: {every} are kept to measure on and not learned from, as there is no evaluation.path")
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
    rows = read_prepared_rows(store, path)
    if rows is None:
        with display.start_up(f"reading {source.location}"):
            from lowmem_spin.engines.loading import load_tokenizer

            tokenizer = load_tokenizer(resolved.model, recipe.model.trust_remote_code)
            renderer, needs = Renderer.of(tokenizer, recipe), resolved.asked_of(source)
            shared.say(template_date.notes(tokenizer.get_chat_template(), recipe.data.template_date), display)
            write_parquet(path, prepare(source, recipe.data, name, split, recipe.evaluation.category, renderer, **needs))
            rows = Rows(ParquetTable(path))
    shared.rows[path] = rows
    read, *reasons = rows.counts_lines(recipe.data)
    for line in (f"{source.location}: {read}", *reasons):
        display.log(f"{name}: {line}")
    shared.say(letters_notes(resolved.model, rows, name), display)
    return rows


def read_prepared_rows(store: Store, path: Path) -> Rows | None:
    """Prepared rows that the store has; damaged ones are set aside and count as missing."""
    table = store.read(path)
    try:
        return None if table is None else Rows(table)
    except DamagedError as error:
        store.set_aside(path, str(error))
        return None


def assemble(
    resolved: ResolvedRecipe, rows: GameRows, inputs: Inputs, stages: list[Stage], display: Display, shared: SharedResources
) -> OpenGame:
    """Put tables, engines and folder to it; the engines open when they are first needed.

    Raises:
        InputError: there are too few rows for one of the stages.
    """
    recipe = resolved.recipe
    shared.say(prompts_again(recipe, stages), display)
    store = shared.store(recipe.output.store, display)
    engines = GameEngines(
        recipe=recipe,
        model=resolved.model,
        choices=resolved.choices,
        weights_dir=store.root / "weights",
        display=display,
        pool=shared.engines,
        judge=resolved.oracle,
    )
    tables = Tables(
        store=store,
        base=inputs.base,
        base_adapter=Path(resolved.adapter.location) if resolved.adapter else None,
        learner=inputs.learner,
        engines=engines,
        progress=display,
        generation_batch=recipe.runtime.generation_batch_size,
        scoring_tokens=tokens_scored_together(recipe, resolved.choices.machine.device),
        opened=shared.tables.setdefault(recipe.output.store, {}),
        own_loss=resolved.own.loss,
    )
    for draw, field_asking in asked_rows(stages):  # too few rows for a later iteration is said now
        take(range(len(rows.pool)), draw, field_asking)
    game = OpenGame(
        resolved=resolved,
        inputs=inputs,
        stages=stages,
        rows=rows,
        tables=tables,
        engines=engines,
        folder=Path(recipe.output.dir or "runs/game"),
    )
    if (unquantized := resolved.unquantized) is not None and inputs.unquantized is not None:
        known = {name: inputs.unquantized[name] for name in ("base", "learner")}
        game.unquantized = replace(tables, **known, engines=replace(engines, recipe=unquantized.recipe))
    return game
