"""Attention over packed trees by the card's variable-length kernel, against the same in float32 on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.games import recipe_on
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.training.attention import _has_kernel, attend
from lowmem_spin.engines.training.packing import PackedRow, pack
from lowmem_spin.engines.training.trees import Tree

# Relative error against float32's. On a CPU bfloat16 itself is off by 0.008, float16 by 0.001.
OFF = {"float32": 1e-5, "bfloat16": 0.02, "float16": 0.004}
SIZES = [(5, (4, 7)), (200, (60, 150)), (1, (9,)), (11, (1, 30, 6))]  # tokens of prompts, and of their answers


@pytest.fixture(scope="module")
def row() -> PackedRow:
    drawn = np.random.default_rng(1)
    return pack([Tree(drawn.integers(3, 190, p), [drawn.integers(3, 190, a) for a in answers]) for p, answers in SIZES])


def attended(tensors: list[Tensor], row: PackedRow, device: str, dtype: torch.dtype, window: int | None) -> list[Tensor]:
    """What comes out, and the gradients of a weighted sum of it by queries, keys and values."""
    leaves = [tensor.to(device, dtype, copy=True).requires_grad_() for tensor in tensors]
    query, key, value = leaves
    out = attend(query, key, value, row.to(torch.device(device)), scaling=0.3, window=window)
    weights = torch.linspace(-1, 1, out.numel(), device=device).view(out.shape)
    (out.float() * weights).sum().backward()
    return [out.detach().float().cpu(), *(leaf.grad.float().cpu() for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 1, 32), (8, 1, 256), (9, 3, 64)])
def test_the_kernel_attends_as_the_cpu_does(
    machine: Machine, row: PackedRow, heads: int, kv_heads: int, dim: int, window: int | None
) -> None:
    torch.manual_seed(0)
    tokens = row.input_ids.shape[1]
    tensors = [torch.randn(1, count, tokens, dim) for count in (heads, kv_heads, kv_heads)]
    dtype = getattr(torch, machine.dtype)
    if machine.device == "cuda" and torch.cuda.get_device_capability() >= (8, 0):
        assert _has_kernel(tensors[0].to(machine.device, dtype))
    expected = attended(tensors, row, "cpu", torch.float32, window)
    found = attended(tensors, row, machine.device, dtype, window)
    for what, mine, theirs in zip(("output", "queries", "keys", "values"), found, expected, strict=True):
        error = ((mine - theirs).norm() / theirs.norm()).item()
        print(f"{what}: off by {error:.5f}")
        assert error < OFF[machine.dtype], what


def test_the_shipped_base_packs(machine: Machine, quickstart: Path) -> None:
    """Its rows are laid out as on a CPU; where they cannot be, the engine says so and goes on."""
    folder = quickstart / "base"
    engine = HF(recipe_on(folder), Source(str(folder), None, "test"), machine)
    assert engine.layout.packs
    engine.close()
