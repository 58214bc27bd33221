"""A worker whose sources are others than the sweep's computes nothing, and says so in one line."""

import pickle
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from helpers.games import commit_adapters, tiny
from lowmem_spin.algorithm import source_hashes
from lowmem_spin.algorithm.stages import Score, Train
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.grid import planned_points, sweep_axes
from lowmem_spin.config.load import find_recipe
from lowmem_spin.runner.open import SharedResources, open_game
from lowmem_spin.runner.sweep_worker import SweepWorker

LINE = (
    "a worker finds another game in this recipe than the sweep does: its GPU, versions or files differ, or a function of your "
    "own does not always return the same"
)


def on_another_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Its copy of this package has another losses.py."""
    package = folder / "lowmem_spin"
    shutil.copytree(source_hashes.ROOT / "lowmem_spin", package, ignore=shutil.ignore_patterns("[!_]*.pyc", "__pycache__"))
    file = package / "algorithm" / "losses.py"
    source = file.read_text()
    assert source.count(old) == 1
    file.write_text(source.replace(old, new))
    monkeypatch.setattr(source_hashes, "ROOT", folder)


@pytest.mark.parametrize("differs", [True, False])
def test_a_worker_with_another_loss_is_refused(differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another comment it is not."""
    monkeypatch.chdir(Path.cwd())  # to which it is brought back: a worker goes to its sweep's directory
    path = find_recipe("quickstart")
    points = planned_points(path, tiny(tmp_path), sweep_axes(path, "0.5,1", None, []), 1)
    shared = SharedResources()
    game = open_game(points[0].recipe, path.parent, Display(Console(quiet=True)), shared)
    trainings = [stage for stage in game.stages if isinstance(stage, Train)]
    commit_adapters(game, trainings[0].policy)  # so that there is nothing left to compute of it
    loss = "return -F.logsigmoid(beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)))\n"
    other = loss.replace("beta *", "2 * beta *") if differs else f"# as in the paper\n    {loss}"
    on_another_machine(tmp_path / "elsewhere", monkeypatch, loss, other)
    worker = SweepWorker(points, path.parent, str(Path.cwd()), tmp_path / "worker.log", Trust())
    learned_from_iterate_0 = next(
        stage for stage in game.stages if isinstance(stage, Score) and stage.pairs == trainings[1].pairs
    )
    for stage in (trainings[0], learned_from_iterate_0) if differs else trainings[:1]:
        done = pickle.loads(pickle.dumps(worker.play(0, stage, False, None, False)))  # noqa: S301 - as it travels
        if differs:
            assert isinstance(done.error, InputError) and str(done.error) == LINE and not done.late
        else:
            assert done.error is None
        assert not any(done.rows.values())
    assert {entry.name for entry in (tmp_path / "store" / "adapters").iterdir()} == {trainings[0].policy}
    assert not (tmp_path / "store" / "completions").exists() and not (tmp_path / "store" / "logps").exists()
