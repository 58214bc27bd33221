"""The 4-bit base written out once, dequantised, so that another engine serves the function that QLoRA trains."""

import shutil
import uuid
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowmem_spin.common.checked import MANIFEST, folder_fault, seal_folder, set_aside
from lowmem_spin.common.files import Notice, share
from lowmem_spin.common.keys import digest
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.worker import Worker

if TYPE_CHECKING:
    from torch import Tensor


def weights_key(identity: str, quantization: str, dtype: str) -> str:
    """Name of the unpacked weights of the model with this identity."""
    return digest({"kind": "weights", "version": 1, "model": identity, "quantization": quantization, "dtype": dtype})


def unpacked(
    model: Source, quantization: str, machine: Machine, trust_remote_code: bool, weights_dir: Path, notify: Notice = print
) -> Path:
    """Folder in `weights_dir` with the dequantised base, written by a process of its own if it is not there yet.

    `notify` is told, in one line, that one was damaged and is written again.
    """
    folder = weights_dir / weights_key(model.identity, quantization, machine.dtype)
    # An earlier version wrote no manifest.
    if (folder / MANIFEST).exists() and (why := folder_fault(folder)) is not None:
        set_aside(folder, weights_dir.parent, why, "written again", notify)
    if not folder.exists():
        arguments = (model, quantization, machine, trust_remote_code, folder)
        log = weights_dir.parent / "logs" / "weights.log"
        Worker("weights", "lowmem_spin.engines.dequantized:Writer", arguments, {}, log, "free some memory or disk").close()
    return folder


def dequantized(model: Any) -> "dict[str, Tensor]":
    """The state of a 4-bit model with every packed weight unpacked to its quant_state's dtype, on the CPU."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    state = dict(model.named_parameters()) | dict(model.named_buffers())
    plain: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            weight: Any = module.weight
            plain[f"{name}.weight"] = dequantize_4bit(weight.data, weight.quant_state).cpu().contiguous()
    kept = set(model.state_dict()) & set(state)  # persistent, and each tied weight once
    for name in kept - set(plain):
        plain[name] = state[name].detach().cpu().contiguous()
    return plain


class Writer:
    """Writes the dequantised base into `folder`, whole or not at all."""

    def __init__(self, model: Source, quantization: str, machine: Machine, trust_remote_code: bool, folder: Path) -> None:
        from safetensors.torch import save_file

        from lowmem_spin.engines.loading import load_base

        base = load_base(model, quantization, machine, trust_remote_code)
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        temporary.mkdir(parents=True)
        save_file(dequantized(base), temporary / "model.safetensors", metadata={"format": "pt"})
        config = deepcopy(base.config)
        del config.quantization_config
        config.save_pretrained(temporary)
        base.generation_config.save_pretrained(temporary)
        share(temporary)
        seal_folder(temporary)
        if folder.exists():
            shutil.rmtree(temporary)
        else:
            temporary.rename(folder)
