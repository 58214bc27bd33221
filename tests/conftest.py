import os
from pathlib import Path

# No network; before anything imports a library that reads these.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="agg")

import pytest

from lowmem_spin.engines.machine import cuda_capability

if cuda_capability() is None:
    # TRL's Triton head runs on a CPU only interpreted; beside a GPU, Unsloth's and vLLM's kernels would run in numpy too.
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes" / "quickstart"


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.set_num_threads(1)  # beside other work on a small machine, two threads were twenty times slower than one


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    wanted = config.getoption("-m")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("slow") and "slow" not in str(wanted):
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.fixture(scope="session")
def quickstart() -> Path:
    return QUICKSTART
