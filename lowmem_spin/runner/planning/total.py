"""What a plan comes to: hours, the most memory, whether that fits, and whether a run could begin on this machine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowmem_spin.common.display import about
from lowmem_spin.engines.machine import Machine

CARDS = {  # called, and bytes; of an A100 the smaller one
    "4090": ("an RTX 4090", 24e9),
    "3090": ("an RTX 3090", 24e9),
    "T4": ("a T4", 15e9),
    "A100": ("an A100", 40e9),
    "H100": ("an H100", 80e9),
    "H200": ("an H200", 141e9),
}
LONG = 24 * 3600.0  # seconds on a CPU from which on a game wants a GPU, and is not said to be playable here


def json_number(number: float) -> float | None:
    """To one decimal, and a little is not nothing; null is not known."""
    return None if math.isnan(number) else round(number, 1) or number


def card(gpu: str) -> tuple[str, float]:
    """What a card of calibration.PEAK is called, and bytes of its memory."""
    return next(found for name, found in CARDS.items() if name in gpu)


@dataclass(frozen=True)
class Total:
    """All that is left to compute."""

    rows: int  # left to compute
    seconds: float  # not a number: the model is not known yet
    untimed: bool  # a judge's own time comes on top, and is not known
    memory: float  # bytes on a GPU, of the stage that takes most; not a number, too
    machine: Machine
    forced: bool  # the recipe asks for the CPU
    gpu: str | None  # planned for, instead of for this machine

    @property
    def limit(self) -> float:
        """Bytes that there are on the GPU; not a number without one, or if it is not known which."""
        return self.machine.limit or math.nan

    @property
    def fits(self) -> bool | None:
        """Whether the memory suffices, if both are known."""
        return None if math.isnan(self.memory) or math.isnan(self.limit) else self.memory <= self.limit

    @property
    def where(self) -> str:
        """What it is planned for, in words."""
        if self.gpu is not None:
            return card(self.gpu)[0]
        if self.machine.device == "cpu":
            return "this CPU"
        return "this GPU" if self.machine.limit else "a GPU as fast as an RTX 3090"

    @property
    def time(self) -> str:
        """How long it takes there, in words."""
        if not self.rows:
            return f"nothing left to compute on {self.where}"
        known = "unknown time" if math.isnan(self.seconds) else about(self.seconds)
        return f"{known} on {self.where}{', and the judge on top' * self.untimed}"

    def line(self) -> str:
        """The first line of a plan."""
        if self.machine.device == "cpu":
            return f"Total: {self.time}" if self.forced else f"No GPU here: {self.time}. For a card: --gpu 4090"
        if math.isnan(self.memory):
            return f"Total: {self.time}, memory not known"
        size = f"{self.memory / 1e9:.1f}" + ("" if math.isnan(self.limit) else f" of {self.limit / 1e9:.0f}")
        verdict = {None: "", True: ": fits", False: ": does not fit; what to change is below"}[self.fits]
        return f"Total: {self.time}, peak {size} GB{verdict}"

    def record(self) -> dict[str, Any]:
        """The same as JSON."""
        sizes = {"gpu_memory_bytes": self.memory, "gpu_limit_bytes": self.limit}
        return {
            "seconds": json_number(self.seconds),
            "without": ["judge"] * self.untimed,
            "on": self.gpu or self.machine.device,
            **{name: json_number(size) for name, size in sizes.items()},
            "fits": self.fits,
        }

    def answer(self, name: str, missing: Sequence[str]) -> str:
        """Whether a recipe of this name can be played on this machine, and why not yet, given what else it lacks."""
        lacks = [*missing]
        if self.fits is False:
            lacks.append(f"{self.memory / 1e9:.1f} GB of GPU memory, and {self.limit / 1e9:.1f} GB are free")
        if self.machine.device == "cpu" and self.seconds > LONG:
            lacks.append(f"no GPU: {self.time}")
        if not lacks:
            return f"{name} can run here: {self.time}"
        return f"{name} cannot run here yet: " + ", ".join(f"({n}) {lack}" for n, lack in enumerate(lacks, 1))
