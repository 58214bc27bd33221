"""Self-play fine-tuning of language models on one consumer GPU.

    import lowmem_spin as ls

    run = ls.run("quickstart", alpha=0.8)      # plays it, or goes on with it; as `lowmem-spin run` does
    run.table                                  # a pandas DataFrame; ls.fields() says what its columns are
    run.generate(["reverse: abc"])             # the last iterate's answers; iterate="base" is the base's
    model, tokenizer = run.iterate(2)          # a PeftModel of the third iterate
    sweep = ls.sweep("quickstart", alpha=[0.5, 0.95], seeds=3)
    sweep.best, sweep.table
    ls.load("runs/quickstart")                 # a run that was played before
    print(ls.plan("gemma2b_alpha", gpu="4090"))

What cannot be used raises `InputError`, whose text is one line that says why. Nothing heavy is imported before it is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowmem_spin.common.errors import InputError
    from lowmem_spin.library.frames import fields
    from lowmem_spin.library.games import Run, Sweep, load
    from lowmem_spin.library.play import Plan, plan, run, sweep

__version__ = "0.1.0"
__all__ = ["InputError", "Plan", "Run", "Sweep", "fields", "load", "plan", "run", "sweep"]

_HOMES = {"InputError": "common.errors", "fields": "library.frames"}
_HOMES |= dict.fromkeys(("Run", "Sweep", "load"), "library.games")
_HOMES |= dict.fromkeys(("Plan", "plan", "run", "sweep"), "library.play")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
