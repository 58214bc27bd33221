"""The one adapter that is ever in memory: policies are copied into it, and trained in it."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.training_config import Lora

SLOT = "default"  # what PEFT calls it


class AdapterSlot:
    """Room for one adapter beside a frozen base.

    Args:
        model: the base with the slot, as PEFT wraps it.
        lora: the shape of adapters that are trained. An exact average of several has a rank of its own.
    """

    def __init__(self, model: PeftModel, lora: Lora) -> None:
        self.model, self.lora = model, lora
        parameters = model.state_dict(keep_vars=True)  # looked for once: PEFT goes through the whole base for each adapter
        self.weights: dict[str, torch.Tensor] = get_peft_model_state_dict(model, state_dict=parameters)
        self.holds: Path | None = None  # whose weights are in it; None after a training, which is in no folder yet

    def fill(self, adapter: Path) -> None:
        """Copy an adapter's weights from its folder.

        Raises:
            InputError: it is of another shape, base or scale, or no plain LoRA.
        """
        self.holds = None
        weights = load_peft_weights(str(adapter), device="cpu")
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        average = _is_average(adapter)
        rank, alpha = (config["r"], config["lora_alpha"]) if average else (self.lora.r, self.lora.lora_alpha)
        self._resize(rank, alpha / rank)
        self._check_fit(adapter, weights)
        if not average:
            self._check_scale(adapter, config)
        with torch.no_grad():
            for name, weight in weights.items():
                self.weights[name].copy_(weight)
        self.holds = adapter

    def reset(self) -> None:
        """Fresh LoRA weights: A random, B zero, so the slot starts as the base."""
        self.holds = None
        self._resize(self.lora.r, self.lora.lora_alpha / self.lora.r)
        for module in self.model.modules():
            if hasattr(module, "reset_lora_parameters"):
                module.reset_lora_parameters(SLOT, init_lora_weights=True)  # type: ignore[operator]

    def _check_fit(self, adapter: Path, weights: dict[str, torch.Tensor]) -> None:
        """Refuse an adapter of another shape or base; PEFT would load the part that fits and leave the rest."""
        slot = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        given = {name: tuple(weight.shape) for name, weight in weights.items()}
        for name in sorted(slot.keys() | given.keys()):
            if slot.get(name) != given.get(name):
                raise InputError(
                    f"model.adapter: {str(adapter)!r} was made for another base or other layers: {name} has shape "
                    f"{given.get(name, 'none')} there and {slot.get(name, 'none')} here; check training.lora and model"
                )

    def _check_scale(self, adapter: Path, config: dict[str, Any]) -> None:
        special = [name for name in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if config.get(name)]
        if special:
            raise InputError(f"model.adapter: {str(adapter)!r} uses {special[0]}; only plain LoRA can be played")
        scale = config.get("lora_alpha")
        if scale != self.lora.lora_alpha:
            raise InputError(f"training.lora.lora_alpha: {self.lora.lora_alpha}, but {str(adapter)!r} has {scale}; use that")

    def _resize(self, rank: int, scale: float) -> None:
        """Make room in the slot for an adapter of this rank; what is in it is lost if it had another."""
        for module in self.model.modules():
            if not (hasattr(module, "lora_A") and SLOT in module.lora_A):  # type: ignore[operator]
                continue
            a, b = module.lora_A[SLOT].weight, module.lora_B[SLOT].weight  # type: ignore[index]
            if len(a) != rank:
                a.data, b.data = a.new_zeros(rank, a.shape[1]), b.new_zeros(len(b), rank)
            module.scaling[SLOT] = scale  # type: ignore[index]


def _is_average(adapter: Path) -> bool:
    """Whether it is an exact average of adapters: nothing is ever trained from it, so its rank is its own."""
    manifest = adapter / "manifest.json"
    return manifest.exists() and json.loads(manifest.read_text(encoding="utf-8")).get("kind") == "average"
