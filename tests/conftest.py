import gc
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# No network; before anything imports a library that reads these.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="agg")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # what the tests trust, nobody else does

import pytest
from filelock import FileLock

from lowmem_spin.engines.machine import cuda_capability

if cuda_capability() is None:
    # TRL's Triton head runs on a CPU only interpreted; beside a GPU, Unsloth's and vLLM's kernels would run in numpy too.
    os.environ["TRITON_INTERPRET"] = "1"

# The files whose tests take longest are begun first (pyproject.toml keeps xdist to that): one at the end would run alone.
LONGEST = (
    *("test_suites", "test_notebooks", "test_sweep", "test_zoo", "test_page", "test_run", "test_judged", "test_faults"),
    *("test_damages", "test_ray", "test_doctor", "test_policy_commands", "test_games", "test_library", "test_extending"),
    *("test_bad_input", "test_bench", "test_gflownet", "test_early_stopping", "test_trainer", "test_own_games"),
)
ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart"


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.set_num_threads(1)  # beside other work on a small machine, two threads were twenty times slower than one


def pytest_unconfigure() -> None:
    gc.unfreeze()  # Triton's bindings count as leaks what is not collected at the end
    shutil.rmtree(os.environ["XDG_STATE_HOME"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    wanted = config.getoption("-m")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("slow") and "slow" not in str(wanted):
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))
        if item.get_closest_marker("real") and "real" not in str(wanted):
            item.add_marker(pytest.mark.skip(reason="with a real model: run with -m real"))


def pytest_collection_finish() -> None:
    """What was imported stays: a collection that looks through it takes 0.2 s, and every game has several."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def quickstart() -> Path:
    return QUICKSTART


def fingerprint(folder: Path) -> str:
    """Of the names and bytes of all files in a folder."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished short game (helpers.faults.SHORT), played once for all processes of a test run; only to be read."""
    from helpers.commands import play

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # each process has a folder of its own in it
    folder /= "whole"
    folder.mkdir(exist_ok=True)
    told = folder.with_name("whole.sha256")
    with FileLock(folder.with_name("whole.lock")):
        if not told.exists():
            result = play(folder)
            assert result.returncode == 0 and "Held-out results" in result.stdout, result.stderr
            told.write_text(fingerprint(folder))
    yield folder
    assert fingerprint(folder) == told.read_text(), "a test changed the game that all of them read; take a copy of it"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The finished game, for a test that changes it."""
    return Path(shutil.copytree(whole, tmp_path / "copy", symlinks=True))
