"""Terminals and pipes that have not every letter."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from helpers.commands import arguments
from lowmem_spin.common.display import Display
from lowmem_spin.common.streams import spell_out


def shown(encoding: str, line: str) -> str:
    """A line and a table, on a terminal of this encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    spell_out(stream)
    display = Display(Console(file=stream, width=60, force_terminal=True, color_system=None))
    display.log(line)
    table = Table(title=line)
    table.add_column("score ±")
    table.add_row("96.9 ±0.7")
    display.console.print(table)
    with display.start_up(line), display.stage("generate", line, 3) as meter:
        meter.advance(3, 12)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("encoding", "line", "expected"),
    [
        ("ascii", "räk ☃ ± …", r"r\xe4k \u2603 +- ..."),
        ("cp1252", "räk ☃ ± …", r"räk \u2603 ± …"),
        ("utf-8", "räk ☃ ± …", "räk ☃ ± …"),
        ("latin-1", "💥", r"\U0001f4a5"),
    ],
)
def test_what_an_encoding_lacks_is_spelled_out(encoding: str, line: str, expected: str) -> None:
    text = shown(encoding, line)
    assert text.startswith(expected) and text.count(expected) >= 3
    assert ("96.9 +-0.7" if encoding == "ascii" else "96.9 ±0.7") in text


def test_a_stream_that_is_no_file_is_left_alone() -> None:
    stream = io.StringIO()
    spell_out(stream)
    assert stream.getvalue() == ""


def in_ascii(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lowmem_spin.cli", *map(str, words)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_whole_run_is_over_and_told_in_ascii(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "räk ☃", symlinks=True))
    result = in_ascii(*arguments(folder))
    assert result.returncode == 0, result.stderr
    assert r"results in " in result.stdout and r"r\xe4k \u2603" in result.stdout and "+-" in result.stdout
    assert result.stdout.isascii() and "Traceback" not in result.stderr
    lost = in_ascii("report", folder / "nöwhere")
    assert (lost.returncode, lost.stderr.count("\n")) == (2, 1) and r"n\xf6where" in lost.stderr
