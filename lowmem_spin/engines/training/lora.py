"""LoRA layers that compute in the base's half precision, as mixed precision does; their weights stay float32.

PEFT's own forward casts a layer's input to float32, and its output back: five passes over them where one is enough. In
float32 it stays as it is.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor


def compute_in_half_precision(model: Any, adapter: str) -> None:
    """Have a PEFT model's LoRA layers compute `adapter`, which is plain LoRA, in the type of their inputs."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.forward = partial(_forward, module, adapter)  # type: ignore[attr-defined]


def _forward(layer: Any, adapter: str, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """W x + s B A x, for inputs (..., width)."""
    outputs = layer.base_layer(inputs, *args, **kwargs)
    if layer.disable_adapters:
        return outputs
    down = F.linear(layer.lora_dropout[adapter](inputs), layer.lora_A[adapter].weight.to(inputs.dtype))
    up = layer.lora_B[adapter].weight.to(inputs.dtype)
    added = torch.addmm(outputs.flatten(0, -2), down.flatten(0, -2), up.T, alpha=layer.scaling[adapter])
    return added.view_as(outputs)
