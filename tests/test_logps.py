"""Chunked log-probs against the full log-softmax, gradients and peak size included."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lowmem_spin.logps import collate, completion_logps, token_logps

ROWS = [([1, 3, 70, 5, 4], [80, 81, 5]), ([1, 3, 71, 72, 73, 5, 4], [90, 5]), ([1, 4], [60, 61, 62, 63, 64])]


class Head(torch.nn.Linear):
    """A head that remembers the largest piece it was given."""

    largest = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, len(input))
        return super().forward(input)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_chunks_equal_the_full_log_softmax(softcap: float | None) -> None:
    torch.manual_seed(0)
    head = Head(16, 101)
    hidden = torch.randn(37, 16, requires_grad=True)
    labels = torch.randint(101, (37,))
    weights = torch.randn(37)

    def gradients(values: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((weights * values).sum(), [hidden, *head.parameters()]))

    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    full = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
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
