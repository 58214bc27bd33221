"""Averages of adapters in parameter space, such as an exponential moving average of the iterates.

An adapter adds s B A to a layer's weights, so an average of policies' weights adds sum_i w_i s_i B_i A_i. That is not
what the averages of the A and of the B give: their product has cross terms.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from lowmem_spin.common.errors import InputError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Matrix = NDArray[np.floating[Any]]


def ema_adapter(adapters: Sequence[Path], weights: Sequence[float], rank: int | None, folder: Path) -> Path:
    """Write one PEFT adapter whose update is the weighted sum of the updates of `adapters`.

    Weights that do not sum to 1 leave the rest to the base, whose update is 0.

    Args:
        adapters: folders of plain LoRA adapters on the same layers; ranks and scales may differ.
        weights: one for each, for instance (1 - d) d^i from the newest back.
        rank: of the result. None is the sum of all ranks, which is exact. A smaller one is the best of that rank,
            layer by layer, by the singular value decomposition (Eckart and Young); its scale is the first adapter's, so
            with the rank of training.lora it can be played.
        folder: where to write.

    Raises:
        InputError: the adapters do not belong together, or are not plain LoRA.
    """
    if len(adapters) != len(weights) or not adapters:
        raise InputError(f"weights: {len(weights)} numbers for {len(adapters)} adapters; give one each")
    if rank is not None and rank < 1:
        raise InputError(f"rank: {rank}; give 1 or more, or none for the exact sum")
    configs = [_config(adapter) for adapter in adapters]
    tensors = [load_file(adapter / WEIGHTS) for adapter in adapters]
    for adapter, given in zip(adapters, tensors, strict=True):
        other = [name for name in given if not name.endswith(("lora_A.weight", "lora_B.weight"))]
        strange = [*sorted(given.keys() ^ tensors[0].keys()), *other]
        if strange:
            raise InputError(f"adapters: {str(adapter)!r} has other weights than LoRA on the first one's layers: {strange[0]}")
    factors = [w * config["lora_alpha"] / config["r"] for w, config in zip(weights, configs, strict=True)]
    total = sum(config["r"] for config in configs)
    # The exact sum has scale 1, its factors being in B.
    r, alpha = (total, total) if rank is None else (rank, configs[0]["lora_alpha"] * rank / configs[0]["r"])
    averaged: dict[str, Matrix] = {}
    for name in (name for name in tensors[0] if name.endswith("lora_A.weight")):
        other = name.replace("lora_A", "lora_B")
        a = np.concatenate([given[name] for given in tensors])
        b = np.concatenate([f * given[other] for f, given in zip(factors, tensors, strict=True)], axis=1)
        a, b = (a, b) if rank is None else truncated(a, b, rank, alpha / r)
        averaged[name], averaged[other] = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(averaged, folder / WEIGHTS, metadata={"format": "pt"})
    config = {**configs[0], "r": r, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha}
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def truncated(a: Matrix, b: Matrix, rank: int, scale: float) -> tuple[Matrix, Matrix]:
    """(A, B) of this rank with scale * B A nearest to b @ a in the Frobenius norm; the product itself is never formed.

    Args:
        a: (R, inputs).
        b: (outputs, R).
        rank: rows of A; zeros fill what is over R.
        scale: what the adapter's own scale will be.
    """
    left, left_core = np.linalg.qr(b.astype(np.float64))
    right, right_core = np.linalg.qr(a.T.astype(np.float64))
    u, values, v = np.linalg.svd(left_core @ right_core.T)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept] / scale)
    small_a, small_b = np.zeros((rank, a.shape[1])), np.zeros((b.shape[0], rank))
    small_a[:kept] = root[:, None] * (right @ v[:kept].T).T
    small_b[:, :kept] = left @ (u[:, :kept] * root)
    return small_a, small_b


def _config(adapter: Path) -> dict[str, Any]:
    try:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"adapters: {str(adapter)!r} is no PEFT adapter folder; it has no {CONFIG}") from None
    special = [name for name in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if config.get(name)]
    if special:
        raise InputError(f"adapters: {str(adapter)!r} uses {special[0]}; only plain LoRA can be averaged")
    return config
