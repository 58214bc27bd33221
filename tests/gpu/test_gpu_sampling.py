"""transformers' generation on the GPU: the noise of the CPU, its answers, and the log-probs that a learner gives them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.games import recipe_on
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.samplers.noise import gumbel, uniform
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.base import Request
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.registry import open_engine

SAMPLINGS = {"greedy": Sampling(0.0, 1.0, None, 12, 0, {}), "drawn": Sampling(1.0, 1.0, None, 12, 0, {})}
# Share of answers that are float32's, over the base and three adapters. On a CPU bfloat16 itself gives 0.95, float16 0.99.
AGREE = {"float32": 1.0, "bfloat16": 0.9, "float16": 0.95}


@pytest.fixture(scope="module")
def hf(quickstart: Path, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = quickstart / "base"
    weights_dir = tmp_path_factory.mktemp("hf") / "weights"
    engine = open_engine("hf", recipe_on(folder), Source(str(folder), None, "test"), machine, weights_dir, print)
    yield engine
    engine.close()


def test_a_rows_noise_is_the_cpus(machine: Machine) -> None:
    seeds = torch.tensor([1, 2**40 + 7, -5])
    assert torch.equal(uniform(seeds.to(machine.device), 3, 1000).cpu(), uniform(seeds, 3, 1000))
    assert torch.allclose(gumbel(seeds.to(machine.device), 3, 1000).cpu(), gumbel(seeds, 3, 1000), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", SAMPLINGS)
def test_its_answers_are_the_cpus(
    hf: Any, cpu: Any, machine: Machine, tolerance: tuple[float, float], adapters: list[Path], rows: list[Any], how: str
) -> None:
    same, gaps = [], []
    for adapter in (None, *adapters):
        requests = [Request(adapter, prompt, 1000 + n) for n, (prompt, _) in enumerate(rows)]
        found, expected = hf.generate(requests, SAMPLINGS[how]), cpu.generate(requests, SAMPLINGS[how])
        same += [mine.tokens == theirs.tokens for mine, theirs in zip(found, expected, strict=True)]
        scored = cpu.score(adapter, [(request.prompt, answer.tokens) for request, answer in zip(requests, found, strict=True)])
        gaps += [abs(answer.logp - logp) for answer, logp in zip(found, scored, strict=True)]
    print(f"{sum(same)} of {len(same)} answers are float32's; log-probs off by {sum(gaps) / len(gaps):.4f}, {max(gaps):.4f}")
    assert sum(same) / len(same) >= AGREE[machine.dtype]
    mean, most = tolerance
    assert sum(gaps) / len(gaps) < mean
    assert max(gaps) < most
