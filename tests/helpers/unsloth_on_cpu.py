"""Unsloth's own forward, backward and patches on a CPU, for tests: Triton interprets its kernels, and what asks for a
GPU is told there is one. Slow, and only float32; what a real GPU does in half precision is for `pytest -m gpu`.

Unsloth takes its fused LoRA kernels only where the base's weights are not float32, a type it never has on a GPU. Its base
is said to be something else here: the kernels compute in the type of what comes in, and so run in float32.

Import in a process of its own, with UNSLOTH_ALLOW_CPU=1 and TRITON_INTERPRET=1 in its environment.
"""

import inspect
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit

torch.cuda.get_device_capability = lambda *_: (8, 0)  # type: ignore[assignment]
torch.cuda.get_device_properties = lambda *_: SimpleNamespace(  # type: ignore[assignment]
    name="CPU", total_memory=16e9, major=8, minor=0, multi_processor_count=1
)
torch.cuda.current_device = lambda: 0
torch.cuda.empty_cache = lambda: None
torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
torch.cuda.mem_get_info = lambda *_: (16e9, 16e9)  # type: ignore[assignment]

from lowmem_spin.engines import unsloth_worker as kernels  # imports unsloth


def dequantize(weight: Any, state: Any = None, out: Any = None, use_global_buffer: bool = False) -> Any:
    """In place of a CUDA kernel for the same."""
    return weight if state is None else dequantize_4bit(weight, state).to(state.dtype)


PRETENDED = {
    "get_current_device": lambda: torch.device("cpu"),
    "DEVICE_COUNT": 1,
    "get_device_stats": lambda: ("CPU", "", 16.0),
    "ALLOW_BITSANDBYTES": True,
    "fast_dequantize": dequantize,
}
for name, module in list(sys.modules.items()):
    if name.startswith("unsloth"):
        for attribute, value in PRETENDED.items():
            if hasattr(module, attribute):
                setattr(module, attribute, value)

from triton import language
from unsloth.kernels import fast_lora, geglu  # pyright: ignore
from unsloth.models import llama  # pyright: ignore


def tanh(x: Any) -> Any:
    """In place of libdevice's, which the interpreter does not have."""
    return 2.0 * language.sigmoid(2.0 * x) - 1.0


geglu.triton_tanh = tanh


def build_rope(self: Any, _: int) -> None:
    size = self.current_rope_size
    self._set_cos_sin_cache(seq_len=self._rope_cache_rows(), device=torch.device("cpu:0"), dtype=self._rope_cache_dtype)
    self.current_rope_size = size
    self._rope_cache_versions[0] = self._rope_cache_version


llama._base_weight_dtype = lambda _: torch.bfloat16
ensure_rope = llama._PerDeviceRopeCache._ensure_rope_cache
llama._PerDeviceRopeCache._build_rope_cache = build_rope
llama._PerDeviceRopeCache._ensure_rope_cache = lambda self, _: ensure_rope(self, 0)
RAN: Counter[str] = Counter()


def count(function: type[torch.autograd.Function], name: str) -> None:
    """Note every run of one side of an autograd function."""
    inner = getattr(function, name)

    def outer(*values: Any) -> Any:
        RAN[f"{function.__name__}.{name}"] += 1
        return inner(*values)

    setattr(function, name, staticmethod(outer))


for function in (fast_lora.LoRA_MLP, fast_lora.LoRA_QKV, fast_lora.LoRA_W):
    count(function, "forward")
    count(function, "backward")
PASSED: dict[str, set[str]] = {}
KNOWN: dict[str, set[str]] = {}


def watch(name: str) -> Any:
    """The function of that name, and note which arguments it is given and which it has."""
    inner = getattr(kernels.FastLanguageModel, name)
    parameters = inspect.signature(inner).parameters.values()
    KNOWN[name] = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}

    def outer(*values: Any, **options: Any) -> Any:
        PASSED.setdefault(name, set()).update(options)
        return inner(*values, **options)

    setattr(kernels.FastLanguageModel, name, staticmethod(outer))
    return outer


load = watch("from_pretrained")
watch("get_peft_model")
watch("for_training")


def load_on_cpu(**options: Any) -> Any:
    base, tokenizer = load(**{**options, "device_map": {"": "cpu"}})
    for layer in base.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # see lowmem_spin.engines.loading
    return base, tokenizer


kernels.FastLanguageModel.from_pretrained = staticmethod(load_on_cpu)


class Kernels(kernels.Kernels):
    """The engine as it is, what it passed to Unsloth, and what of Unsloth ran."""

    def arguments(self) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
        return PASSED, KNOWN

    def ran(self) -> Counter[str]:
        return RAN

    def packs(self) -> bool:
        return self.layout.packs
