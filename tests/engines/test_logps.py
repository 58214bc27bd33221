"""Chunked log-probs against the full log-softmax, gradients and peak size included."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from lowmem_spin.engines.training.logps import collate, completion_logps, step_logps, token_logps

ROWS = [([1, 3, 70, 5, 4], [80, 81, 5]), ([1, 3, 71, 72, 73, 5, 4], [90, 5]), ([1, 4], [60, 61, 62, 63, 64])]


class Head(torch.nn.Linear):
    """A head that remembers the largest piece it was given."""

    largest = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, len(input))
        return super().forward(input)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("shape", [(37,), (37, 3)])
def test_chunks_equal_the_full_log_softmax(softcap: float | None, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = Head(16, 101)
    hidden = torch.randn(37, 16, requires_grad=True)
    labels = torch.randint(101, shape)
    weights = torch.randn(shape)

    def gradients(values: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((weights * values).sum(), [hidden, *head.parameters()]))

    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    full = logits.log_softmax(-1).gather(-1, labels.view(37, -1)).view(shape)
    chunked = token_logps(hidden, labels, head, softcap, chunk_tokens=5)
    torch.testing.assert_close(chunked, full, atol=1e-5, rtol=0)
    for ours, theirs in zip(gradients(chunked), gradients(full), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert head.largest == 5  # forward and recomputed backward alike never hold more than a chunk of logits


def test_completion_logps_equal_a_models_own_loss_row_by_row(quickstart: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(quickstart / "base", dtype=torch.float32).eval()
    ours = completion_logps(model, collate(ROWS, pad=0))
    for value, (prompt, completion) in zip(ours, ROWS, strict=True):
        ids = torch.tensor([[*prompt, *completion]])
        labels = torch.tensor([[-100] * len(prompt) + completion])
        mean_loss = model(input_ids=ids, labels=labels).loss  # transformers' own shift and mean, without padding
        torch.testing.assert_close(value, -mean_loss * len(completion), atol=1e-4, rtol=0)


def test_step_logps_are_those_of_the_models_own_logits(quickstart: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(quickstart / "base", dtype=torch.float32).eval()
    ends = [5, 1, 90]
    tokens, others = step_logps(model, collate(ROWS, pad=0), ends)
    assert tokens.shape == (3, 5) and others.shape == (3, 5, 3)
    for row, (prompt, completion) in enumerate(ROWS):
        logps = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        steps = len(completion)
        torch.testing.assert_close(tokens[row, :steps], logps[range(steps), completion], atol=1e-4, rtol=0)
        torch.testing.assert_close(others[row, :steps], logps[:, ends], atol=1e-4, rtol=0)
        assert not tokens[row, steps:].any() and not others[row, steps:].any()


UNORDERED = {"index_add", "scatter_add", "scatter_reduce", "index_reduce", "put", "bincount", "histc", "cumsum"}
"""Operators that add in no fixed order on CUDA, of those torch.use_deterministic_algorithms lists."""


class Operators(TorchDispatchMode):
    """The names of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__.rstrip("_"))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_rows_sum_has_one_order_in_any_batch(quickstart: Path) -> None:
    """Bit for bit the sum of its steps from first to last, however long the others are; nor is CUDA left to order it."""
    model = AutoModelForCausalLM.from_pretrained(quickstart / "base", dtype=torch.float32).eval()
    rows = [*ROWS, ([1, 3, 70, 5, 4], [60 + n for n in range(150)]), ([1, 3, 71, 5, 4], [200 - n for n in range(131)])]
    batch = collate(rows, pad=0)
    with Operators() as ran:
        ours = completion_logps(model, batch)
    assert "_log_softmax" in ran.names
    assert not ran.names & UNORDERED
    tokens, _ = step_logps(model, batch, [5])
    for value, (_, completion), steps in zip(ours, rows, tokens, strict=True):
        total = np.float32(0)
        for step in steps[: len(completion)].numpy():
            total += step
        assert value.item() == total
