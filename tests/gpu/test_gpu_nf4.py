"""The 4-bit base on the GPU against the same on the CPU: its weights, what they compute, its gradients, and its unpacking."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from safetensors.torch import load_file

from helpers.games import CPU
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.dequantized import Writer
from lowmem_spin.engines.machine import Machine

# Largest relative error of a product against float32's. On a CPU bfloat16 itself is off by 0.003, float16 by 0.0004.
OFF = {"float32": 2e-3, "bfloat16": 2e-2, "float16": 4e-3}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, relative to the norm of what was expected."""
    expected = expected.double()
    return ((found.cpu().double() - expected).norm() / expected.norm()).item()


def test_weights_are_packed_as_on_the_cpu(machine: Machine) -> None:
    torch.manual_seed(0)
    weight = torch.randn(256, 512)
    unpacked = []
    for device in ("cpu", machine.device):
        packed, state = quantize_4bit(weight.to(device), quant_type="nf4", compress_statistics=True)
        assert packed.nbytes == weight.numel() // 2
        unpacked.append(dequantize_4bit(packed, state))
    assert 0.05 < error(unpacked[0], weight) < 0.15  # it is four bits
    assert error(unpacked[1], unpacked[0].cpu()) < 1e-3  # a number between two levels may fall either way


def run_layer(weight: torch.Tensor, inputs: torch.Tensor, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Output, gradient of the input, and the output of a single token, for which there is a kernel of its own."""
    outputs, width = weight.shape
    layer = Linear4bit(width, outputs, bias=False, compute_dtype=dtype, quant_type="nf4")
    layer.weight.data = weight.clone()
    layer.support_avx512bf16_for_cpu = False  # see lowmem_spin.engines.loading
    layer = layer.to(device)
    leaf = inputs.to(device, dtype, copy=True).requires_grad_()
    output = layer(leaf)
    output.float().square().sum().backward()
    assert leaf.grad is not None
    with torch.no_grad():
        alone = layer(inputs[:1, :1].to(device, dtype))
    return output.detach().cpu(), leaf.grad.cpu(), alone.cpu()


@pytest.mark.parametrize("dtype", ["float32", "half"])
def test_forward_and_backward_are_the_cpus(machine: Machine, dtype: str) -> None:
    if dtype == "half" and machine.dtype == "float32":
        pytest.skip("there is no half precision to try")
    name = machine.dtype if dtype == "half" else dtype
    torch.manual_seed(0)
    weight, inputs = torch.randn(128, 256) / 16, torch.randn(4, 7, 256)
    expected = run_layer(weight, inputs, "cpu", torch.float32)
    found = run_layer(weight, inputs, machine.device, getattr(torch, name))
    for what, mine, theirs in zip(("forward", "backward", "one token"), found, expected, strict=True):
        assert error(mine, theirs) < OFF[name], what


def test_the_unpacked_base_is_the_cpus(machine: Machine, quickstart: Path, tmp_path: Path) -> None:
    """What vLLM serves: the function that the 4-bit base computes, in 16 bits."""
    source = Source(str(quickstart / "base"), None, "test")
    states = []
    for name, place in (("mine", machine), ("theirs", CPU)):
        Writer(source, "nf4", place, False, tmp_path / name)
        states.append(load_file(tmp_path / name / "model.safetensors"))
    mine, theirs = states
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert mine[name].dtype == getattr(torch, machine.dtype)
        assert error(mine[name], weight) < 0.01, name  # bfloat16 itself rounds by 0.002
