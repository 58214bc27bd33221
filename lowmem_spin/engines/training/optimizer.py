"""The optimiser and its schedule: what transformers is told of them, and a trial on one weight before anything is computed.

transformers knows many of both by name, of which some need options, some a package, and some a trainer that does more than
ours. Only a trial says whether those of a recipe can be used here.
"""

import difflib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.training_config import Training

ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")

# By the beginning of their names: why an adapter is not trained with them here.
UNFIT_OPTIMIZERS = {
    "galore": "works on the gradients of whole weight matrices, and only adapters are trained",
    "apollo": "works on the gradients of whole weight matrices, and only adapters are trained",
    "lomo": "changes the weights in every backward pass, and a step has several",
    "adalomo": "changes the weights in every backward pass, and a step has several",
    "schedule_free": "trains on other weights than those to be saved, which is not supported",
}
UNFIT_SCHEDULES = {
    "reduce_lr_on_plateau": "needs the loss on held-out rows, which is not computed during training",
    "greedy": "needs the loss on held-out rows, which is not computed during training",
}
WITHOUT_OPTIONS = ("constant", "constant_with_warmup")  # transformers ignores theirs


def optimizer_steps(pairs: int, settings: dict[str, Any]) -> int:
    """How many steps a training on so many pairs has; the last one of an epoch may be short."""
    return -(-pairs // settings["batch_size"]) * settings["num_train_epochs"]


def optimizer_arguments(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """The arguments of TrainingArguments that make the optimiser and its schedule; `settings` are game.Train's."""
    options = settings.get("optim_args", {})
    return {
        "learning_rate": settings["learning_rate"],
        "optim": settings["optim"],
        "optim_args": ",".join(f"{name}={value}" for name, value in options.items()) or None,
        **{name: settings[name] for name in ADAM if name in settings},
        "weight_decay": settings["weight_decay"],
        "lr_scheduler_type": settings["lr_scheduler_type"],
        "lr_scheduler_kwargs": settings.get("lr_scheduler_kwargs"),
        "warmup_steps": round(steps * settings["warmup_ratio"]),
    }


def from_first_step(schedule: Any, optimizer: Any, warmup: int) -> Any:
    """The schedule with a warm-up whose first step learns: its rates are (k + 1) / (warmup + 1) of the peak, not k / warmup.

    Only the rates of the warm-up change; the step of the peak, and all after it, keep theirs.
    """
    if not warmup:
        return schedule

    def raised(rate: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: (step + 1) / (warmup + 1) if step < warmup else rate(step)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, [raised(rate) for rate in schedule.lr_lambdas])


def check_names(training: Training) -> None:
    """Refuse an optimiser or schedule that transformers does not have, or that cannot train adapters here."""
    for field, value, known, unfit, remedy in (
        ("optim", training.optim, OptimizerNames, UNFIT_OPTIMIZERS, "adamw_torch"),
        ("lr_scheduler_type", training.lr_scheduler_type, SchedulerType, UNFIT_SCHEDULES, "cosine"),
    ):
        names = [name.value for name in known]
        if value not in names:
            begins = [name for name in names if name.startswith(value)]
            near = begins[:3] or difflib.get_close_matches(value, names, n=3, cutoff=0.4) or names[:3]
            raise InputError(f"training.{field}: {value!r} is unknown to transformers; try {', '.join(near)}")
        for begins_with, why in unfit.items():
            if value.startswith(begins_with):
                raise InputError(f"training.{field}: {value!r} {why}; use {remedy}")


def try_optimizer(settings: dict[str, Any], steps: int, device: str) -> None:
    """Build optimiser and schedule on one weight as the trainer will; on a CPU the optimiser takes a step too.

    On a GPU it does not: that would open the GPU in a process that leaves it to others.

    Args:
        settings: game.Train's.
        steps: of the training, about.
        device: where it will train, "cpu" or "cuda".

    Raises:
        InputError: they cannot be built, or an option has no effect; one line.
    """
    named, schedule_options = settings["lr_scheduler_type"], settings.get("lr_scheduler_kwargs", {})
    told = optimizer_arguments(settings, steps)
    weight = torch.nn.Linear(64, 128, bias=False)  # smaller ones have no 8-bit state in bitsandbytes
    remedy = "correct training.optim_args, or use adamw_torch" if told["optim_args"] else "use adamw_torch"
    with _naming(f"training.optim: {settings['optim']!r}", remedy):
        made, options = _optimizer(told, weight)
        optimizer = made(weight.parameters(), **options)
        if device == "cpu":
            weight(torch.ones(1, 64)).sum().backward()
            optimizer.step()
    _check_read(settings, steps, weight)
    if schedule_options and named in WITHOUT_OPTIONS:
        raise InputError(f"training.lr_scheduler_kwargs: {named} has no options; leave them out")
    remedy = "correct training.lr_scheduler_kwargs" if schedule_options else "set training.lr_scheduler_kwargs, or use cosine"
    with _naming(f"training.lr_scheduler_type: {named!r}", remedy):
        schedule = get_scheduler(named, optimizer, told["warmup_steps"], steps, schedule_options)
        for step in range(steps + 1):
            for rate in getattr(schedule, "lr_lambdas", ()):
                rate(step)


def _optimizer(told: dict[str, Any], weight: torch.nn.Module) -> tuple[Any, dict[str, Any]]:
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to=[], **{**told, "lr_scheduler_type": "constant"})
    return Trainer.get_optimizer_cls_and_kwargs(arguments, weight)  # type: ignore[arg-type]


def _check_read(settings: dict[str, Any], steps: int, weight: torch.nn.Module) -> None:
    """Refuse an option that makes no difference to what the optimiser is built with."""
    built = _optimizer(optimizer_arguments(settings, steps), weight)
    given = settings.get("optim_args", {})
    without = {name: {**settings, "optim_args": _without(given, name)} for name in given}
    without |= {name: _without(settings, name) for name in ADAM if name in settings}
    for name, fewer in without.items():
        if _optimizer(optimizer_arguments(fewer, steps), weight) == built:
            where = f"{name}:" if name in ADAM else f"optim_args: {name}"
            raise InputError(f"training.{where} has no effect on {settings['optim']}; leave it out")


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {other: value for other, value in values.items() if other != name}


@contextmanager
def _naming(what: str, remedy: str) -> Iterator[None]:
    """Whatever transformers, torch or an optimiser's package says against it, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{what} cannot be used: {said}; {remedy}") from error
