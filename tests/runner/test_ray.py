"""A sweep whose steps Ray's workers compute ends as one that computes them itself, also if workers are killed."""

import io
import json
import os
import re
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from helpers import slow_mount
from helpers.commands import assert_one_line, call
from helpers.games import TINY
from lowmem_spin.cli.play import WorkersAsked, planned_sweep, sweep
from lowmem_spin.common.display import Display
from lowmem_spin.config.grid import sweep_axes
from lowmem_spin.config.load import find_recipe
from lowmem_spin.report.load import read_results
from lowmem_spin.report.results import SweepResults
from lowmem_spin.runner import steps
from lowmem_spin.runner.worker_record import read_workers

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
ADDRESS = r"(::ffff:)?127\."


def joined() -> bool:
    """Whether this process has a part in a Ray cluster. Only a sweep with workers has imported it."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


class Watched(Display):
    """Keeps what is said, and tells who waits for a line."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.lines: list[str] = []
        self.trained = threading.Event()

    def log(self, line: str, style: str = "") -> None:
        self.lines.append(line)
        if "train iterate 0" in line:
            self.trained.set()


def play(folder: Path, asked: WorkersAsked, display: Watched, alpha: str | None = "0.5,1") -> list[str]:
    """Two games that share their first iterate, or one; how each ended."""
    path = find_recipe("quickstart")
    chosen = [*TINY, f"output.dir={folder / 'game'}", f"output.store={folder / 'store'}", "evaluation.compare_sft=true"]
    points = planned_sweep(path, chosen, sweep_axes(path, alpha, None, []), 1, single=alpha is None)
    sweep(points, path.parent, display, asked=asked)
    return [entry.status for entry in points.entries]


def made(folder: Path) -> dict[str, str]:
    """Adapters by key, and the numbers of both games."""
    adapters = {
        path.parent.name: json.loads(path.read_text())["sha256"] for path in folder.glob("store/adapters/*/manifest.json")
    }
    numbers = {path.parent.name: path.read_text() for path in folder.glob("game-sweep/points/*/metrics.jsonl")}
    assert len(numbers) == 2
    return adapters | numbers


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert play(folder, WorkersAsked(), Watched()) == ["finished", "finished"]
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    assert not joined()


def test_two_workers_and_one_that_is_killed_end_in_the_same_adapters_and_numbers(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share what they can, be it as small as it is here."""
    monkeypatch.setattr(steps, "TOGETHER", 1)
    display, me = Watched(), psutil.Process()
    killed: list[int] = []
    listening: set[str] = set()

    def kill() -> None:
        display.trained.wait(300)
        for worker in [child for child in me.children(recursive=True) if "SweepWorker" in child.name()][:1]:
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)
        for process in [me, *me.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                found = process.net_connections("inet")
                listening.update(one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN)

    killer = threading.Thread(target=kill)
    killer.start()
    assert play(tmp_path, WorkersAsked("2"), display) == ["finished", "finished"]
    killer.join()
    assert made(tmp_path) == made(alone)
    assert listening and all(re.match(ADDRESS, one) for one in listening), "somebody else could give the workers code to run"
    said = "\n".join(display.lines)
    assert killed and re.search(r"worker \d died; (another takes its place|the other continues alone)", said)
    both = set(re.findall(r"^worker 1: (\S+ (?:generate|score) .*?): \d", said, re.MULTILINE))
    assert both & set(re.findall(r"^worker 2: (\S+ (?:generate|score) .*?): \d", said, re.MULTILINE)), "nothing was shared"
    assert set(re.findall(r"^(worker \d): ", said, re.MULTILINE)) == {"worker 1", "worker 2"}
    assert re.search(r"^worker 1 busy \d+%, worker 2 busy \d+%$", said, re.MULTILINE)
    assert re.match(r"\d+\.\d s, in which 2 workers computed: start-up ", display.time_line())
    trained = re.findall(r"train iterate 0: \d+ rows, ", said)
    assert len(trained) == 1, "a stage of both games was computed twice"
    assert len(list((tmp_path / "game-sweep" / "workers").glob("worker-*.log"))) == 2
    account = read_workers(tmp_path / "game-sweep")
    assert account is not None and {one.worker for one in account.workers} == {1, 2}
    did = sum((Counter(one.steps) for one in account.workers), Counter())
    assert did["train"] == 3 and did["baseline"] == 2, "iterate 0 is both games', plain fine-tuning likewise"
    for worker in (1, 2):
        assert 0 < sum(one.seconds for one in account.workers if one.worker == worker) <= account.seconds
    assert socket.gethostname() in {one.machine for one in account.workers}
    results = read_results(tmp_path / "game-sweep")
    assert isinstance(results, SweepResults) and results.workers == account


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The sweep's folder and store on a mount of 50 ms a call, for this process and for those that it starts; the folder
    beside it in which every process leaves the number of its calls."""
    marks, site = tmp_path / "marks", tmp_path / "site"
    for folder in (marks, site):
        folder.mkdir()
    told = {"folder": str(tmp_path / "mount"), "seconds": 0.05, "marks": str(marks)}
    (site / "sitecustomize.py").write_text(slow_mount.SITE.format(**told))
    here = [str(site), str(Path(slow_mount.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, here)))
    for name in slow_mount.LOOKED_UP:
        monkeypatch.setattr(os, name, getattr(os, name))  # to be put back
    mounted = slow_mount.SlowMount(**told).mount()  # type: ignore[arg-type]
    yield marks
    mounted.on = False


@pytest.mark.slow
def test_a_store_on_a_slow_mount_ends_in_the_same_adapters_and_numbers(
    alone: Path, slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "TOGETHER", 1)  # they share what they can: most calls, and most waiting for each other
    display = Watched()
    assert play(tmp_path / "mount", WorkersAsked("2"), display) == ["finished", "finished"]
    assert made(tmp_path / "mount") == made(alone)
    said = "\n".join(display.lines)
    assert "died" not in said and len(re.findall(r"train iterate 0: \d+ rows, ", said)) == 1
    calls = {int(mark.name): int(mark.read_text()) for mark in slow.iterdir()}
    print(f"\n{sum(calls.values())} calls of {len(calls)} processes, {display.time_line()}")
    assert len([process for process in calls if process != os.getpid() and calls[process] > 100]) == 2, "workers were not slow"


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes on this machine, with room for a worker each; they answer to nobody else."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray takes a name in the network for 127.0.0.1
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"node_ip_address": "127.0.0.1", "include_dashboard": False})
    nodes.add_node(node_ip_address="127.0.0.1")
    yield nodes
    nodes.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("leaves", [False, True])
def test_two_nodes_and_one_that_leaves_end_in_the_same_adapters_and_numbers(
    leaves: bool, alone: Path, cluster: Any, tmp_path: Path
) -> None:
    display, (other,) = Watched(), cluster.worker_nodes

    def leave() -> None:
        display.trained.wait(300)
        cluster.remove_node(other, allow_graceful=False)

    leaving = threading.Thread(target=leave)
    if leaves:
        leaving.start()
    assert play(tmp_path, WorkersAsked("2", cluster.address), display) == ["finished", "finished"]
    if leaves:
        leaving.join()
    assert made(tmp_path) == made(alone)
    said = "\n".join(display.lines)
    assert ("died; another takes its place" in said) == leaves
    assert leaves or set(re.findall(r"^(worker \d): ", said, re.MULTILINE)) == {"worker 1", "worker 2"}
    assert len(re.findall(r"train iterate 0: \d+ rows, ", said)) == 1
    assert not joined() and len(cluster.list_all_nodes()) == 2 - leaves, "the cluster is somebody else's, and stays"


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (["--workers", "0"], "--workers 0: give a number from 1 to 1000, or auto, which is one for each GPU"),
        (["--workers", "many"], "--workers many: give a number"),
        (["--ray", "127.0.0.1:1"], "--ray '127.0.0.1:1': no cluster answers there ([Errno 111] Connection refused); see"),
        (["--ray", "mine"], "--ray 'mine': no cluster answers there (write it as HOST:PORT, or auto)"),
    ],
)
def test_workers_that_cannot_be_had_are_one_line(option: list[str], line: str, tmp_path: Path) -> None:
    chosen = [*TINY, f"output.dir={tmp_path / 'game'}", f"output.store={tmp_path / 'store'}"]
    result = call("sweep", "quickstart", "--alpha", "0.5,1", *option, *(f"--set={change}" for change in chosen))
    assert_one_line(result, line)
