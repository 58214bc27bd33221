"""Summed log-probs of completions, without ever holding the full logits.

Only the positions that predict a completion token go through the head, a chunk at a time, and the backward
pass recomputes each chunk: the peak is one chunk of logits, whatever the batch, the length or the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lowmem_spin.common.files import Tokens
from lowmem_spin.engines.training.attention import packed_states
from lowmem_spin.engines.training.packing import PackedRow

CHUNK_BYTES = 64 * 2**20  # of float32 logits held at once; 64 tokens at a vocabulary of 256k


@dataclass
class Batch:
    """Right-padded rows. All tensors are (rows, length)."""

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor  # 1 on the completion's tokens, its end of turn included

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.completion_mask.to(device))

    @property
    def _predicts(self) -> Tensor:
        """(rows, length - 1): whether the state at a place predicts a token of the completion, the next one."""
        return self.completion_mask[:, 1:].bool()

    @property
    def labels(self) -> Tensor:
        """The completions' tokens, row after row."""
        return self.input_ids[:, 1:][self._predicts]

    @property
    def lengths(self) -> Tensor:
        """(rows,): tokens of each completion."""
        return self.completion_mask.sum(1)

    def states_before(self, hidden: Tensor) -> Tensor:
        """The states that predict the completions' tokens, row after row, of all states (rows, length, width)."""
        return hidden[:, :-1][self._predicts]


def collate(rows: Sequence[tuple[Tokens, Tokens]], pad: int) -> Batch:
    """Right-pad (prompt ids, completion ids) rows into one batch."""
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids = torch.full((len(rows), length), pad, dtype=torch.long)
    attention_mask, completion_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for index, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        input_ids[index, :end] = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
        attention_mask[index, :end] = 1
        completion_mask[index, len(prompt) : end] = 1
    return Batch(input_ids, attention_mask, completion_mask)


LaidOutRows = Batch | PackedRow
"""Prompts with their completions, in either layout."""
States = Callable[[Any, LaidOutRows], Tensor]
"""The last hidden states of a model on rows, normalised as its head takes them: (rows, length, width)."""


def decoder_states(model: Any, rows: LaidOutRows) -> Tensor:
    """The hidden states as transformers computes them."""
    if isinstance(rows, PackedRow):
        return packed_states(model, rows)
    output = model.get_decoder()(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
    return output.last_hidden_state


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Mixed precision for float16, whose narrow range training scales its loss for; scoring computes in it as well."""
    return torch.autocast(device.type, torch.float16, enabled=device.type == "cuda" and dtype == "float16")


def completion_logps(model: Any, rows: LaidOutRows, states: States = decoder_states, chunk_tokens: int | None = None) -> Tensor:
    """Sum of the log-probs of each completion's tokens, shape (completions,), float32, differentiable.

    Args:
        model: a causal language model of transformers, PEFT's wrapper taken off.
        rows: prompts and completions on the model's device.
        states: how the engine computes the hidden states.
        chunk_tokens: tokens whose logits are held at once; by default as many as fit CHUNK_BYTES.
    """
    return whole_and_last(model, rows, states, chunk_tokens)[0]


def whole_and_last(
    model: Any, rows: LaidOutRows, states: States = decoder_states, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """completion_logps, and the log-prob of each completion's last token alone, (completions,), detached."""
    tokens = _predicted(model, rows, rows.labels, states, chunk_tokens)
    steps = _by_step(tokens, rows.lengths)
    # One step after the other: a completion's sum is then the same every time and in any batch. index_add's is not, on CUDA.
    whole = sum(steps.unbind(1), torch.zeros(len(rows.lengths), device=tokens.device))
    return whole, steps.detach().gather(1, rows.lengths[:, None] - 1)[:, 0]


def step_logps(model: Any, rows: LaidOutRows, ends: Sequence[int], states: States = decoder_states) -> tuple[Tensor, Tensor]:
    """Log-probs at every step of the completions, float32, differentiable; 0 after a completion's last step.

    Args:
        model: a causal language model of transformers, PEFT's wrapper taken off.
        rows: prompts and completions on the model's device.
        ends: tokens whose log-probs are wanted at every step.
        states: how the engine computes the hidden states.

    Returns:
        Of the token that is there, (completions, steps), and of each of `ends` in its place, (completions, steps, len(ends)).
    """
    taken = rows.labels
    wanted = torch.cat([taken[:, None], torch.tensor([ends], device=taken.device).expand(len(taken), -1)], dim=1)
    steps = _by_step(_predicted(model, rows, wanted, states), rows.lengths)
    return steps[..., 0], steps[..., 1:]


def _by_step(values: Tensor, lengths: Tensor) -> Tensor:
    """(tokens, ...), one completion after another, as (completions, steps, ...) with 0 after a completion's last step."""
    inside = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    steps = torch.zeros(*inside.shape, *values.shape[1:], device=values.device)
    steps[inside] = values
    return steps


def _predicted(model: Any, rows: LaidOutRows, labels: Tensor, states: States, chunk_tokens: int | None = None) -> Tensor:
    """token_logps of `labels` at the positions before the completions' tokens, one completion after another."""
    hidden = rows.states_before(states(model, rows))
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return token_logps(hidden, labels, model.get_output_embeddings(), softcap, chunk_tokens)


@contextmanager
def telling_logits(head: Any) -> Iterator[list[int]]:
    """Have a head give logits of up to 50, whatever its weights are: what comes after it then shows, and what came before.

    Logits near 0, as fresh weights give them, are hardly changed by a scale or a cap, nor are their log-probs.

    Yields:
        The number of the head's calls, as one entry each.
    """
    calls: list[int] = []
    scale = torch.ones(())

    def tell(_: Any, __: Any, logits: Tensor) -> Tensor:
        nonlocal scale
        if not calls:
            largest = logits.abs().max().float()
            scale = torch.where(largest > 0, 25 / largest, torch.ones_like(largest))
        calls.append(len(calls))
        return logits.float() * scale + torch.linspace(-25, 25, logits.shape[-1], device=logits.device)

    handle = head.register_forward_hook(tell)
    try:
        yield calls
    finally:
        handle.remove()


def token_logps(
    hidden: Tensor, labels: Tensor, head: Any, softcap: float | None = None, chunk_tokens: int | None = None
) -> Tensor:
    """log softmax(head(hidden))[label] for hidden (tokens, width) and labels (tokens,), shape (tokens,), float32.

    Labels (tokens, k) ask for several of each token; so does the result answer.
    """
    if chunk_tokens is None:
        chunk_tokens = max(16, CHUNK_BYTES // (4 * head.weight.shape[0]))

    def one_chunk(states: Tensor, wanted: Tensor) -> Tensor:
        logits = head(states).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if wanted.dim() == 2:
            return logits.log_softmax(-1).gather(-1, wanted)
        return -F.cross_entropy(logits, wanted, reduction="none")

    chunks = zip(hidden.split(chunk_tokens), labels.split(chunk_tokens), strict=True)
    if torch.is_grad_enabled() and hidden.requires_grad:
        return torch.cat([checkpoint(one_chunk, states, wanted, use_reentrant=False) for states, wanted in chunks])  # type: ignore[arg-type]
    return torch.cat([one_chunk(states, wanted) for states, wanted in chunks])
