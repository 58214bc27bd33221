"""What is derived from the base once and kept: its 4-bit weights, unpacked for an engine that serves 16 bits."""

from pathlib import Path

from lowmem_spin.common.keys import digest
from lowmem_spin.data.sources import Source
from lowmem_spin.engines import Machine
from lowmem_spin.engines.worker import Worker


def weights_key(identity: str, quantization: str, dtype: str) -> str:
    """Name of the unpacked weights of the model with this identity."""
    return digest({"kind": "weights", "version": 1, "model": identity, "quantization": quantization, "dtype": dtype})


def unpacked(model: Source, quantization: str, where: Machine, trust_remote_code: bool, shelf: Path) -> Path:
    """Folder on `shelf` with the dequantised base, written by a process of its own if it is not there yet."""
    folder = shelf / weights_key(model.identity, quantization, where.dtype)
    if not folder.exists():
        arguments = (model, quantization, where, trust_remote_code, folder)
        log = shelf.parent / "logs" / "weights.log"
        Worker("weights", "lowmem_spin.engines.weights:Writer", arguments, {}, log, "free some memory or disk").close()
    return folder
