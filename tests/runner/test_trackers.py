"""One experiment per game, offline, read back with the tracker's own tools. Trackers that are not installed are skipped."""

import json
import sqlite3
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.commands import assert_one_line, play, play_apart

OFFLINE = {"WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch, game: Path) -> Iterator[None]:
    """What the environment has of the user's own is in nothing that a game or a tracker writes."""
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    yield
    assert not [path for path in game.rglob("*") if path.is_file() and b"hf_canary" in path.read_bytes()]


def finished(game: Path, tracker: str) -> Path:
    folder = game / tracker
    for run in (play, play_apart):  # the second one, which knows only what is on disk, finds everything logged
        result = run(game, f"output.report_to={tracker}", f"output.dir={folder}")
        assert result.returncode == 0, result.stderr
    return folder


def losses(game: Path) -> list[float]:
    """The training losses of all iterates, from the store's own records."""
    manifests = [json.loads(path.read_text()) for path in (game / "store" / "adapters").glob("*/manifest.json")]
    manifests.sort(key=lambda manifest: manifest["name"])
    return [record["loss"] for manifest in manifests for record in manifest["metrics"]]


def test_tensorboard(game: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = finished(game, "tensorboard")
    (events,) = (folder / "tensorboard").iterdir()
    read = EventAccumulator(str(events))
    read.Reload()
    assert [event.value for event in read.Scalars("train/loss")] == pytest.approx(losses(game), abs=1e-6)
    steps = [event.step for event in read.Scalars("train/loss")]
    assert steps == sorted(set(steps))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    drift = [event.value for event in read.Scalars("health/kl_to_base")]
    assert drift == pytest.approx([record["kl_to_base"] for record in records], abs=1e-6)


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb(game: Path) -> None:
    folder = finished(game, "wandb")
    runs = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1
    assert runs[0].stat().st_size > 1000


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio(game: Path) -> None:
    folder = finished(game, "trackio")
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        logged = [json.loads(row[0]) for row in connection.execute("select metrics from metrics order by id")]
    assert [row["train/loss"] for row in logged if "train/loss" in row] == pytest.approx(losses(game), abs=1e-6)


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow(game: Path) -> None:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    folder = finished(game, "mlflow")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "lowmem-spin"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.value for metric in history] == pytest.approx(losses(game), abs=1e-6)


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path) -> None:
    missing = next((name for name in ("mlflow", "trackio", "wandb") if find_spec(name) is None), None)
    if missing is None:
        pytest.skip("all of them are installed")
    assert_one_line(play(tmp_path, f"output.report_to={missing}"), "output.report_to", f"pip install 'lowmem-spin[{missing}]'")
