"""The steps for a borrowed GPU, without one: what a step does to the others when it fails, hangs or boasts."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from gpu import steps
from gpu.steps import Step

HANGS = """
import subprocess, time
print("child", subprocess.Popen(["sleep", "600"]).pid, flush=True)
time.sleep(600)
"""
STUBBORN = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print('here'); " + HANGS.replace("\n", ";").strip(";")


def python(name: str, code: str, seconds: float = 60) -> Step:
    return Step(name, seconds, [sys.executable, "-u", "-c", code])


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(steps, "OUT", tmp_path / "out")
    monkeypatch.setattr(steps, "WORK", tmp_path / "work")
    monkeypatch.setattr(steps, "PATIENCE", 1)


def child_lives(step: Step) -> bool:
    """Whether it still does after a while: a kill takes its time."""
    child = int(step.log.read_text().split("child ")[1].split()[0])
    end = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("code", [HANGS, STUBBORN], ids=["interrupted", "killed"])
def test_a_step_that_hangs_ends_with_all_that_it_started(code: str) -> None:
    step = python("hangs", code, seconds=3)
    (result,) = steps.play("train", [step], 100)
    assert (result.word, result.note.split(";")[0]) == ("FAIL", "ran out of 3 s")
    assert not child_lives(step)
    assert ("KeyboardInterrupt" in step.log.read_text()) == (code == HANGS)  # where it was, if it would say


def test_steps_fail_alone_and_the_table_has_them_all() -> None:
    chosen = [
        python("breaks", "raise ValueError('no such thing')"),
        python("works", "print('fine')"),
        python("boasts", "print('unsloth self-test   fails: no kernel image')"),  # and exits with 0
    ]
    steps.play("train", chosen, 100)
    lines = [line.split(maxsplit=4) for line in (steps.OUT / "summary.txt").read_text().splitlines()]
    assert [line[:2] for line in lines] == [["FAIL", "breaks"], ["PASS", "works"], ["FAIL", "boasts"]]
    assert lines[0][4] == "exit 1; ValueError: no such thing"
    assert "no kernel image" in lines[2][4]
    log = (steps.OUT / "all.log").read_text()
    assert log.index("no such thing") < log.index("fine") < log.index("no kernel image")


def test_no_step_begins_that_has_no_time(tmp_path: Path) -> None:
    (result,) = steps.play("train", [python("late", f"open({str(tmp_path / 'began')!r}, 'w')")], steps.LEAST - 1)
    assert result.word == "SKIP"
    assert not (tmp_path / "began").exists()


def test_a_worker_log_outlives_its_folder(tmp_path: Path) -> None:
    code = (
        "import pathlib, shutil, tempfile, time; folder = pathlib.Path(tempfile.mkdtemp()); (folder / 'logs').mkdir();"
        "(folder / 'logs' / 'vllm.log').write_text('out of luck'); time.sleep(2); shutil.rmtree(folder)"
    )
    steps.play("train", [python("leaves", code)], 100)
    assert "out of luck" in (steps.OUT / "workers.txt").read_text()
