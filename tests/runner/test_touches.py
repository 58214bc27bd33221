"""What touches() says of each stage is what the store's files have after it, no table, adapter or row more or less."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from helpers.games import QUICKSTART, opened
from lowmem_spin.algorithm.pair_sources import PairSource
from lowmem_spin.algorithm.stages import Stage, Train
from lowmem_spin.algorithm.touches import Gathered, HeldOutPlaces, touches
from lowmem_spin.common.display import Display
from lowmem_spin.runner import gc
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.run import Player

CONTEST = ["game.algorithm=sppo", "game.oracle=function", "game.samples=3", "game.loss=sppo", "game.history=1"]
COOLER = "generation={temperature: 0.7, top_p: 0.9, max_new_tokens: 16}"
MATCHED = "evaluation={health_prompts: 3, metric: exact_match, path: 'FOLDER/held.jsonl'}"
GAMES = {
    "mixtures": ["game.sampler=token_level", "game.history=2", "game.alpha=0.5", "game.oracle=function", MATCHED],
    "average": [
        "generation={temperature: 0.7, top_p: 0.9, max_new_tokens: 16}",
        "game.reference=ema",
        "game.alpha=0.5",
        "game.pairing=concatenate",
        "evaluation.compare_sft=true",
    ],
    "amortised": ["game.sampler={name: gflownet, prompts: 8, epochs: 1, batch_size: 8}", "game.alpha=0.5"],
    "mixed contest": [*CONTEST[:3], "game.loss=ipo", "game.history=1", "game.alpha=0.5", "game.sampler=token_level"],
    "judged": [*CONTEST, "game.alpha=1", "game.regularizer={forward_kl: 0.1}"],
    "normalised": [*CONTEST, "game.alpha=0.5", "game.normalizer=estimated", "game.init=base"],
    "given": ["game.algorithm=offline", "warm_start={rows: 8}", "data.path=FOLDER/two.jsonl", "game.oracle=function"],
}
Rows = dict[tuple[str, str], int]
"""{(kind, key): rows} of tables and adapters; an average's adapter has none."""


@given(st.lists(st.lists(st.integers(0, 9), unique=True), max_size=6))
def test_rows_are_gathered_once_whoever_asks(asked: list[list[int]]) -> None:
    gathered, known = Gathered(), set[int]()
    for some in asked:
        assert gathered.add(np.array(some, np.int64)) == len(set(some) - known)
        known |= set(some)
        assert sorted(gathered.places.tolist()) == sorted(known)


def on_disk(store: Path) -> Rows:
    rows: Rows = {}
    for folder in (path for kind in ("completions", "mixtures", "judgements", "logps") for path in store.glob(f"{kind}/*")):
        rows[folder.parent.name, folder.name] = sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))
    for manifest in store.glob("adapters/*/manifest.json"):
        rows["adapters", manifest.parent.name] = json.loads(manifest.read_text()).get("rows", 0)
    return rows


def touched(game: OpenGame, stages: list[Stage]) -> Rows:
    """Every row once, however many of the stages touch it; those held out are of another file, or at least not drawn."""
    held = HeldOutPlaces(*(np.array(places) + 10**6 for places in (game.rows.held.scored, game.rows.held.health)))
    rows: dict[tuple[str, str], set[Any]] = {}
    for stage in stages:
        for touch in touches(stage, game.recipe, game.inputs, lambda draw: np.array(game.positions(draw)), held):
            rows.setdefault((touch.kind, touch.key), set()).update((touch.side, place) for place in touch.places.tolist())
    return {name: len(places) for name, places in rows.items()}


def game_of(name: str, folder: Path) -> OpenGame:
    rows = [json.loads(line) for line in (QUICKSTART / "heldout.jsonl").read_text().splitlines()]
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    two = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "never"} for row in rows[:40]]
    (folder / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in two))
    return opened(folder, *(option.replace("FOLDER", str(folder)) for option in GAMES[name]))


@pytest.mark.parametrize("name", GAMES)
def test_a_stage_touches_what_it_leaves_in_the_store(name: str, tmp_path: Path) -> None:
    """The store is empty before, so that all that a stage asks for and does not find is written."""
    game = game_of(name, tmp_path)
    player = Player(game, Display(Console(quiet=True)), {})
    for number, stage in enumerate(game.stages, 1):
        player.play(stage)
        assert on_disk(game.store.root) == touched(game, game.stages[:number]), stage
    player.finish()
    game.engines.pool.close()
    assert gc.unused(game.store.root, gc.used_by([game.folder])) == []


def test_the_games_have_stages_of_every_kind(tmp_path: Path) -> None:
    stages = [stage for name in GAMES for stage in game_of(name, tmp_path).stages]
    assert {type(stage) for stage in stages} == set(get_args(Stage))
    assert {type(stage.pairs) for stage in stages if isinstance(stage, Train)} == set(get_args(PairSource))
