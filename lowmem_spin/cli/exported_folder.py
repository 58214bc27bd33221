"""A policy as a folder of its own: a PEFT adapter, or one 16-bit model with the adapter merged in."""

import json
import shutil
import uuid
from copy import deepcopy
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import make_folder, share, write_json
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.sources import Source
from lowmem_spin.runner.run_folder import RunFolder, StoredPolicy, machine_of

SENTENCEPIECE = "tokenizer.model"  # a tokenizer's own file, where it was made by that library


def check_place(policy: StoredPolicy, to: Path, merged: bool) -> None:
    """Refuse a place where something is already, and an adapter that there is none of."""
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise InputError(f"--to: {str(to)!r} is there already and not empty; give a new folder")
    if not merged and policy.adapter is None:
        raise InputError("--iterate base: it has no adapter of its own to export; add --merge for the model itself")


def export(run: RunFolder, policy: StoredPolicy, base: Source, to: Path, dtype: str | None, shared: bool = False) -> None:
    """Write the policy to `to`, with tokenizer, template and model card; whole or not at all.

    `dtype` is the merged model's; None exports the adapter alone. What is `shared` names no folder of this machine.
    """
    check_place(policy, to, merged=dtype is not None)
    from transformers import GenerationConfig

    from lowmem_spin.cli import model_card
    from lowmem_spin.engines.loading import end_tokens, load_tokenizer
    from lowmem_spin.engines.model_files import find_file

    temporary = to.resolve().with_name(f".{uuid.uuid4().hex}")
    make_folder(temporary)
    try:
        tokenizer = load_tokenizer(base, run.recipe.model.trust_remote_code)
        renderer = Renderer.of(tokenizer, run.recipe)  # gives the tokenizer the template of the game
        ends = end_tokens(base, renderer, run.recipe.model.trust_remote_code)
        if dtype is not None:
            _write_merged(run, policy.adapter, base, ends, dtype, temporary)
            if (spelled := find_file(base, SENTENCEPIECE)) is not None:  # other programs want it, and transformers drops it
                shutil.copyfile(spelled, temporary / SENTENCEPIECE)
        elif policy.adapter is not None:
            _write_adapter(policy.adapter, base, temporary, shared)
            pad = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            GenerationConfig(eos_token_id=ends, pad_token_id=pad).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(model_card.text(run, policy, base, dtype, ends), encoding="utf-8")
        share(temporary)
        temporary.replace(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_adapter(adapter: Path, base: Source, folder: Path, shared: bool) -> None:
    """The stored adapter, naming the base as it is known here, or to others."""
    shutil.copyfile(adapter / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    name = Path(base.location).name if shared and base.local else base.location
    named = {"base_model_name_or_path": name, "revision": base.revision}
    write_json(folder / "adapter_config.json", config | named)


def _write_merged(run: RunFolder, adapter: Path | None, base: Source, ends: list[int], dtype: str, folder: Path) -> None:
    """Base and adapter as one model: unpacked from its 4 bits, summed in float32 and rounded once."""
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig

    from lowmem_spin.engines.loading import load_base

    asked = run.recipe.model
    model = _unpacked(load_base(base, asked.quantization, machine_of(run), asked.trust_remote_code))
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    model = model.to(getattr(torch, dtype))
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=model.config.pad_token_id)
    model.save_pretrained(folder, max_shard_size="5GB")


def _unpacked(base: Any) -> Any:
    """The same model without quantization, in float32 on the CPU."""
    import torch

    from lowmem_spin.engines.dequantized import dequantized

    config = deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    weights = dequantized(base)
    return type(base).from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
