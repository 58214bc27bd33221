"""Bases and their tokenizers, loaded from the hub or a folder by every engine alike."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from lowmem_spin.common.errors import InputError
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import count_weights
from lowmem_spin.engines.model_files import ModelFiles, find_file, none_of_a_model
from lowmem_spin.engines.training.guards import naming_model

# bitsandbytes warns that a CPU kernel is missing, the very one hf.py keeps it from using.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()  # one display is enough
transformers.utils.logging.set_verbosity_error()


def load_tokenizer(model: Source, trust_remote_code: bool) -> Any:
    """The tokenizer of a model, from the hub or a folder."""
    with naming_the_model(model):
        found = AutoTokenizer.from_pretrained(model.location, revision=model.revision, trust_remote_code=trust_remote_code)
        if not isinstance(found.model_max_length, int | float):
            raise ValueError("its tokenizer_config.json has a model_max_length that is no number; correct it")
        found.decode(found.all_special_ids)  # some special tokens only fail once they are looked up
        return found


def end_tokens(model: Source, renderer: Renderer, trust_remote_code: bool = False) -> list[int]:
    """Tokens at which a completion ends: the template's end of turn, the tokenizer's end, and the model's own."""
    own = generation_settings(model, trust_remote_code).eos_token_id
    ends = {renderer.end_token, renderer.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return sorted(end for end in ends if end is not None)


def generation_settings(model: Source, trust_remote_code: bool = False) -> GenerationConfig:
    """What the model's files say of generating: generation_config.json, or config.json where there is none."""
    with naming_the_model(model):
        if find_file(model, "generation_config.json") is not None:
            return GenerationConfig.from_pretrained(model.location, revision=model.revision or "main")
        return GenerationConfig.from_model_config(_config(model, trust_remote_code))


def _config(model: Source, trust_remote_code: bool) -> Any:
    return AutoConfig.from_pretrained(model.location, revision=model.revision or "main", trust_remote_code=trust_remote_code)


def matrices(model: Source, trust_remote_code: bool) -> dict[str, tuple[int, ...]]:
    """(rows, columns) of every matrix by the name of its module, from a model without weights."""
    with naming_the_model(model), torch.device("meta"):
        config = _config(model, trust_remote_code)
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    found = ((name, getattr(module, "weight", None)) for name, module in skeleton.named_modules())
    return {name: (len(weight), weight.shape[1]) for name, weight in found if weight is not None and weight.dim() == 2}


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
        with naming_model("model.name_or_path", model.location):
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # what a stranger's files can raise in there is without end; tokenizers has nothing but this
        if "trust_remote_code" in str(error):
            raise InputError(
                f"model.trust_remote_code: false, but {model.location!r} comes with code of its own; read that code, then set "
                "it to true"
            ) from None
        kind = "" if isinstance(error, OSError | ValueError | StrictDataclassError) else f"{type(error).__name__}: "
        raise none_of_a_model(model, (kind + " ".join(str(error).split()))[:300]) from error


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
    _check_size(model, trust_remote_code)
    with naming_the_model(model):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.revision,
            dtype=dtype,
            device_map={"": machine.device},
            quantization_config=four_bit if quantization == "nf4" else None,
            use_safetensors=True,  # a pickle can run code
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    base, found = loaded
    _check_loaded(model, found)
    set_compute_dtype(base, dtype)
    for module in base.modules():
        # On AVX512-BF16 processors bitsandbytes repacks these weights at the first no-grad forward, in place, for
        # a kernel without backward: every later gradient would be silently wrong.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if getattr(base.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        base.set_attn_implementation("eager")  # torch's own attention leaves the cap of Gemma 2 out
    # Of a slice of states, the last ones of prompts, torch makes a copy of the head's weights on a CPU for every row.
    base.get_output_embeddings().register_forward_pre_hook(lambda _, states: (states[0].contiguous(), *states[1:]))
    # Its own penalties and suppressed tokens would change what is sampled: opponents are the policy itself.
    base.generation_config = GenerationConfig()
    base.requires_grad_(False)
    return base.eval()


def _check_size(model: Source, trust_remote_code: bool) -> None:
    """Refuse a config that asks for far more than the checkpoint has: its memory would be taken before that is found out."""
    stored = sum(count_weights(ModelFiles(model)))
    if not stored:
        return
    asked = sum(rows * columns for rows, columns in matrices(model, trust_remote_code).values())
    if asked > 2 * stored:  # a head that is tied is counted twice
        told = f"its config.json asks for {asked:,} parameters and its checkpoint has {stored:,}; take both from one model"
        raise none_of_a_model(model, told)


def _check_loaded(model: Source, found: dict[str, Any]) -> None:
    """Refuse weights that are not those of the config's model: transformers would make up what is missing, at random."""
    for what, names in (("lacks", found["missing_keys"]), ("has another shape of", found["mismatched_keys"])):
        if names:
            name = min(names)
            name = name if isinstance(name, str) else name[0]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise none_of_a_model(model, f"its checkpoint {what} {name}{more}, by its config.json; take both from one model")


def set_compute_dtype(base: Any, dtype: torch.dtype) -> None:
    """Have 4-bit layers compute in `dtype`: those of a checkpoint that was stored in 4 bits keep the one it was stored with."""
    for module in base.modules():
        if hasattr(module, "compute_dtype") and hasattr(module, "quant_state"):
            module.compute_dtype, module.compute_type_is_set = dtype, True
