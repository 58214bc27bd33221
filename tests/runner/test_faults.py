"""What the world does to a store overnight; each fault ends in the right result or in one clear line."""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.commands import assert_one_line, call, ended, play, play_apart
from helpers.faults import adapters, distance, rows
from helpers.forked import Command
from helpers.unreadable import answering_eio


def assert_same_game(folder: Path, whole: Path) -> None:
    assert rows(folder)[0] == rows(whole)[0]
    assert distance(folder, whole) <= 1e-6


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has imported torch")
def test_a_short_campaign_loses_and_redoes_nothing() -> None:
    result = ended(Command("--kills", 5, "--seed", 5, module="helpers.faults"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_damaged_tables_are_made_again_as_far_as_they_are_needed_and_nothing_else_is(copy: Path, whole: Path) -> None:
    """A finished game is measured by some of their rows; the others are needed only to train again."""
    for kind, harm in (("completions", lambda content: content[:-30]), ("logps", _flip)):
        victim = max((copy / "store" / kind).glob("*/*.parquet"), key=lambda file: file.stat().st_size)
        victim.write_bytes(harm(victim.read_bytes()))
    before = {path: path.stat().st_mtime_ns for path in (copy / "store" / "adapters").rglob("*")}
    result = play(copy)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("computed again as far as it is needed") == 2
    assert {path: path.stat().st_mtime_ns for path in (copy / "store" / "adapters").rglob("*")} == before
    assert (copy / "run" / "metrics.jsonl").read_text() == (whole / "run" / "metrics.jsonl").read_text()
    left, right = rows(copy)[0], rows(whole)[0]
    assert left.items() < right.items(), "what is left and what was made again is as it was"
    shutil.rmtree(copy / "store" / "adapters")
    assert play(copy).returncode == 0
    assert_same_game(copy, whole)


def test_damaged_rows_are_prepared_again(copy: Path, whole: Path) -> None:
    for victim in (copy / "store" / "data").glob("*.parquet"):
        victim.write_bytes(_flip(victim.read_bytes()))
    result = play(copy)
    assert result.returncode == 0, result.stderr
    assert "generate" not in result.stdout
    assert_same_game(copy, whole)


def test_the_resolved_recipe_plays_from_where_it_is(
    copy: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = copy / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(whole), str(copy)))
    monkeypatch.chdir(tmp_path)
    result = call("run", recipe)
    assert result.returncode == 0, result.stderr
    assert "generate" not in result.stdout


def test_new_category_labels_cost_no_training(copy: Path) -> None:
    before = set(adapters(copy))
    assert play(copy, "evaluation.category=skill").returncode == 0
    assert set(adapters(copy)) == before


def _flip(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def test_an_adapter_with_a_flipped_byte_is_trained_again_from_what_is_stored(copy: Path, whole: Path) -> None:
    victim = next((copy / "store" / "adapters").glob("*/adapter_model.safetensors"))
    victim.write_bytes(_flip(victim.read_bytes()))
    result = play(copy)
    assert result.returncode == 0, result.stderr
    assert "does not have the bytes that were committed" in result.stdout.replace("\n", " ")
    assert "generate" not in result.stdout
    assert_same_game(copy, whole)


def test_a_clock_that_jumps_changes_nothing(copy: Path) -> None:
    for years, path in enumerate(sorted((copy / "store").rglob("*"))):
        moment = time.time() + (-1) ** years * 86400 * 365 * (1 + years % 7)
        os.utime(path, (moment, moment), follow_symlinks=False)
    result = play(copy)
    assert result.returncode == 0, result.stderr
    assert "generate" not in result.stdout
    assert "train iterate" not in result.stdout


def test_a_store_of_another_version_is_one_line(copy: Path) -> None:
    (copy / "store" / "FORMAT").write_text("2")
    assert_one_line(play(copy), "output.store", "has format '2', this version writes '1'; use another folder")


def small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


def test_a_limit_on_file_size_is_one_line_and_loses_nothing(tmp_path: Path, whole: Path) -> None:
    assert_one_line(play_apart(tmp_path, before=small_files_only), "cannot write", "run again to continue")
    assert play(tmp_path).returncode == 0
    assert_same_game(tmp_path, whole)


def test_a_drive_that_does_not_answer_is_one_line_and_nothing_is_computed_again(copy: Path, whole: Path) -> None:
    table, weights = rows_file(copy), next((copy / "store" / "adapters").glob("*/adapter_model.safetensors"))
    for victim in (table, weights):
        healthy = victim.rename(victim.with_name("healthy"))
        victim.symlink_to(answering_eio())
        assert_one_line(play(copy), f"cannot read: {victim}: Input/output error", "run again to continue")
        victim.unlink()
        healthy.rename(victim)
    assert not (copy / "store" / "aside").exists()
    result = play(copy)
    assert result.returncode == 0, result.stderr
    assert "generate" not in result.stdout
    assert "train iterate" not in result.stdout
    assert_same_game(copy, whole)


def rows_file(folder: Path) -> Path:
    """A file of a finished game's completions."""
    return max((folder / "store" / "completions").glob("*/*.parquet"), key=lambda file: file.stat().st_size)


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", *arguments, folder], capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("size", ["64k", "1m"], ids=["in generation", "in training"])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, whole: Path, size: str) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        full = play_apart(disk, f"output.dir={tmp_path / 'run'}")
        assert_one_line(full, "No space left on device", "run again to continue")
        before = rows(disk)[0]
        assert size == "64k" or before
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        more = play(disk, f"output.dir={tmp_path / 'run'}")
        assert more.returncode == 0, more.stderr
        after = rows(disk)[0]
        assert all(after[name] == row for name, row in before.items())
        assert_same_game(disk, whole)


def test_a_read_only_store_shows_a_finished_game_and_refuses_a_new_one_in_one_line(copy: Path) -> None:
    store = copy / "store"
    with mounted(store, "--bind", str(store)):
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
        finished = play(copy)
        assert finished.returncode == 0, finished.stderr
        assert "Held-out results" in finished.stdout
        assert_one_line(play(copy, "seed=1", f"output.dir={copy / 'other'}"), "Read-only file system")
    assert adapters(copy)
