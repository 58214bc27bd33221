"""What touches() says of each stage is what the store's files have after it, no table, adapter or row more or less."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from helpers.games import QUICKSTART, opened
from lowmem_spin.algorithm.stages import PairSource, Stage, Train
from lowmem_spin.algorithm.touches import HeldOutPlaces, touches
from lowmem_spin.common.display import Display
from lowmem_spin.runner import gc
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.run import Player

SFT = "evaluation={health_prompts: 3, compare_sft: true}"
CONTEST = ["game.algorithm=sppo", "game.oracle=function", "game.samples=3", "game.loss=sppo", "game.history=1"]
GAMES = {
    "mixtures": ["game.sampler=token_level", "game.history=2", "game.alpha=0.5", "game.oracle=function", "game.iterations=3"],
    "average": ["game.reference=ema", "game.alpha=0.5", "game.pairing=concatenate", "game.history=2", SFT],
    "amortised": ["game.sampler={name: gflownet, prompts: 8, epochs: 1, batch_size: 8}", "game.alpha=0.5"],
    "judged": [*CONTEST, "game.regularizer={forward_kl: 0.1}"],
    "normalised": [*CONTEST, "game.alpha=0.5", "game.normalizer=estimated", "game.init=base"],
    "given": ["game.algorithm=offline", "warm_start={rows: 8}", "data.path={folder}/two.jsonl", "game.oracle=function"],
}
GAMES["mixtures"] += ["evaluation={health_prompts: 3, metric: exact_match, path: '{folder}/held.jsonl'}"]
Rows = dict[tuple[str, str], int]
"""{(kind, key): rows} of tables and adapters; an average's adapter has none."""


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


@pytest.mark.parametrize("name", GAMES)
def test_a_stage_touches_what_it_leaves_in_the_store(name: str, tmp_path: Path) -> None:
    lines = (QUICKSTART / "heldout.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "held.jsonl").write_text("".join(lines[:6]))
    pairs = [{**json.loads(line), "rejected": f"never {n}"} for n, line in enumerate(lines[:40])]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    game = opened(tmp_path, *(option.replace("{folder}", str(tmp_path)) for option in GAMES[name]))
    player = Player(game, Display(Console(quiet=True)), {})
    for number, stage in enumerate(game.stages, 1):
        player.play(stage)
        assert on_disk(game.store.root) == touched(game, game.stages[:number]), stage
    player.finish()
    game.engines.pool.close()
    used = gc.used_by([game.folder])
    assert {(kind, key) for kind in gc.KINDS for key in used.keys[kind]} >= set(on_disk(game.store.root))
    assert gc.unused(game.store.root, used) == []


def test_the_games_have_stages_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_bytes((QUICKSTART / "heldout.jsonl").read_bytes())
    lines = (QUICKSTART / "heldout.jsonl").read_text().splitlines()
    (tmp_path / "two.jsonl").write_text("".join(json.dumps({**json.loads(line), "rejected": "never"}) + "\n" for line in lines))
    games = [opened(tmp_path, *(option.replace("{folder}", str(tmp_path)) for option in options)) for options in GAMES.values()]
    stages = [stage for game in games for stage in game.stages]
    assert {type(stage) for stage in stages} == set(Stage.__args__)
    assert {type(stage.pairs) for stage in stages if isinstance(stage, Train)} == set(PairSource.__args__)
