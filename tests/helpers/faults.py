"""The fault campaign: play a short game, kill it at random moments, go on, and count what was lost or redone.

    python tests/helpers/faults.py --kills 200            # in a folder of its own; about 3 s a kill
    python tests/helpers/faults.py --hours 1 --seed 7

Games run in children forked from a process that has imported everything, so a kill costs no imports.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from safetensors.torch import load_file

from lowmem_spin.cli.play import run
from lowmem_spin.common.display import Display
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.engines import hf  # noqa: F401 - imported here so that no child has to

ROWS = Path(__file__).with_name("rows.jsonl")  # 200 of the quickstart's 6,000, which take longer to read than a game does
SHORT = [
    f"data.path={ROWS}",
    "game.pairs=32",
    "game.iterations=2",
    "training.per_device_train_batch_size=8",
    "evaluation.path=null",
    "evaluation.metric=none",
    "evaluation.compare_sft=false",
    "evaluation.health_prompts=8",
    "runtime.generation_batch_size=16",
    "runtime.scoring_batch_size=2",
    "runtime.checkpoint_steps=2",
    "runtime.device=cpu",
]
IDENTITY = {"completions": ["prompt_id", "sample"], "logps": ["prompt_id", "completion", "content"]}
Row = tuple[object, ...]


class Marked(Display):
    """Leaves the kind of the stage under way where the killer can read it."""

    def __init__(self, mark: Path) -> None:
        super().__init__(Console(file=Path(os.devnull).open("w")))  # noqa: SIM115 - as long as the process
        self.mark = mark
        mark.write_text("between stages")

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        self.mark.write_text(kind)
        with super().timed(kind):
            yield
        self.mark.write_text("between stages")


def play(folder: Path) -> int:
    """Fork a game on folder/store; the child's process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        errors = os.open(folder / "errors.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(errors, 2)
        path = find_recipe("quickstart")
        recipe = load_recipe(path, [*SHORT, f"output.store={folder / 'store'}", f"output.dir={folder / 'run'}"])
        run(recipe, path.parent, Marked(folder / "mark.txt"))
        status = 0
    finally:
        os._exit(status)


def rows(folder: Path) -> tuple[dict[tuple[str, str, Row], Row], int]:
    """Every committed row by its identity, and how many are there more than once."""
    found: dict[tuple[str, str, Row], Row] = {}
    doubled = 0
    for kind, identity in IDENTITY.items():
        for file in sorted((folder / "store" / kind).glob("*/[!.]*.parquet")):
            for row in pq.read_table(file).to_pylist():
                name = (kind, file.parent.name, tuple(row[column] for column in identity))
                doubled += name in found and not _merged(file.parent)
                found[name] = tuple(str(value) for value in row.values())
    return found, doubled


def _merged(table: Path) -> bool:
    """Whether a merge was stopped before it could delete what it merged: both files hold the same rows then."""
    return any(b"merged" in (pq.read_schema(file).metadata or {}) for file in table.glob("[!.]*.parquet"))


def adapters(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {p.parent.name: load_file(p) for p in (folder / "store" / "adapters").glob("*/adapter_model.safetensors")}


def distance(ours: Path, theirs: Path) -> float:
    """The largest difference between the adapters of two games."""
    one, two = adapters(ours), adapters(theirs)
    assert one.keys() == two.keys()
    return max((one[key][name] - two[key][name]).abs().max().item() for key in one for name in one[key])


def campaign(folder: Path, kills: int, seconds: float, seed: int) -> dict[str, object]:
    """Kill games until `kills` or `seconds` are reached; finish the last one."""
    rng, began = random.Random(seed), time.monotonic()
    whole = folder / "whole"
    whole.mkdir(parents=True)
    started = time.monotonic()
    assert os.waitpid(play(whole), 0)[1] == 0, (whole / "errors.txt").read_text()
    length = time.monotonic() - started
    machine: Counter[str] = Counter()
    lost = redone = games = 0
    worst = 0.0
    while machine.total() < kills and time.monotonic() - began < seconds:
        game = folder / f"game {games}"
        game.mkdir()
        before: dict[tuple[str, str, Row], Row] = {}
        finished = False
        while not finished:
            child = play(game)
            deadline = time.monotonic() + rng.uniform(0.02, 0.6) * length
            while not finished and time.monotonic() < deadline:
                finished = os.waitpid(child, os.WNOHANG)[0] == child
                time.sleep(0.002)
            if not finished:
                if (game / "mark.txt").exists():
                    machine[(game / "mark.txt").read_text() or "between stages"] += 1
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            after, doubled = rows(game)
            lost += len(before.keys() - after.keys())
            redone += doubled + sum(before[name] != after[name] for name in before.keys() & after.keys())
            before = after
        assert (game / "run" / "metrics.jsonl").exists(), (game / "errors.txt").read_text()
        assert rows(game)[0] == rows(whole)[0]
        worst = max(worst, distance(game, whole))
        games += 1
        print(
            f"{games} games, {machine.total()} kills {dict(machine)}, lost {lost}, redone {redone}, adapters {worst:.1e}",
            flush=True,
        )
    return {"games": games, "kills": machine, "lost": lost, "redone": redone, "distance": worst}


def main() -> None:
    """Run a campaign and say what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), arguments.kills, arguments.hours * 3600, arguments.seed)
    print(found)
    sys.exit(bool(found["lost"] or found["redone"] or float(str(found["distance"])) > 1e-6))


if __name__ == "__main__":
    main()
