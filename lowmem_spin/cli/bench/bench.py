"""The benchmark: a short real game on a base with random weights, measured stage by stage, with nothing to download."""

import resource
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lowmem_spin.algorithm.stages import Evaluate
from lowmem_spin.cli.bench import checkpoint, rivals, table
from lowmem_spin.cli.bench.layouts import check_layouts, compare_layouts
from lowmem_spin.cli.bench.measure import Card, Cost, Stopwatch
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import load_recipe
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Sources
from lowmem_spin.engines.advice import advice
from lowmem_spin.engines.machine import Machine, find_machine
from lowmem_spin.engines.memory import Shape, peak
from lowmem_spin.engines.passes import planned_passes
from lowmem_spin.engines.registry import ENGINES
from lowmem_spin.runner.open import OpenGame, SharedResources, open_game
from lowmem_spin.runner.planning import calibration
from lowmem_spin.runner.planning.calibration import Measurement
from lowmem_spin.runner.run import make

SPARE = 20  # times as many rows as pairs: two iterations then share few prompts, and each computes nearly all of its rows
BATCHES = {  # completions, scored rows, trained pairs
    "gemma-2b": (64, 8, 4),
    "llama-8b": (32, 4, 1),
    "smollm2-135m": (32, 8, 2),
    "tiny": (64, 32, 8),
}


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What to measure."""

    model: str | None  # None: gemma-2b on a GPU, tiny without
    vram: float | None  # gigabytes of the card to keep to; None is all of it
    pairs: int  # per iteration
    prompt_length: int  # tokens
    completion_length: int
    versus: list[str]
    overrides: list[str]  # recipe values, field=value
    store: Path
    layouts: list[str] = field(default_factory=list)  # to compare: padded, packed

    def __post_init__(self) -> None:
        if self.model is not None:
            checkpoint.config_of(self.model)
        if self.vram is not None and not 0 < self.vram < float("inf"):
            raise InputError(f"--vram: {self.vram:g} cannot be used; give the card's gigabytes, for instance 24")
        for name, value in (
            ("pairs", self.pairs),
            ("prompt-length", self.prompt_length),
            ("completion-length", self.completion_length),
        ):
            if value < 1:
                raise InputError(f"--{name}: {value} cannot be used; give 1 or more")
        rivals.check_rivals(self.versus)
        check_layouts(self.layouts)


@dataclass(frozen=True)
class BenchResult:
    """What was measured."""

    device: str
    ours: list[Cost]
    theirs: list[Cost]
    missing: list[str]  # a sentence for each rival that did not play
    predicted: dict[str, float]  # peak bytes by kind of stage; empty on a CPU


def bench(request: BenchRequest, console: Console) -> BenchResult:
    """Play, measure, compare, print, and remember the rates in the store's bench.json."""
    root = request.store / "bench"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="game-", dir=root) as work:
        return bench_in(Path(work), request, console)


def bench_in(work: Path, request: BenchRequest, console: Console) -> BenchResult:
    """The same in a folder that stays, with the game's rows, results and store. It has to be empty: what a store
    already has is not computed, and so not measured."""
    name, recipe, machine = _recipe(request, work)
    shape = Shape.of(checkpoint.config_of(name))
    card = Card()
    display = Stopwatch(console, card)
    if request.vram is not None:
        for line in advice(recipe, shape, machine.dtype, request.vram * 1e9):
            display.log(f"the memory estimate says this does not fit in {request.vram:g} GB: {line}", "yellow")
    with display.start_up("making the base"):
        folder = checkpoint.make(request.store / "bench", name, machine, display.log)
        checkpoint.write_rows(work / "rows.jsonl", SPARE * request.pairs, request.prompt_length, request.completion_length)
    recipe = recipe.with_value("model.name_or_path", str(folder.resolve()))
    shared = SharedResources()
    game = open_game(recipe, work, display, shared)
    for stage in game.stages:
        if not isinstance(stage, Evaluate):
            make(game, stage)
    shared.engines.close()
    ours = display.costs(_engines(game))
    device = calibration.device_name(machine.device)
    calibration.record_measurements(request.store, *(_record(cost, device, name, shape, recipe, machine) for cost in ours))
    choices = game.resolved.choices
    oracle = game.resolved.judging(machine.dtype)
    played = planned_passes(recipe, shape, machine, choices.generator, choices.learner, oracle)
    predicted = _predicted(played, shape, machine, ours)
    display.log(f"{name}, random weights, {recipe.model.quantization}, {machine.dtype}, on {device}", "bold")
    console.print(table.costs(ours, predicted))
    _explain(request, machine, ours, display)
    with display.timed("rivals"):
        theirs, missing = _versus(request, game, played, machine, card)
    for line in missing:
        display.log(line, "yellow")
    if theirs:
        not_comparable = ["trl"] if machine.device == "cpu" else []
        display.log("the same work by others, each in a process of its own", "bold")
        console.print(table.rivals(ours, theirs, not_comparable))
        if any(cost.by in not_comparable for cost in theirs):
            display.log("trl needs a GPU for its Triton kernel, which was interpreted here: its speed says nothing about it")
    if request.layouts:
        with display.timed("layouts"):
            compared = compare_layouts(recipe, work, request.layouts, request.pairs, card, display)
        display.log("offline pairs with lengths of a realistic spread, the layouts in turn", "bold")
        console.print(table.layouts(compared))
    display.log(f"rates are in {request.store / 'bench.json'}, for plans on this device")
    display.log(display.time_line())
    return BenchResult(device, ours, theirs, missing, predicted)


def _recipe(request: BenchRequest, work: Path) -> tuple[str, Recipe, Machine]:
    """The model's name, the game to play, and where; written as a recipe so that `--set` works as everywhere."""
    name = request.model or "tiny"
    recipe = _load(request, name, work)
    machine = find_machine(recipe)
    if request.model is None and machine.device == "cuda":
        name = "gemma-2b"
        recipe = _load(request, name, work)
    longest, room = request.prompt_length + request.completion_length, checkpoint.config_of(name)["max_position_embeddings"]
    if longest > room:
        raise InputError(f"--completion-length: with the prompt {longest} tokens, but {name} reads {room}; shorten one of them")
    return name, recipe, machine


def _load(request: BenchRequest, name: str, work: Path) -> Recipe:
    completions, scored, trained = BATCHES[name]
    device_batch = min(trained, request.pairs)
    content: dict[str, Any] = {
        "model": {"name_or_path": name},
        "data": {
            "path": str((work / "rows.jsonl").resolve()),
            "max_prompt_length": request.prompt_length,
            "max_completion_length": request.completion_length,
        },
        "game": {"iterations": 2, "alpha": 0.95, "history": 2, "pairs": request.pairs},
        "generation": {"max_new_tokens": request.completion_length},
        "training": {
            "learning_rate": 1e-6,  # the weights hardly move: completions stay as long as they may be
            "per_device_train_batch_size": device_batch,
            "gradient_accumulation_steps": max(1, 16 // device_batch),
            "gradient_checkpointing": True,
        },
        "evaluation": {"health_prompts": 1},  # is not played
        "runtime": {
            "generation_batch_size": min(completions, request.pairs),
            "scoring_batch_size": min(scored, request.pairs),
            "residency": "exit",  # one engine on the card at a time: a stage's peak is then that engine's
        },
        "output": {"dir": str(work / "run"), "store": str(work / "store")},
    }
    if request.vram is not None:
        content["runtime"]["vram_gb"] = request.vram
    (work / "recipe.yaml").write_text(yaml.safe_dump(content))
    return load_recipe(work / "recipe.yaml", request.overrides)


def _engines(game: OpenGame) -> dict[str, str]:
    learner = game.inputs.learner["engine"]
    return {"generate": game.inputs.generator["engine"], "score": learner, "train": learner}


def _record(cost: Cost, device: str, name: str, shape: Shape, recipe: Recipe, machine: Machine) -> Measurement:
    batches = {
        "generate": recipe.runtime.generation_batch_size,
        "score": recipe.runtime.scoring_batch_size,
        "train": recipe.training.per_device_train_batch_size,
    }
    return Measurement(
        device=device,
        engine=cost.by,
        kind=cost.work,  # type: ignore[arg-type]
        dtype=machine.dtype,
        model=name,
        parameters=shape.body + shape.unquantized,
        gradient_checkpointing=recipe.training.gradient_checkpointing,
        batch=batches[cost.work],
        rows=cost.rows,
        tokens=cost.tokens,
        seconds=cost.seconds,
    )


def _predicted(recipe: Recipe, shape: Shape, machine: Machine, ours: list[Cost]) -> dict[str, float]:
    """Peak bytes by kind. On a CPU there is none, and none for an engine that takes what it is given."""
    if machine.device == "cpu":
        return {}
    return {
        cost.work: peak(ENGINES[cost.by].memory(recipe, shape, machine.dtype)[cost.work])
        for cost in ours
        if not ENGINES[cost.by].preallocates
    }


def _explain(request: BenchRequest, machine: Machine, ours: list[Cost], display: Stopwatch) -> None:
    lengths = f"prompts of {request.prompt_length} tokens and completions of {request.completion_length}"
    display.log(f"{lengths}: random weights never end one by themselves, so every length is its cap")
    generated = next(cost for cost in ours if cost.work == "generate")
    if generated.tokens != generated.rows * request.completion_length:
        display.log(f"but {generated.rows * request.completion_length - generated.tokens} tokens are missing", "yellow")
    if machine.device == "cpu":
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
        display.log(f"no GPU: resident memory of this process peaked at {resident / 1e9:.2f} GB, libraries and all;")
        display.log("the memory estimate is for a GPU and is not compared with it")


def _versus(
    request: BenchRequest, game: OpenGame, played: Recipe, machine: Machine, card: Card
) -> tuple[list[Cost], list[str]]:
    theirs: list[Cost] = []
    missing: list[str] = []
    model = Sources(Path(), game.store.root / "sources.json").model(game.recipe.model.name_or_path, None)
    limit, logs = None if request.vram is None else request.vram * 1e9, request.store / "bench" / "logs"
    for name in request.versus:
        outcome = rivals.run_rival(name, rivals.Workload(game, played, model, machine, card, limit, logs))
        if isinstance(outcome, str):
            missing.append(outcome)
        else:
            theirs += outcome
    return theirs, missing
