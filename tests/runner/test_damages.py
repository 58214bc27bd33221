"""Whatever file of a game is harmed, it ends as it would have, or in one line; what was harmed is named."""

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import assert_one_line, ended, play
from helpers.damages import harm
from helpers.faults import adapters, distance, rows
from helpers.forked import Command
from lowmem_spin.common.errors import InputError
from lowmem_spin.report.load import read_results
from lowmem_spin.runner import run_folder


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has imported torch")
def test_a_short_campaign_changes_nothing_and_shows_no_traceback() -> None:
    result = ended(Command("--damages", 5, "--seed", 3, module="helpers.damages"))
    assert result.returncode == 0, result.stdout + result.stderr


def _other_digit(path: Path) -> None:
    """Another first digit of some number in a file; the last one of seventeen may be read as the same number."""
    text = path.read_text()
    places = [found.start() for found in re.finditer(r"(?<![\d.])\d", text)]
    place = places[len(places) // 2]
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("store/sources.json", _other_digit),
        ("store/completions/*/manifest.json", _other_digit),
        ("run/run.json", _other_digit),
        ("run/run.json", _cut),
        ("run/metrics.jsonl", _other_digit),
        ("run/metrics.jsonl", _cut),
        ("run/metrics.jsonl", lambda path: path.write_bytes(b"\xff")),
    ],
)
def test_a_harmed_small_file_is_named_and_written_again(
    copy: Path, whole: Path, name: str, harm: Callable[[Path], Any]
) -> None:
    victim = next(copy.glob(name))
    before = victim.read_bytes()
    harm(victim)
    assert victim.read_bytes() != before
    result = play(copy)
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stdout.splitlines() if line.startswith(str(victim))]
    assert len(said) == 1 and ("again" in said[0]), result.stdout
    assert not {"generate", "score", "train"} & {line.split()[0] for line in result.stdout.splitlines() if line.strip()}
    assert adapters(copy).keys() == adapters(whole).keys() and rows(copy)[0] == rows(whole)[0]
    if victim.name == "metrics.jsonl":
        assert victim.read_bytes() == before
    assert str(victim) not in play(copy).stdout.replace(f"numbers  {victim}", "")  # it is said once


def test_numbers_without_their_counts_are_an_earlier_versions_and_contradict_nothing(copy: Path) -> None:
    metrics = copy / "run" / "metrics.jsonl"
    before = metrics.read_text()
    lines = [{k: v for k, v in json.loads(line).items() if not k.endswith("_n")} for line in before.splitlines()]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = play(copy)
    assert result.returncode == 0 and "has other numbers" not in result.stdout, result.stdout + result.stderr
    assert metrics.read_text() == before


@pytest.mark.parametrize("name", ["adapter_config.json", "manifest.json", "generation_config.json"])
def test_an_adapter_with_another_digit_in_a_small_file_is_trained_again(copy: Path, whole: Path, name: str) -> None:
    _other_digit(next((copy / "store" / "adapters").glob(f"*/{name}")))
    result = play(copy)
    assert result.returncode == 0, result.stderr
    assert "does not have the bytes that were committed" in result.stdout and name in result.stdout
    assert rows(copy)[0] == rows(whole)[0] and distance(copy, whole) == 0.0


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml", "metrics.jsonl", "report.html", "iterates.png", "iterates.svg"])
def test_a_folder_where_a_file_is_to_be_written_is_one_line(copy: Path, name: str) -> None:
    victim = copy / "run" / name
    victim.unlink()
    victim.mkdir()
    assert_one_line(play(copy), "output.dir", f"{str(victim)!r} is a folder, where a file is to be written; move it away")


def test_commands_on_a_harmed_run_folder_have_one_line_to_say(copy: Path) -> None:
    """200 damages to what reports, chats and exports read."""
    r, refused = random.Random(4), 0
    names = ["run.json", "run.json", "metrics.jsonl", "recipe.yaml", "iterates/0/manifest.json"]
    for _ in range(200):
        victim = copy / "run" / r.choice(names)
        content = victim.read_bytes()
        harm(r, victim)
        for read in (read_results, run_folder.read_run_folder):
            try:
                read(copy / "run")
            except InputError:
                refused += 1
        if victim.is_dir():
            victim.rmdir()
        victim.write_bytes(content)
    assert refused > 100
