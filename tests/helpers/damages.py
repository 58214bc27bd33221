"""The damage campaign: harm one file of a game at random, play it again, and see what comes of it.

    PYTHONPATH=tests python -m helpers.damages --damages 200           # in a folder of its own; about 2 s each
    PYTHONPATH=tests python -m helpers.damages --hours 1 --seed 7

A short game is played once to its end, and once until it is stopped in the middle of a training, of which the checkpoints
are harmed. Each damage is done to a copy of one of the two, which is then played by the command line in a process forked
from one that has imported everything. Right is that the game ends in the same adapters, rows and numbers, or that one line
with exit code 2 says why not.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console

import lowmem_spin.report.page  # noqa: F401 - imported here so that no child has to
from helpers.faults import SHORT, rows
from lowmem_spin.cli.main import main as command_line
from lowmem_spin.cli.play import run
from lowmem_spin.common.display import Display, TimeIsUpError
from lowmem_spin.config.load import find_recipe, load_recipe

GAME = [*SHORT, "runtime.checkpoint_steps=1", "output.report_to=tensorboard"]
MEASURED = "evaluation.benchmarks=[diversity]"  # what the finished game has, and the stopped one does not come to
SECONDS = 120  # that a game may take; one that hangs takes longer
RIGHT = ("same, and said", "same, silently", "one line")
SAID = ("moved to", "written again", "missing")
Ended = tuple[int | None, str, str]
"""Exit code, output and errors of a process; no code of one that hangs."""
Harm = Callable[[random.Random, bytes], bytes]


class Stopping(Display):
    """Has its time up at the third checkpoint of the second iterate's training."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.under_way, self.checkpoints = "", 0

    @contextmanager
    def stage(self, kind: str, label: str, rows: int) -> Iterator[Any]:
        self.under_way = f"{kind} {label}"
        with super().stage(kind, label, rows) as meter:
            yield meter

    def stop_if_late(self) -> None:
        self.checkpoints += self.under_way == "train iterate 1"
        if self.checkpoints == 3:
            raise TimeIsUpError


def forked(folder: Path, do: Callable[[], None]) -> Ended:
    """What came of a child."""
    told = [folder / name for name in ("out.txt", "err.txt")]
    child = os.fork()
    if not child:
        for number, path in enumerate(told, start=1):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        code = 1
        try:
            do()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException as error:  # noqa: BLE001 - it is shown, and the child ends
            traceback.print_exception(error)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code, deadline = None, time.monotonic() + SECONDS
    while code is None:
        ended, status = os.waitpid(child, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if ended else None
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    if code is None:
        os.kill(child, 9)
        os.waitpid(child, 0)
    output, errors = (path.read_text(errors="replace") for path in told)
    return code, output, errors


def asked(folder: Path, *more: str) -> list[str]:
    """Overrides of the game in a folder."""
    return [*GAME, *more, f"output.store={folder / 'store'}", f"output.dir={folder / 'run'}"]


def play(folder: Path, *more: str) -> Ended:
    """The game in a folder, as a user plays it."""

    def command() -> None:
        sys.argv = ["lowmem-spin", "run", "quickstart", *(f"--set={change}" for change in asked(folder, *more))]
        command_line()

    return forked(folder, command)


def stop(folder: Path) -> Ended:
    """The game in a folder, until it is stopped in a training."""

    def part() -> None:
        path = find_recipe("quickstart")
        try:
            run(load_recipe(path, asked(folder)), path.parent, Stopping())
        except TimeIsUpError:
            return
        raise AssertionError("it was not stopped")

    return forked(folder, part)


def result(folder: Path) -> dict[str, Any]:
    """What a game has come to."""
    weights = (folder / "store" / "adapters").glob("*/adapter_model.safetensors")
    numbers = folder / "run" / "metrics.jsonl"
    results = (folder / "store" / "results").glob("*/*.json")
    return {
        "adapters": {path.parent.name: path.read_bytes() for path in weights},
        "results": {path.name: json.loads(path.read_text())["numbers"] for path in results},
        "numbers": numbers.read_text() if numbers.exists() else None,
        "rows": rows(folder)[0],
    }


def _at(r: random.Random, content: bytes, make: Callable[[int], bytes]) -> bytes:
    """`content` with a part of it, from somewhere, replaced by what `make` gives for the byte that was there."""
    place = r.randrange(len(content)) if content else 0
    new = make(content[place] if content else 0)
    return content[:place] + new + content[place + len(new) :]


HARMS: dict[str, Harm | None] = {
    "bit": lambda r, content: _at(r, content, lambda byte: bytes([byte ^ 1 << r.randrange(8)])),
    "byte": lambda r, content: _at(r, content, lambda byte: bytes([(byte + r.randrange(1, 256)) % 256])),
    "noise": lambda r, content: _at(r, content, lambda byte: r.randbytes(r.choice([16, 512]))),
    "zeros": lambda r, content: _at(r, content, lambda byte: bytes(r.choice([16, 512]))),
    "truncated": lambda r, content: content[: r.randrange(len(content)) if content else 0],
    "empty": lambda r, content: b"",
    "missing": None,
    "folder": None,
}


def victims(game: Path) -> dict[str, list[Path]]:
    """The files of a game by what they are."""
    found: dict[str, list[Path]] = {}
    for path in sorted(game.rglob("*")):
        parts = path.relative_to(game).parts
        if path.is_file() and len(parts) > 1:
            place = parts[:2] if len(parts) > 2 else parts[:1]
            name = path.name if path.suffix in (".pt", ".pth") or "key" not in _shape(path.name) else _shape(path.name)
            found.setdefault("/".join([*place, *(["checkpoint"] if "checkpoint" in str(path) else []), name]), []).append(path)
    return found


def _shape(name: str) -> str:
    """A name without what is hashed or drawn in it."""
    stem, _, ending = name.partition(".")
    drawn = len(stem) >= 20 and any(character.isdigit() for character in stem)
    return f"{stem.partition('-')[0] if '-' in stem else ''}key.{ending.rpartition('.')[2]}" if drawn else name


def harm(r: random.Random, path: Path) -> str:
    """Damage a file; how."""
    how = r.choice(sorted(HARMS))
    do, content = HARMS[how], path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif do is not None:
        path.write_bytes(do(r, content))
    return how


def verdict(expected: dict[str, Any], game: Path, ended: Ended) -> str:
    """What came of a damage, in a few words."""
    code, output, errors = ended
    if code is None:
        return "hangs"
    if "Traceback" in output + errors:
        return "traceback"
    if code == 2 and len(errors.splitlines()) == 1:
        return "one line"
    if code != 0:
        return f"ended with {code}"
    found = result(game)
    known = expected["rows"]
    found["rows"] = {**known, **found["rows"]}  # of those that were lost only what is needed comes back
    other = [name for name, value in expected.items() if found[name] != value]
    if other:
        return f"other {', '.join(other)}"
    return "same, and said" if any(word in output for word in SAID) else "same, silently"


def prepare(folder: Path) -> dict[str, dict[str, Any]]:
    """Play the two games that are damaged, in folder/whole and folder/stopped; what each comes to, by its name."""
    folder.mkdir(exist_ok=True)
    for name in ("whole", "stopped"):
        (folder / name).mkdir()
        code, output, errors = play(folder / name, MEASURED) if name == "whole" else stop(folder / name)
        assert code == 0, output + errors
    assert list((folder / "stopped" / "store" / "work").glob("*/checkpoint-*/manifest.json"))
    shutil.copytree(folder / "stopped", folder / "case", symlinks=True)
    code, output, errors = play(folder / "case")
    assert code == 0, output + errors
    found = {"whole": result(folder / "whole"), "stopped": result(folder / "case")}
    assert found["whole"]["adapters"] == found["stopped"]["adapters"]
    return found


def damage_once(folder: Path, expected: dict[str, dict[str, Any]], seed: object) -> tuple[str, str, str]:
    """One damage to one copy: (what was harmed, how, what came of it). What went wrong is shown, and stays in folder/bad."""
    r, case = random.Random(repr(seed)), folder / "case"
    shutil.rmtree(case, ignore_errors=True)
    origin = r.choice(["whole", "whole", "whole", "stopped"])
    shutil.copytree(folder / origin, case, symlinks=True)
    by_kind = victims(case)
    what = r.choice([kind for kind in sorted(by_kind) if origin == "whole" or kind.startswith("store/work")])
    path = r.choice(by_kind[what])
    how = harm(r, path)
    ended = play(case, *([MEASURED] if origin == "whole" else []))
    came = verdict(expected[origin], case, ended)
    if came not in RIGHT:
        kept = folder / "bad" / repr(seed)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(case, kept, symlinks=True)
        print(f"{seed}: {path.relative_to(case)} {how}: {came}\n{ended[1][-600:]}{ended[2][-3000:]}", flush=True)
    return what, how, came


def campaign(folder: Path, damages: range, seconds: float, seed: int) -> Counter[tuple[str, str, str]]:
    """Damage until all are done or `seconds` are over: how often (what, how, what came of it)."""
    began, expected = time.monotonic(), prepare(folder)
    counts: Counter[tuple[str, str, str]] = Counter()
    for number in damages:
        try:
            counts[damage_once(folder, expected, (seed, number))] += 1
        except KeyboardInterrupt:
            break
        if time.monotonic() - began > seconds:
            break
        if counts.total() % 50 == 0:
            print(f"{counts.total()} damages in {time.monotonic() - began:.0f} s: {dict(_by(counts, 2))}", flush=True)
    return counts


def _by(counts: Counter[tuple[str, str, str]], place: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, count in counts.items():
        found[name[place]] += count
    return found


def main() -> None:
    """Run a campaign and say what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first damage")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to play; by default a temporary folder, which goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as temporary:
        numbers = range(arguments.first, arguments.first + arguments.damages)
        counts = campaign(arguments.folder or Path(temporary), numbers, arguments.hours * 3600, arguments.seed)
    for place in (0, 1):
        for name in sorted(_by(counts, place)):
            came = _by(Counter({key: count for key, count in counts.items() if key[place] == name}), 2)
            print(f"{name:<60}{', '.join(f'{count} {what}' for what, count in sorted(came.items()))}")
    total = _by(counts, 2)
    print(f"{total.total()} damages: {', '.join(f'{count} {what}' for what, count in sorted(total.items()))}")
    sys.exit(bool(total.keys() - set(RIGHT)))


if __name__ == "__main__":
    main()
