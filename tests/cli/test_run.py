"""The whole game through the command line: played, killed, resumed, and recognised when it is finished."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.torch import load_file

from helpers.commands import finish, play, start
from lowmem_spin.cli.interrupts import ctrl_c
from lowmem_spin.common.display import Display


def committed(folder: Path, kind: str) -> dict[str, pa.Table]:
    """All rows of every table of a kind, shards and merged files alike."""
    tables = {table.name: sorted(table.glob("[!.]*.parquet")) for table in (folder / "store" / kind).iterdir()}
    return {name: pa.concat_tables([pq.read_table(file) for file in files]) for name, files in tables.items() if files}


def adapters(folder: Path) -> dict[str, Path]:
    return {path.name: path / "adapter_model.safetensors" for path in (folder / "store" / "adapters").iterdir()}


def generating(folder: Path) -> bool:
    return len(list((folder / "store" / "completions").glob("*/shard-*"))) >= 2


def scoring(folder: Path) -> bool:
    """The first iterate is being measured, and then scores the second one's pairs."""
    return len(list((folder / "store" / "logps").glob("*/manifest.json"))) >= 2


def training_second(folder: Path) -> bool:
    checkpoints = list((folder / "store" / "work").glob("*/checkpoint-*/trainer_state.json"))
    return bool(checkpoints) and bool(list((folder / "store" / "adapters").glob("*")))


@pytest.mark.parametrize(
    ("moment", "how"),
    [(generating, signal.SIGKILL), (scoring, signal.SIGINT), (training_second, signal.SIGKILL)],
    ids=["generating, kill -9", "scoring, Ctrl-C", "training, kill -9"],
)
def test_an_interrupted_game_goes_on_and_ends_the_same(
    whole: Path, tmp_path: Path, moment: Callable[[Path], bool], how: signal.Signals
) -> None:
    often = "runtime.checkpoint_steps=1"  # so that the moment is not missed
    process = start(tmp_path, often)
    while not moment(tmp_path):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, how)
    output, _ = process.communicate()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "run the same command again to continue" in output
        assert "Traceback" not in output
    before = {kind: committed(tmp_path, kind) for kind in ("completions", "logps") if (tmp_path / "store" / kind).exists()}
    assert sum(table.num_rows for tables in before.values() for table in tables.values()) > 0
    finish(start(tmp_path, often))

    for kind, identity in (("completions", ["prompt_id", "sample"]), ("logps", ["prompt_id", "completion", "content"])):
        after, expected = committed(tmp_path, kind), committed(whole, kind)
        assert after.keys() == expected.keys()
        for key, table in after.items():
            rows = {tuple(row[name] for name in identity): row for row in table.to_pylist()}
            assert len(rows) == table.num_rows  # nothing was committed twice
            assert rows == {tuple(row[name] for name in identity): row for row in expected[key].to_pylist()}
            kept = before.get(kind, {}).get(key)
            assert all(rows[tuple(row[n] for n in identity)] == row for row in (kept.to_pylist() if kept else []))
    ours, theirs = adapters(tmp_path), adapters(whole)
    assert ours.keys() == theirs.keys()
    for key in ours:
        one, two = load_file(ours[key]), load_file(theirs[key])
        assert max((one[name] - two[name]).abs().max().item() for name in two) <= 1e-6


def test_a_finished_game_is_recognised(copy: Path) -> None:
    def files() -> dict[Path, int]:
        """And when they were written; who uses the store is noted anew, for this game has moved."""
        stored = [path for path in (copy / "store").rglob("*") if path.is_file() and path.parent.name != "users"]
        return {path: path.stat().st_mtime_ns for path in stored}

    before = files()
    output = finish(start(copy))
    assert not re.search(r"start-up|\] (generate|score|train) ", output), "an engine was opened"
    assert files() == before


def test_the_run_folder_is_small_and_human(whole: Path) -> None:
    run = whole / "run"
    files = {"recipe.yaml", "run.json", "metrics.jsonl", "iterates.png", "iterates.svg", "report.html", "iterates"}
    assert {path.name for path in run.iterdir()} == files
    assert (run / "iterates" / "1" / "adapter_config.json").is_file()
    policies = json.loads((run / "run.json").read_text())["policies"]
    assert list(policies) == ["base", "iterate 0", "iterate 1"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == ["base", "iterate 0", "iterate 1"]
    assert records[0]["kl_to_base"] == 0


def test_another_alpha_shares_the_first_iteration(copy: Path, whole: Path, tmp_path: Path) -> None:
    result = play(copy, "game.alpha=0.5", f"output.dir={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    assert len(set(adapters(copy)) - set(adapters(whole))) == 1
    one, other = ([(folder / "run" / "iterates" / t).resolve().name for t in "01"] for folder in (tmp_path, whole))
    assert one[0] == other[0] and one[1] != other[1]


def test_two_processes_on_one_store_share_the_work(whole: Path, tmp_path: Path) -> None:
    first, second = start(tmp_path), start(tmp_path, f"output.dir={tmp_path / 'other'}")
    finish(first)
    finish(second)
    for key, table in committed(tmp_path, "completions").items():
        assert table.num_rows == committed(whole, "completions")[key].num_rows
    for key, weights in adapters(tmp_path).items():
        assert weights.read_bytes() == adapters(whole)[key].read_bytes()


def test_generator_and_learner_agree_on_what_was_drawn(whole: Path) -> None:
    records = [json.loads(line) for line in (whole / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(record["engine_gap"] < 1e-4 for record in records)  # the same engine, float32


def test_an_interrupt_that_python_drops_is_raised_at_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only other exceptions of destructors are told."""
    display, told, before = Display(Console(quiet=True)), list[type[BaseException]](), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "unraisablehook", hook := lambda dropped: told.append(dropped.exc_type))

    class Unlucky:
        def __init__(self, ending: Callable[[], object]) -> None:
            self.ending = ending

        def __del__(self) -> None:
            self.ending()

    with ctrl_c(display), display.stage("score", "rows", 2) as meter:
        meter.advance(1)
        unlucky = Unlucky(lambda: signal.raise_signal(signal.SIGINT))
        del unlucky
        unlucky = Unlucky(lambda: 1 / 0)
        del unlucky
        assert told == [ZeroDivisionError]
        with pytest.raises(KeyboardInterrupt):
            meter.advance(1)
    assert sys.unraisablehook is hook and signal.getsignal(signal.SIGINT) is before
