"""Attention over packed trees: what transformers calls in place of its own while a packed row goes through a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from lowmem_spin.engines.training.packing import PackedRow

NAME = "packed_trees"
FASTER_IN_FLOAT32 = 256  # the most keys of a query with which it is


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: PackedRow,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Each segment's queries over its own keys and its prompt's.

    Args:
        query: (1, heads, T, dim).
        key: (1, kv heads, T, dim), as are the values.
        value: of the keys.
        row: whose T tokens they are.
        scaling: of the scores; by default 1 / sqrt(dim).
        dropout: probability that a weight is dropped.
        window: how many of the last keys a query sees, its own included; None is all of them.
        softcap: bound on the scores, by tanh.

    Returns:
        (1, T, heads, dim).
    """
    if _has_kernel(query) and softcap is None and not dropout:
        return _attend_by_kernel(query, key, value, row, scaling, window)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # Cut once, as every slice's gradient would be as long as the row.
    starts, lengths = [segment.start for segment in row.segments], [segment.queries for segment in row.segments]
    cut = [dict(zip(starts, tensor.split(lengths, 2), strict=True)) for tensor in (query, key, value)]
    attended = []
    for segment in row.long:
        queries, keys, values = (pieces[segment.start] for pieces in cut)
        if prompt := segment.prompt_end - segment.prompt_start:
            keys, values = (
                torch.cat([pieces[segment.prompt_start][:, :, :prompt], own], 2)
                for pieces, own in zip(cut[1:], (keys, values), strict=True)
            )
        attended.append(_causal(queries, keys, values, scaling, dropout, window, softcap)[0].transpose(0, 1))
    positions = row.position_ids[0]
    for group in row.groups:
        queries = query[0].transpose(0, 1)[group.queries].transpose(1, 2)  # (N, heads, longest, dim)
        keys, values = (tensor[0].transpose(0, 1)[group.keys].transpose(1, 2) for tensor in (key, value))
        before = positions[group.queries][:, :, None] - positions[group.keys][:, None]
        seen = (before >= 0) & group.held[:, None]
        if window is not None:
            seen &= before < window
        together = _masked(queries, keys, values, seen[:, None], scaling, dropout, softcap)
        attended.append(together.transpose(1, 2)[group.asked])
    return torch.cat(attended)[row.order][None]


def _has_kernel(query: Tensor) -> bool:
    """Whether torch's variable-length attention takes these queries: half precision on a card of the Ampere kind or newer."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0) and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0


def _attend_by_kernel(
    query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scaling: float | None, window: int | None
) -> Tensor:
    """All segments in one call, over keys that are gathered: a prompt's once for each of its answers."""
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return varlen_attn(  # type: ignore[return-value]
        queries,
        keys[row.keys],
        values[row.keys],
        row.query_ends,
        row.key_ends,
        max(segment.queries for segment in row.segments),
        max(segment.length for segment in row.segments),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # keys before a query's own
        enable_gqa=query.shape[1] != key.shape[1],
    )[None]


def _causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention aligned at the end: the last query sees all keys, or the last `window` of them."""
    queries, keys = query.shape[2], key.shape[2]
    if window is None or window >= keys:
        window = keys
    if queries == keys == window and softcap is None:
        return _torchs(query, key, value, dropout_p=dropout, scale=scaling, is_causal=True)
    places = torch.arange(keys, device=query.device)
    before = places[keys - queries :, None] - places  # how far each key is behind each query
    return _masked(query, key, value, (before >= 0) & (before < window), scaling, dropout, softcap)


def _masked(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float | None, dropout: float, softcap: float | None
) -> Tensor:
    """Attention to the keys that are seen."""
    if softcap is None:
        return _torchs(query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling)
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~seen, -torch.inf)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype), dropout)
    return weights @ value


def _torchs(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """torch's attention, in float32 where a CPU will go back through it faster so, bfloat16 taking 1.4 to 7 times as long."""
    if query.is_cpu and query.requires_grad and key.shape[2] <= FASTER_IN_FLOAT32:
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, **options)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    packed_row: PackedRow,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`attend`, as transformers asks for attention."""
    return attend(query, key, value, packed_row, scaling, dropout, sliding_window, softcap), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


@contextmanager
def attending_to_trees(model: Any) -> Iterator[None]:
    """Have a model of transformers attend as packed rows need it, in a backward pass that recomputes its layers too."""
    config = model.get_decoder().config
    usual = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = usual


def packed_states(model: Any, row: PackedRow) -> Tensor:
    """The decoder's last hidden states on a packed row: (1, T, width)."""
    with attending_to_trees(model):
        output = model.get_decoder()(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False, packed_row=row)
    return output.last_hidden_state
