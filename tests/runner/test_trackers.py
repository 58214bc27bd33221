"""One experiment per game, live, read back with the tracker's own tools. Trackers that are not installed are skipped."""

import json
import sqlite3
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.commands import assert_one_line, play, play_apart
from lowmem_spin.algorithm.roles import Role
from lowmem_spin.common.display import StageMeter
from lowmem_spin.runner.tracker_backends import Experiment, logged_in_to_wandb
from lowmem_spin.runner.trackers import Tracker

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


def events(folder: Path, metric: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) as they stand in the event files, the oldest file first: nothing purged, nothing sorted."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    paths = sorted(folder.glob("tensorboard/*/events*"))
    return [
        (event.step, make_ndarray(value.tensor).item())
        for path in paths
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == metric
    ]


def test_tensorboard(game: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A game that is interrupted in its second training, one step after a checkpoint, and goes on."""
    folder, steps, advance = game / "tensorboard", [0], StageMeter.advance

    def interrupted(meter: StageMeter, *told: object) -> None:
        steps[0] += meter.kind == "train"
        if steps[0] == 8:
            assert [step for step, _ in events(folder)] == list(range(1, 8))  # logged while it goes on
            raise KeyboardInterrupt
        advance(meter, *told)  # type: ignore[arg-type]

    asked = ["output.report_to=tensorboard", f"output.dir={folder}", "runtime.checkpoint_steps=2"]
    with monkeypatch.context() as patched:
        patched.setattr(StageMeter, "advance", interrupted)
        assert play(game, *asked).returncode == 130
    for _ in range(2):  # the second time everything is logged
        assert play(game, *asked).returncode == 0
        logged = events(folder)
        assert [step for step, _ in logged] == list(range(1, 9))
        assert [value for _, value in logged] == pytest.approx(losses(game), abs=1e-6)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        drift = [(4 * place, pytest.approx(record["kl_to_base"], abs=1e-6)) for place, record in enumerate(records)]
        assert events(folder, "health/kl_to_base") == drift
    (experiment,) = (folder / "tensorboard").iterdir()
    assert experiment.name.startswith("tensorboard-")  # the folder is called so, as its recipe would be


def test_a_step_is_logged_once_though_its_memory_is_lost(tmp_path: Path) -> None:
    """As by a kill between the event file and the memory of it, and one in the middle of an event."""
    records = [{"loss": 1 / step, "step": step} for step in range(1, 7)]
    tracker = Tracker("tensorboard", tmp_path, "k" * 16, {})
    for record in records[:4]:
        tracker.training("iterate 0", Role.ITERATE)(record)
    assert [step for step, _ in events(tmp_path)] == [1, 2, 3, 4]
    (tmp_path / "logged_to_tensorboard.json").unlink()
    (torn,) = tmp_path.glob("tensorboard/*/events*")
    with torn.open("rb+") as file:
        file.truncate(torn.stat().st_size - 5)
    tracker = Tracker("tensorboard", tmp_path, "k" * 16, {})
    for record in records:
        tracker.training("iterate 0", Role.ITERATE)(record)
    tracker.close()
    assert events(tmp_path) == [(record["step"], pytest.approx(record["loss"])) for record in records]


def test_a_tracker_that_fails_is_one_line_and_the_next_run_logs_the_rest(tmp_path: Path) -> None:
    in_the_way = tmp_path / "tensorboard"
    in_the_way.write_text("no folder")
    said: list[str] = []
    records = [{"loss": 0.5, "step": step} for step in (1, 2, 3)]
    for run in range(2):
        if run == 1:
            in_the_way.unlink()
        tracker = Tracker("tensorboard", tmp_path, "k" * 16, {}, said.append)
        for record in records:
            tracker.training("SFT 1", Role.BASELINE)(record)
        tracker.close()
    assert len(said) == 1
    assert said[0].startswith("tensorboard failed: ")
    assert said[0].endswith("; the game continues without it; run again to log the rest")
    assert events(tmp_path, "SFT 1/train/loss") == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_experiments_are_called_as_their_recipes() -> None:
    assert Experiment(Path("runs/quickstart"), "k", {}).name == "quickstart"
    assert Experiment(Path("runs/mine-sweep/points/alpha-0.5"), "k", {}).name == "mine-sweep alpha-0.5"


def test_who_is_logged_in_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not logged_in_to_wandb()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password a_key\n")
    assert logged_in_to_wandb()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080")
    assert not logged_in_to_wandb()
    monkeypatch.setenv("WANDB_API_KEY", "a_key")
    assert logged_in_to_wandb()


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
    assert_one_line(
        play(tmp_path, f"output.report_to={missing}"),
        "output.report_to",
        f"in your clone: `pip install -e '.[{missing}]'`, or use none",
    )
