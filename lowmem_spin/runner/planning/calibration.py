"""How long a stage takes: from what `plan --measure` or `bench` measured on this device, or else from its FLOP.

Measurements are in `<store>/bench.json`, a list of records, newest last. A measured rate is carried to another
model of a like size in proportion to the FLOP that a token costs.
"""

import datetime
import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, read_text, write_json
from lowmem_spin.config.load import explain
from lowmem_spin.engines.machine import driver

Kind = Literal["generate", "prefill", "score", "score alone", "train", "judge"]

CARRIED = 8  # times as large or small a model that a rate is carried to: a tiny one's time is hardly that of its FLOP
UTILISATION = 0.4  # of the peak, where nothing was measured: what well-fed training on one GPU commonly reaches
PEAK = {  # dense half-precision FLOP/s with float32 accumulation, by a part of the driver's name for the card
    "4090": 165e12,
    "3090": 71e12,
    "T4": 65e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
}
WITHOUT_BFLOAT16 = ("T4",)
UNKNOWN_GPU = PEAK["3090"]
CPU_CORE = 5e10  # float32 FLOP/s of one core with AVX2, rough


class Measurement(BaseModel):
    """One kind of stage as measured: `tokens` are those that the progress bar counts for it; of judging, answers."""

    model_config = ConfigDict(frozen=True)

    device: str
    engine: str
    kind: Kind
    dtype: str
    model: str
    parameters: int = Field(ge=1)
    gradient_checkpointing: bool
    batch: int = Field(ge=1)  # completions, rows or pairs in one forward
    rows: int = Field(ge=1)
    tokens: int = Field(ge=1)
    seconds: float = Field(gt=0)
    shapes: str | None = None  # digest of model, lengths, batches and oracle, where they are a recipe's own; see estimates.py
    date: str = Field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


_RECORDS = TypeAdapter(list[Measurement])


@dataclass(frozen=True)
class Calibration:
    """Everything measured so far; empty where nothing was."""

    records: tuple[Measurement, ...] = ()

    def of_shapes(self, kind: Kind, device: str, engine: str, shapes: str) -> Measurement | None:
        """The newest measurement of a recipe's own model, lengths and batches."""
        asked = (device, engine, kind, shapes)
        return next((r for r in reversed(self.records) if (r.device, r.engine, r.kind, r.shapes) == asked), None)

    def seconds(
        self,
        kind: Kind,
        tokens: int,
        parameters: int,
        device: str,
        engine: str,
        gradient_checkpointing: bool = False,
        shapes: str | None = None,
    ) -> tuple[float, bool]:
        """(seconds that `tokens` tokens of a stage take, whether this device and engine were measured).

        Of several measurements that of the recipe's own `shapes` counts, else the one of the model nearest in size, and the
        newest of those. A model too large or small for its rate takes what its FLOP come to, but never less, or more, than the
        last one that it is carried to. Tokens are counted as the progress bars do: generated ones, and all that go through the
        model in scoring and training.
        """
        computed = tokens * flop(kind, parameters, gradient_checkpointing) / (UTILISATION * peak_flops(device))
        here = [r for r in self.records if (r.device, r.engine, r.kind) == (device, engine, kind)]
        own = None if shapes is None else self.of_shapes(kind, device, engine, shapes)
        record = own or min(reversed(here), key=lambda r: abs(math.log(r.parameters / parameters)), default=None)
        if record is None:
            return computed, False
        alike = min(max(parameters, record.parameters / CARRIED), record.parameters * CARRIED)
        measured = record.tokens * flop(kind, record.parameters, record.gradient_checkpointing)
        carried = record.seconds * tokens * flop(kind, alike, gradient_checkpointing) / measured
        if alike == parameters:
            return carried, True
        return (max(computed, carried) if parameters > alike else min(computed, carried)), False


def flop(kind: Kind, parameters: float, gradient_checkpointing: bool = False) -> float:
    """FLOP per token: 2 a parameter forward and 2 for the gradient of the activations; checkpointing repeats the
    forward. A frozen base needs no gradient of its weights, so training is 4 or 6 a parameter, not the 6 or 8 of
    full fine-tuning. Attention's own, under a tenth at 1,000 tokens, and the adapters' are left out."""
    if kind != "train":
        return 2.0 * parameters
    return (6.0 if gradient_checkpointing else 4.0) * parameters


def known_gpu(given: str) -> str:
    """The name in PEAK of the card that a person calls so: "NVIDIA GeForce RTX 4090", "rtx4090".

    Raises:
        InputError: its speed is not known; the line names the cards whose is.
    """
    name = re.sub(r"nvidia|geforce|tesla|rtx|[\s_-]", "", given.lower()).upper()
    if name not in PEAK:
        raise InputError(
            f"--gpu: {given!r} is not known; known: {', '.join(PEAK)}; choose the nearest, and set runtime.vram_gb to what "
            "yours has"
        )
    return name


def peak_flops(device: str) -> float:
    """FLOP/s that the maker of a device promises; a rough guess for a CPU or an unknown card."""
    if device.endswith("cores"):
        return CPU_CORE * int(device.split()[-2])
    return next((flops for name, flops in PEAK.items() if name in device), UNKNOWN_GPU)


def device_name(kind: str) -> str:
    """What the first GPU ("cuda") or this machine's processor ("cpu") is called in records."""
    if kind == "cuda":
        return (driver("name") or ["unknown GPU"])[0]
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def load_calibration(store: Path) -> Calibration:
    """What was measured into this store.

    Raises:
        InputError: bench.json is there but is not what `record` writes.
    """
    path = store / "bench.json"
    try:
        return Calibration(tuple(_RECORDS.validate_json(read_text(path))))
    except FileNotFoundError:
        return Calibration()
    except (DamagedError, ValidationError) as error:
        why = explain(error) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{path}: {why}; delete it and run `lowmem-spin bench` again") from None


def record_measurements(store: Path, *records: Measurement) -> None:
    """Add measurements to the store's bench.json."""
    known = [*load_calibration(store).records, *records]
    write_json(store / "bench.json", [one.model_dump() for one in known])
