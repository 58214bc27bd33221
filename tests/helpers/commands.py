"""The command line as a user starts it, on games of seconds."""

import subprocess
import sys
from pathlib import Path

from helpers.faults import SHORT

SMALL = {
    "game.pairs": 96,
    "game.iterations": 2,
    "training.per_device_train_batch_size": 8,
    "evaluation.path": "null",
    "evaluation.metric": "none",
    "evaluation.compare_sft": "false",
    "evaluation.health_prompts": 24,
    "runtime.generation_batch_size": 16,
    "runtime.scoring_batch_size": 2,
    "runtime.checkpoint_steps": 2,
}


def start(folder: Path, **changes: object) -> subprocess.Popen[str]:
    values = {**SMALL, "output.store": folder / "store", "output.dir": folder / "run"}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    overrides = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "lowmem_spin.cli", "run", "quickstart", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def command(folder: Path, *overrides: str) -> list[str]:
    changes = [*SHORT, f"output.store={folder / 'store'}", f"output.dir={folder / 'run'}", *overrides]
    return [sys.executable, "-m", "lowmem_spin.cli", "run", "quickstart", *(f"--set={change}" for change in changes)]


def play(folder: Path, *overrides: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *overrides), capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
