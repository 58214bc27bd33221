"""From a recipe to a game that can be played on this machine: sources found, keys named, rows prepared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.stages import Average, Draw, Inputs, Stage, Train, TrainSampler
from lowmem_spin.common.display import Display
from lowmem_spin.common.files import write_parquet
from lowmem_spin.common.keys import digest
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.prepare import prepare, prepared_key
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.rows import Rows, fixed_sample, hold_out, shuffled, take
from lowmem_spin.data.sources import Source, Sources, base_key
from lowmem_spin.engines.oracles.base import Oracle, OracleContext, open_oracle
from lowmem_spin.engines.pool import EngineChoices, EnginePool, GameEngines, choose_engines
from lowmem_spin.runner.health import HeldOut
from lowmem_spin.store.memo import Tables
from lowmem_spin.store.store import Store, Table


@dataclass(frozen=True)
class ResolvedRecipe:
    """What a recipe names: model, data and engines, all known by their content; nothing is read yet."""

    recipe: Recipe
    model: Source
    adapter: Source | None
    train: Source
    held: Source | None
    choices: EngineChoices
    oracle: Oracle | None
    recipe_dir: Path  # the recipe's folder

    @property
    def base(self) -> str:
        """Key of the base policy."""
        return base_key(self.recipe.model, self.model, self.adapter)

    def data_key(self, source: Source, split: str) -> str:
        recipe, with_rejected = self.recipe, self.has_rejected(source)
        return prepared_key(source, self.model, recipe.data, recipe.model.chat_template, split, with_rejected)

    def has_rejected(self, source: Source) -> bool:
        """Whether these rows need the data's worse answers too."""
        return self.recipe.game.algorithm == "offline" and source is self.train

    def file(self, source: Source, split: str) -> str:
        """Name of the store's file with these rows, prepared. Their labels and conversations are in it."""
        return digest([self.data_key(source, split), self.recipe.evaluation.category, "messages"])

    def data_files(self) -> list[str]:
        """Names of all the store's data files that the game reads."""
        recipe = self.recipe
        held = [] if self.held is None else [self.file(self.held, recipe.evaluation.split)]
        return [self.file(self.train, recipe.data.split), *held]

    def inputs(self, set_aside: int | str) -> Inputs:
        """What the game is played with, when so many of the rows are set aside to measure on."""
        key = self.data_key(self.train, self.recipe.data.split)
        if self.held is None:
            key = digest({"rows": key, "set aside": set_aside})
        oracle = None if self.oracle is None else self.oracle.spec()
        return Inputs(self.base, key, *self.choices.specs(self.recipe), oracle)


def resolve_recipe(recipe: Recipe, sources: Sources, choices: EngineChoices, notify: Callable[[str], None]) -> ResolvedRecipe:
    """Look up everything that a recipe names.

    Raises:
        InputError: something is not there; one line.
    """
    model = sources.model(recipe.model.name_or_path, recipe.model.revision)
    adapter = sources.adapter(recipe.model.adapter) if recipe.model.adapter else None
    train = sources.data(recipe.data.path, recipe.data.revision, "data.path")
    path = recipe.evaluation.path
    held = None if path is None else sources.data(path, None, "evaluation.path")
    oracle = open_oracle(recipe.game.oracle, OracleContext(sources, choices.machine, sources.memory.parent / "judge", notify))
    return ResolvedRecipe(recipe, model, adapter, train, held, choices, oracle, sources.recipe_dir)


def split_rows(recipe: Recipe, rows: Rows, held_rows: Rows | None) -> tuple[list[int], HeldOut]:
    """(places that may be learned from, what policies are measured on)."""
    if held_rows is None:
        health, pool = hold_out(rows.ids, recipe.evaluation.health_prompts)
        return pool, HeldOut(rows, health, health, exact_match=False)
    health = fixed_sample(held_rows.ids, recipe.evaluation.health_prompts)
    every = list(range(len(held_rows)))
    return list(range(len(rows))), HeldOut(held_rows, every, health, recipe.evaluation.metric == "exact_match")


@dataclass
class Orders:
    """The shuffled orders that draws are heads of; each is sorted once for all games of a sweep."""

    known: dict[tuple[str, int, int | None], list[int]] = field(default_factory=dict)

    def of(self, draw: Draw, rows: Rows, pool: Sequence[int]) -> list[int]:
        """Places of `rows`, those of `pool` shuffled."""
        name = (draw.data, draw.seed, draw.round)
        if name not in self.known:
            order = shuffled([rows.ids[position] for position in pool], draw.seed, draw.round)
            self.known[name] = [pool[position] for position in order]
        return self.known[name]


@dataclass
class SharedResources:
    """What the games of a sweep have in common in this process: engines, stores, tables and rows are opened once."""

    engines: EnginePool = field(default_factory=EnginePool)
    stores: dict[str, Store] = field(default_factory=dict)
    rows: dict[Path, Rows] = field(default_factory=dict)
    tables: dict[str, dict[str, Table]] = field(default_factory=dict)  # by store
    orders: Orders = field(default_factory=Orders)
    splits: dict[tuple[Any, ...], tuple[list[int], HeldOut]] = field(default_factory=dict)

    def split(self, found: ResolvedRecipe, rows: Rows, held_rows: Rows | None) -> tuple[list[int], HeldOut]:
        """As the function; each file's rows are split once."""
        evaluation = found.recipe.evaluation
        name = (found.recipe.output.store, *found.data_files(), evaluation.health_prompts, evaluation.metric)
        if name not in self.splits:
            self.splits[name] = split_rows(found.recipe, rows, held_rows)
        return self.splits[name]

    def store(self, root: str, display: Display) -> Store:
        if root not in self.stores:
            self.stores[root] = Store(Path(root), lambda line: display.log(line, "yellow"))
        return self.stores[root]


@dataclass
class OpenGame:
    """A recipe made concrete on this machine: its keys, rows and tables."""

    found: ResolvedRecipe
    inputs: Inputs
    stages: list[Stage]
    rows: Rows
    pool: list[int]  # places of `rows` that may be learned from
    held: HeldOut
    tables: Tables
    store: Store
    folder: Path
    orders: Orders
    tenants: GameEngines
    drawn: dict[Draw, list[int]] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.found.recipe

    @property
    def engines(self) -> str:
        """The same for games that take open engines from each other."""
        choices, tenants = self.found.choices, self.tenants
        return " ".join(tenants.signature(name) for name in (choices.generator, choices.learner))

    def name(self, policy: str) -> str:
        """What people call a policy."""
        made = {stage.policy: stage.name for stage in self.stages if isinstance(stage, Train | Average | TrainSampler)}
        return made.get(policy, "base")

    def positions(self, draw: Draw) -> list[int]:
        """The rows of a draw, in its order."""
        if draw not in self.drawn:
            self.drawn[draw] = take(self.orders.of(draw, self.rows, self.pool), draw)
        return self.drawn[draw]


def open_game(recipe: Recipe, recipe_dir: Path, display: Display, shared: SharedResources) -> OpenGame:
    """Find model and data, prepare the rows, and name every stage; no model is loaded."""
    store = shared.store(recipe.output.store, display)
    choices = choose_engines(recipe, store.root, display)
    found = resolve_recipe(
        recipe, Sources(recipe_dir, store.root / "sources.json"), choices, lambda line: display.log(line, "yellow")
    )
    rows = _prepared(found, found.train, "data.path", recipe.data.split, store, shared, display)
    held_rows = None
    if found.held is not None:
        held_rows = _prepared(found, found.held, "evaluation.path", recipe.evaluation.split, store, shared, display)
    pool, held = shared.split(found, rows, held_rows)
    inputs = found.inputs(len(rows) - len(pool))
    held = replace(held, oracle=inputs.oracle)
    tenants = GameEngines(recipe, found.model, choices, store.root / "weights", display, shared.engines, found.oracle)
    tables = Tables(
        store,
        inputs.base,
        Path(found.adapter.location) if found.adapter else None,
        inputs.learner,
        tenants,
        display,
        recipe.runtime.generation_batch_size,
        recipe.runtime.scoring_batch_size,
        shared.tables.setdefault(recipe.output.store, {}),
    )
    folder = Path(recipe.output.dir or "runs/game")
    game = OpenGame(found, inputs, list(play(recipe, inputs)), rows, pool, held, tables, store, folder, shared.orders, tenants)
    for stage in game.stages:
        if isinstance(stage, Train | TrainSampler):  # too few rows for a later iteration is said now
            game.positions(stage.pairs.draw if isinstance(stage, Train) else stage.draw)
    return game


def _prepared(
    found: ResolvedRecipe, source: Source, name: str, split: str, store: Store, shared: SharedResources, display: Display
) -> Rows:
    """Rows from memory, from the store, or read and rendered now."""
    recipe = found.recipe
    path = store.data(found.file(source, split))
    if path in shared.rows:
        return shared.rows[path]
    table = store.read(path)
    if table is None:
        with display.start_up(f"reading {source.location}"):
            from lowmem_spin.engines.loading import load_tokenizer

            tokenizer = load_tokenizer(found.model, recipe.model.trust_remote_code)
            renderer = Renderer(tokenizer, recipe.model.chat_template)
            table = prepare(source, recipe.data, name, split, recipe.evaluation.category, renderer, found.has_rejected(source))
            write_parquet(path, table)
    rows = shared.rows[path] = Rows(table)
    counts = ", ".join(f"{count:,} {name}" for name, count in rows.counts.items())
    display.log(f"{name}: {source.location}: {counts}")
    return rows
