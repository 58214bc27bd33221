"""LoRA layers in half precision: what PEFT's give, and what LoRA is by its equation."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lowmem_spin.engines.training.lora import compute_in_half_precision


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(12, 20)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.map(inputs)


def with_adapter(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["map"])
    model: Any = get_peft_model(Base(), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.5)
    return model


def outputs_and_gradients(model: Any, inputs: Tensor) -> list[Tensor]:
    model.zero_grad()
    asked = inputs.clone().requires_grad_()
    outputs = model(asked)
    outputs.float().square().sum().backward()
    return [outputs.detach(), asked.grad, *(weight.grad for weight in model.parameters() if weight.requires_grad)]  # type: ignore[list-item]


def test_in_float32_it_is_what_peft_computes() -> None:
    model, inputs = with_adapter(), torch.randn(3, 5, 12)
    expected = outputs_and_gradients(model, inputs)
    compute_in_half_precision(model, "default")
    found = outputs_and_gradients(model, inputs)
    assert len(found) == 4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(inputs), model.get_base_model().map.base_layer(inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_the_equation(dtype: torch.dtype) -> None:
    model, inputs = with_adapter(), torch.randn(3, 5, 12).to(dtype)
    layer = model.get_base_model().map
    layer.base_layer.to(dtype)
    compute_in_half_precision(model, "default")
    found, _, *gradients = outputs_and_gradients(model, inputs)
    a, b = (weight.detach().double() for weight in (layer.lora_A.default.weight, layer.lora_B.default.weight))
    w, c = (weight.detach().double() for weight in (layer.base_layer.weight, layer.base_layer.bias))
    expected = inputs.double() @ w.T + c + 6 / 4 * inputs.double() @ a.T @ b.T
    assert found.dtype == dtype
    assert (found.double() - expected).norm() < 2 * torch.finfo(dtype).eps * expected.norm()
    assert [gradient.dtype for gradient in gradients] == [torch.float32, torch.float32]  # small updates would vanish


def test_dropout_is_of_the_adapters_inputs_and_for_training() -> None:
    model, inputs = with_adapter(dropout=0.5), torch.randn(400, 12)
    compute_in_half_precision(model, "default")
    base = model.get_base_model().map.base_layer(inputs)
    whole, once, twice = model.eval()(inputs) - base, model.train()(inputs) - base, model(inputs) - base
    assert torch.equal(model.eval()(inputs) - base, whole)
    assert not torch.equal(once, twice)
    mean = torch.stack([model.train()(inputs) - base for _ in range(300)]).mean(0)
    assert (mean - whole).norm() < 0.1 * whole.norm()
