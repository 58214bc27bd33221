"""Packed rows against padded ones: the same pairs scored and trained on in either layout, in turn."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lowmem_spin.algorithm.stages import Evaluate
from lowmem_spin.cli.bench.measure import Card, Cost, Stopwatch
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.runner.open import SharedResources, open_game
from lowmem_spin.runner.run import make

LAYOUTS = {"padded": "padded", "packed": "auto"}  # by their name here: runtime.layout
ROUNDS = 3  # of all layouts in turn; their fastest counts, for what else runs here only ever slows one down
SPREAD = 0.7  # standard deviation of the logarithm of lengths, which vary about half of their limit


def check_layouts(names: Sequence[str]) -> None:
    """Refuse a layout that is unknown, before anything is computed."""
    for name in names:
        if name not in LAYOUTS:
            raise InputError(f"--layout: {name!r} is unknown; known: {', '.join(LAYOUTS)}")


def compare_layouts(recipe: Recipe, work: Path, names: Sequence[str], pairs: int, card: Card, display: Display) -> list[Cost]:
    """What scoring and training cost in each layout, work by work, on pairs whose lengths are log-normal.

    Args:
        recipe: with the base, and the lengths that are not exceeded.
        work: a folder for rows and results.
        names: the layouts, the one to compare with first.
        pairs: to score and to train on.
        card: whose memory is watched.
        display: that is told how far it is.
    """
    rows = work / "spread.jsonl"
    write_spread(rows, 2 * pairs, recipe.data.max_prompt_length, recipe.data.max_completion_length)
    best: dict[tuple[str, str], Cost] = {}
    for number in range(ROUNDS):
        for name in names:
            display.log(f"layout {name}, round {number + 1} of {ROUNDS}")
            for cost in _costs(recipe, rows, work / f"{name} {number}", LAYOUTS[name], pairs, card):
                known = best.get((cost.work, name), cost)
                best[cost.work, name] = replace(min(cost, known, key=lambda one: one.seconds), by=name)
    return [best[work, name] for work in ("score", "train") for name in names]


def _costs(recipe: Recipe, rows: Path, folder: Path, layout: str, pairs: int, card: Card) -> list[Cost]:
    """One game of one iteration: the base scores the pairs, and an adapter is trained on them."""
    game = recipe.game.model_copy(update={"algorithm": "offline", "iterations": 1, "alpha": 1.0, "pairs": pairs})
    update = {
        "data": recipe.data.model_copy(update={"path": str(rows.resolve())}),
        "game": game,
        "runtime": recipe.runtime.model_copy(update={"layout": layout}),
        "output": recipe.output.model_copy(update={"dir": str(folder / "run"), "store": str(folder / "store")}),
    }
    display, shared = Stopwatch(Console(quiet=True), card), SharedResources()
    opened = open_game(recipe.model_copy(update=update), rows.parent, display, shared)
    opened.engines.learner()
    for stage in opened.stages:
        if not isinstance(stage, Evaluate):
            make(opened, stage)
    shared.engines.close()
    engine = opened.inputs.learner["engine"]
    return display.costs({"score": engine, "train": engine})


def write_spread(path: Path, rows: int, prompt_tokens: int, completion_tokens: int) -> None:
    """Preferences of seeded random letters, each about a token. Lengths are log-normal up to the limits."""
    drawn = random.Random(0)

    def text(most: int) -> str:
        length = round(drawn.lognormvariate(math.log(most / 2), SPREAD))
        return "".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=min(max(1, length), most)))

    room = max(1, prompt_tokens - 8)  # for the chat template
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            row = {"prompt": text(room), "chosen": text(completion_tokens), "rejected": text(completion_tokens)}
            file.write(json.dumps(row) + "\n")
