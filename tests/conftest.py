import os
from pathlib import Path

# Before anything imports a library that reads them: no network, and TRL's Triton head interpreted on the CPU.
os.environ.update(
    HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TRITON_INTERPRET="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="agg"
)

import pytest

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
