"""Bases and their tokenizers, loaded from the hub or a folder by every engine alike."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from lowmem_spin.common.errors import InputError
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.machine import Machine

# bitsandbytes warns that a CPU kernel is missing, the very one hf.py keeps it from using.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()  # one display is enough
transformers.utils.logging.set_verbosity_error()


def load_tokenizer(model: Source, trust_remote_code: bool) -> Any:
    """The tokenizer of a model, from the hub or a folder."""
    with naming_the_model(model):
        return AutoTokenizer.from_pretrained(model.location, revision=model.revision, trust_remote_code=trust_remote_code)


def end_tokens(model: Source, renderer: Renderer) -> list[int]:
    """Tokens at which a completion ends: the template's end of turn, the tokenizer's end, and the model's own."""
    try:
        own = GenerationConfig.from_pretrained(model.location, revision=model.revision or "main").eos_token_id
    except OSError:  # a model without generation_config.json
        own = AutoConfig.from_pretrained(model.location, revision=model.revision or "main").eos_token_id
    ends = {renderer.end_token, renderer.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return sorted(end for end in ends if end is not None)


def without_dropout(base: torch.nn.Module) -> None:
    """Set every dropout probability of a base to 0, in its modules and where its forward reads them as plain numbers.

    Its layers stay in training mode in a training: gradient checkpointing asks for that.
    """
    for module in base.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for owner in (module, getattr(module, "config", None)):
            for name, value in vars(owner).items() if owner is not None else ():
                if "drop" in name and isinstance(value, float):
                    setattr(owner, name, 0.0)


@contextmanager
def naming_the_model(model: Source) -> Iterator[None]:
    """What transformers says of a folder that is no model, in one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(f"model.name_or_path: {model.location!r} does not load as a model: {why}") from error


def load_base(model: Source, quantization: str, machine: Machine, trust_remote_code: bool = False) -> Any:
    """The frozen base, in 4 bits or in the compute type."""
    dtype = getattr(torch, machine.dtype)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "runtime.device: the driver sees a GPU but this torch build does not; install a CUDA build, or use cpu"
        )
    with naming_the_model(model):
        base = AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.revision,
            dtype=dtype,
            device_map={"": machine.device},
            quantization_config=four_bit if quantization == "nf4" else None,
            use_safetensors=True,  # a pickle can run code
            trust_remote_code=trust_remote_code,
        )
    for module in base.modules():
        # On AVX512-BF16 processors bitsandbytes repacks these weights at the first no-grad forward, in place, for
        # a kernel without backward: every later gradient would be silently wrong.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if getattr(base.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        base.set_attn_implementation("eager")  # torch's own attention leaves the cap of Gemma 2 out
    # Its own penalties and suppressed tokens would change what is sampled: opponents are the policy itself.
    base.generation_config = GenerationConfig()
    base.requires_grad_(False)
    return base.eval()
