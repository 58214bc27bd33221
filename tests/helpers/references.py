"""Second implementations and enumerable spaces that several tests compare with."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.numpy import load_file
from trl.trainer.dpo_trainer import DPOTrainer

from lowmem_spin.algorithm.losses import Sides


def updates(adapter: Path) -> dict[str, np.ndarray]:
    """What an adapter adds to each layer's weights, by its own config and tensors."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    names = [name.removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name]
    return {n: scale * tensors[f"{n}.lora_B.weight"] @ tensors[f"{n}.lora_A.weight"] for n in names}


SEQUENCES = 6


def random_policy(seed: int) -> torch.Tensor:
    """Log-probs of a full-support distribution over the enumerated sequences, float64."""
    return torch.randn(SEQUENCES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(0)


ROWS = 12


def some_tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per-token log-probs (2 ROWS, 8), chosen rows first, their mask, and reference log-probs (2 ROWS,)."""
    torch.manual_seed(5)
    lengths = torch.randint(1, 8, (2 * ROWS, 1))
    mask = (torch.arange(8) < lengths).long()
    tokens = -3 * torch.rand(2 * ROWS, 8, dtype=torch.float64) * mask
    return tokens, mask, tokens.sum(1) + 4 * torch.randn(2 * ROWS, dtype=torch.float64)


def sides_of(
    logps: torch.Tensor,
    references: torch.Tensor,
    lengths: torch.Tensor,
    win_rates: Sequence[torch.Tensor] = (torch.tensor(1.0), torch.tensor(0.0)),
) -> Sides:
    """A batch of pairs from tensors (2 ROWS,), chosen rows first; `win_rates` of (chosen, rejected)."""
    (chosen, rejected), (ref_chosen, ref_rejected) = logps.chunk(2), references.chunk(2)
    chosen_lengths, rejected_lengths = lengths.chunk(2)
    return Sides(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        chosen_win_rates=win_rates[0],
        rejected_win_rates=win_rates[1],
    )


def trls(name: str, beta: float, tokens: torch.Tensor, mask: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """DPOTrainer's own loss; everything around its formula is given."""
    before = torch.nn.functional.pad(mask, (1, 0))  # one token of prompt
    nothing = torch.zeros_like(tokens)
    outputs = SimpleNamespace(log_probs=tokens, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    same = SimpleNamespace(device="cpu", gather=lambda value: value, gather_for_metrics=lambda value: value)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=same, aux_loss_enabled=False, ld_alpha=None, use_weighting=False,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[name], loss_weights=[1.0], beta=beta,
        _metrics={"eval": defaultdict(list)}, _total_train_tokens=0,
    )  # fmt: skip
    chosen, rejected = references.chunk(2)
    inputs = {"input_ids": before, "completion_mask": before, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)  # type: ignore[arg-type]
