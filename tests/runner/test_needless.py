"""What a game that goes on passes over: all that only stored adapters were made from, and nothing else."""

import json
import shutil
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from helpers.games import commit_adapters, opened, played
from lowmem_spin.algorithm.pair_sources import DatasetPairs
from lowmem_spin.algorithm.stages import Evaluate, Generate, Score, Stage, Train
from lowmem_spin.common.display import Display
from lowmem_spin.runner.needless import needless
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.planning.forecast import steps_ahead
from lowmem_spin.runner.run import Player
from lowmem_spin.store.committed import WEIGHTS


def trainings(game: OpenGame) -> list[Train]:
    return [stage for stage in game.stages if isinstance(stage, Train)]


def answers(stage: Stage) -> set[str]:
    """Keys of the tables that a Generate fills."""
    if not isinstance(stage, Generate) or isinstance(stage.pairs, DatasetPairs):
        return set()
    return {stage.pairs.sampling.key(policy) for policy, _ in stage.pairs.assign()}


def test_a_finished_game_is_played_again_without_what_it_learned_from(tmp_path: Path) -> None:
    """Its training answers may be gone. They come back once an adapter is to be made again, for that one alone."""
    cooler = ["generation.temperature=0.7", "game.history=1"]  # so that what it is measured by is in other tables
    game = played(tmp_path, *cooler)
    tables = {key for stage in game.stages for key in answers(stage)}
    numbers, store = (tmp_path / "run" / "metrics.jsonl").read_text(), tmp_path / "store"
    last = trainings(game)[-1]
    weights = game.store.adapter_sha256(last.policy)
    for key in tables:
        shutil.rmtree(store / "completions" / key)

    def play_again() -> tuple[set[str], set[str]]:
        """(tables of training answers that there are then, engines that were opened)"""
        again = opened(tmp_path, *cooler)
        Player(again, Display(Console(quiet=True)), {}).play_all()
        engines = set(again.engines.pool.opened)
        again.engines.pool.close()
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == numbers
        return {key for key in tables if (store / "completions" / key).exists()}, engines

    assert play_again() == (set(), set())
    shutil.rmtree(store / "adapters" / last.policy)
    made, engines = play_again()
    assert made == next(answers(stage) for stage in game.stages if isinstance(stage, Generate) and stage.pairs == last.pairs)
    assert made < tables and engines
    assert game.store.adapter_sha256(last.policy) == weights


DEFAULT = pa.default_memory_pool()
COUNTED = pa.proxy_memory_pool(DEFAULT)  # lives as long as what is allocated from it


def test_a_finished_game_is_played_again_without_its_rows_in_memory(tmp_path: Path) -> None:
    """Neither those of the data nor those that it learned from, in the tables that it is measured by."""
    with (tmp_path / "train.jsonl").open("w") as file:
        for number in range(3000):
            file.write(json.dumps({"prompt": f"{number} " + "abcd " * 60, "completion": "wxyz " * 60}) + "\n")
    game = played(tmp_path)
    numbers, ids = (tmp_path / "run" / "metrics.jsonl").read_text(), game.rows.train.ids
    tables = [table for table in game.tables.opened.values() if table.kind == "completions"]
    for table in tables:
        learned = {"prompt_id": ids, "sample": [9] * len(ids), "tokens": [[7] * 300] * len(ids), "text": ["b" * 300] * len(ids)}
        table.append({**learned, "finish_reason": ["stop"] * len(ids), "logp": [-1.0] * len(ids)})
        table.merge()
    whole = [pq.read_table(path).nbytes for path in (tmp_path / "store").rglob("*.parquet")]
    pa.set_memory_pool(COUNTED)
    tracemalloc.start()
    try:
        again = opened(tmp_path)
        Player(again, Display(Console(quiet=True)), {}).play_all()
        held = tracemalloc.get_traced_memory()[1] + (COUNTED.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(DEFAULT)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == numbers and not again.engines.pool.opened
    assert len(tables) > 1 and held < 2 / 3 * sum(whole), f"{held / 1e6:.1f} of {sum(whole) / 1e6:.1f} MB"


def passed_over(games: list[OpenGame]) -> list[list[str]]:
    """Of each game the needless stages in words: what, and for which iterate."""
    found = needless(games)
    return [[words for stage in game.stages if id(stage) in found for words in in_words(game, stage)] for game in games]


def in_words(game: OpenGame, stage: Stage) -> list[str]:
    """What a stage does, and the iterate that learns from it."""
    if not isinstance(stage, Generate | Score):
        return [type(stage).__name__]
    what = "generate" if isinstance(stage, Generate) else "score"
    return [f"{what} {one.iteration}" for one in trainings(game) if one.pairs == stage.pairs]


def test_what_another_game_still_learns_from_is_its_own_to_make(tmp_path: Path) -> None:
    """Both games have iterate 0, and so what iterate 1 learns from; that of the finished game is passed over."""
    one, other = (opened(tmp_path, "game.iterations=3", "game.history=1", f"game.alpha={alpha}") for alpha in (0.5, 0.9))
    steps = [(game, stage, False) for game in (one, other) for stage in game.stages]
    (place,) = (
        place
        for place, (game, stage, _) in enumerate(steps)
        if game is other and isinstance(stage, Generate) and stage.pairs == trainings(other)[1].pairs
    )
    assert passed_over([one, other]) == [[], []], "nothing is stored yet"
    assert not steps_ahead(steps, needless([one, other]))[place].makes
    commit_adapters(one, *(stage.policy for stage in trainings(one)))
    whole = ["generate 0", "score 0", "generate 1", "score 1", "score 1", "generate 2", "score 2", "score 2"]
    assert trainings(other)[0].policy == trainings(one)[0].policy
    assert passed_over([one, other]) == [whole, ["generate 0", "score 0"]]
    ahead = steps_ahead(steps, needless([one, other]))
    assert ahead[place].makes and ahead[place].rows == {"generate": len(one.positions(trainings(one)[1].pairs.draw))}
    assert not any(
        sum(step.rows.values())
        for (game, stage, _), step in zip(steps, ahead, strict=True)
        if game is one and not isinstance(stage, Train | Evaluate)
    )
    commit_adapters(other, *(stage.policy for stage in trainings(other)[1:]))
    assert passed_over([one, other]) == [whole, whole]


def test_a_damaged_adapter_needs_what_it_was_made_from(tmp_path: Path) -> None:
    game = opened(tmp_path, "game.history=1")
    commit_adapters(game, *(stage.policy for stage in trainings(game)))
    last = trainings(game)[-1].policy
    (tmp_path / "store" / "adapters" / last / WEIGHTS).write_text("other bytes")
    again = opened(tmp_path, "game.history=1")
    assert "generate 1" not in passed_over([again])[0] and "generate 0" in passed_over([again])[0]
    assert not (tmp_path / "store" / "adapters" / last).exists(), "it was not set aside"
