"""Several processes fill the tables of one store at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.display import Display
from lowmem_spin.common.files import Tokens
from lowmem_spin.engines.base import Completion, Request
from lowmem_spin.store.claims import Claims, Share
from lowmem_spin.store.memo import Tables
from lowmem_spin.store.rows import Prompt, Scored
from lowmem_spin.store.store import Store

SAMPLING = Sampling(1.0, 1.0, None, 8, 0, {"engine": "made up"})
ROWS = 800  # of a stage that several share
PROMPTS, SIDES = 40, ["chosen", "a" * 20, "b" * 20, "c" * 20]


class Adding:
    """A learner whose log-prob of an answer is minus the sum of its tokens; it counts what it is asked."""

    def __init__(self, barrier: Barrier | None = None) -> None:
        self.barrier, self.asked, self.opened = barrier, 0, 0

    def learner(self) -> Any:
        self.opened += 1
        return self

    def score(self, adapter: Path | None, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        if self.asked == 0 and self.barrier is not None:
            self.barrier.wait(timeout=30)  # all are scoring now
        self.asked += len(rows)
        return [-float(np.sum(tokens)) for _, tokens in rows]


def tables(root: Path, engines: Adding, said: list[str]) -> Tables:
    return Tables(
        store=Store(root, said.append),
        base="base",
        base_adapter=None,
        learner={"engine": "adding"},
        engines=engines,  # pyright: ignore[reportArgumentType]
        progress=Display(Console(quiet=True)),
        generation_batch=8,
        scoring_tokens=30,
        opened={},
    )


def side(name: str) -> list[Scored]:
    answers = name if name == "chosen" else f"{name}/0"
    return [Scored(f"p{n}", [1, 2], answers, [n + 1, 1 + SIDES.index(name)]) for n in range(PROMPTS)]


def test_several_score_different_answers_at_once_and_no_row_is_lost_or_there_twice(tmp_path: Path) -> None:
    said: list[str] = []
    barrier = Barrier(len(SIDES))  # which breaks if one has to wait for another

    def score(name: str) -> np.ndarray:
        return tables(tmp_path, Adding(barrier), said).logps("base", side(name), name)

    with ThreadPoolExecutor(len(SIDES)) as pool:
        found = list(pool.map(score, SIDES))
    for name, logps in zip(SIDES, found, strict=True):
        assert logps.tolist() == [-float(sum(row.tokens)) for row in side(name)]
    assert not said
    asked = Adding()
    after = tables(tmp_path, asked, said)
    for name in SIDES:
        assert after.logps("base", side(name), name).tolist() == [-float(sum(row.tokens)) for row in side(name)]
    (table,) = after.opened.values()
    assert asked.asked == 0 and table.read().num_rows == PROMPTS * len(SIDES)
    assert len(list(table.folder.glob("*.parquet"))) == 1


def test_who_waited_for_the_same_answers_opens_no_engine(tmp_path: Path) -> None:
    said: list[str] = []
    first, second = Adding(), Adding()

    class Late(Adding):
        def score(self, adapter: Path | None, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
            if not self.asked:
                waiting.append(pool.submit(tables(tmp_path, second, said).logps, "base", side("chosen"), "second"))
                while not said:  # it waits for these
                    pass
            return super().score(adapter, rows)

    waiting: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        first = Late()
        logps = tables(tmp_path, first, said).logps("base", side("chosen"), "first")
        assert waiting[0].result().tolist() == logps.tolist()
    assert (first.opened, first.asked) == (1, PROMPTS) and (second.opened, second.asked) == (0, 0)


class StoppedError(Exception):
    pass


class Stopping(Adding):
    """One that dies after so many rows, or never. It also answers, with the seed of each question."""

    mixes_policies = True
    batches_at_once = 1

    def __init__(self, barrier: Barrier, after: int | None) -> None:
        super().__init__(barrier)
        self.after = after

    def generator(self) -> Any:
        return self

    def score(self, adapter: Path | None, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        found = super().score(adapter, rows)
        if self.after is not None and self.asked >= self.after:
            raise StoppedError
        return found

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.score(None, [(request.prompt, []) for request in requests])
        return [Completion([request.seed % 1000], str(request.seed), "stop", -1.0) for request in requests]


def scored(mine: Tables) -> list[float]:
    rows = [Scored(f"p{n}", [1, 2], "chosen", [n + 1, 1]) for n in range(ROWS)]
    return mine.logps("base", rows, "").tolist()


def answered(mine: Tables) -> list[str]:
    (answers,) = mine.answers([("base", [Prompt(f"p{n}", [1, n + 1]) for n in range(ROWS)])], SAMPLING, "")
    return [answer.text for answer in answers]


@pytest.mark.parametrize("dies", [None, 0, 1])
@pytest.mark.parametrize("work", [scored, answered])
def test_those_that_share_a_stage_compute_every_row_once_and_what_a_dead_one_has_left(
    tmp_path: Path, work: Callable[[Tables], list[Any]], dies: int | None
) -> None:
    """The first, two that help it, and one that comes when all is over; the one that dies, if any, is the first or a helper."""
    said: list[str] = []
    barrier = Barrier(3)
    engines = [Stopping(barrier, 60 if number == dies else None) for number in range(3)]

    def take_part(number: int) -> list[Any] | None:
        mine = tables(tmp_path / "shared", engines[number], said)
        mine.share = Share.HELP if number else Share.FIRST
        try:
            return work(mine)
        except StoppedError:
            return None

    expected = work(tables(tmp_path / "alone", Stopping(Barrier(1), None), said))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(take_part, range(3)))
    assert found == [None if number == dies else expected for number in range(3)]
    computed = [engine.asked for engine in engines]
    late = Stopping(Barrier(1), None)
    after = tables(tmp_path / "shared", late, said)
    after.share = Share.HELP
    assert work(after) == expected and late.asked == 0 and not said
    (table,) = after.opened.values()
    assert table.read().num_rows == ROWS
    twice = sum(computed) - ROWS  # what the dead one had not committed
    assert all(rows > 0 for rows in computed) and (twice == 0 if dies is None else 0 < twice <= computed[dies])
    assert not list((tmp_path / "shared" / "locks").glob("*-[0-9]*.lock"))


def test_who_helps_begins_at_the_other_end(tmp_path: Path) -> None:
    """So that the two meet as late as they can, and neither waits at every part for the other."""
    batches = list(range(100))
    forwards, backwards = (list(Claims(tmp_path / "x", batches, back).taken(lambda: None)) for back in (False, True))
    assert forwards == sorted(backwards) == batches and backwards[0] == 100 - len(batches) % 4 - 4 and backwards[-1] == 3
