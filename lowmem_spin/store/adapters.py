"""Ask for adapters: what the store lacks is trained, or averaged, and committed."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.stages import Average, Train, TrainSampler
from lowmem_spin.common.files import Tokens
from lowmem_spin.engines.base import Advance, sampling_mixtures
from lowmem_spin.engines.training.average import ema_adapter
from lowmem_spin.engines.training.checkpoints import checkpoints, damaged_checkpoints
from lowmem_spin.engines.training.pair import Pair
from lowmem_spin.store.contracts import Meter
from lowmem_spin.store.memo import Tables
from lowmem_spin.store.store import Store

ROOM = 2**20  # bytes: a disk with less is full
Note = Callable[[Mapping[str, float]], None]  # is given a training's records of metrics as they come


def average(tables: Tables, stage: Average) -> Path:
    """The stage's adapter; the frozen base, whose update is nothing, has no part in the sum."""
    folder = tables.store.adapter(stage.policy)
    if folder is not None:
        return folder
    with tables.store.writing(stage.policy), tables.progress.stage("average", stage.name, 1) as meter:
        if (folder := tables.store.adapter(stage.policy)) is not None:
            return folder
        parts = [(adapter, weight) for policy, weight in stage.policies.items() if (adapter := tables.adapter(policy))]
        work = tables.store.work(stage.policy)
        with _naming_a_full_disk(tables.store.root):
            made = ema_adapter([one for one, _ in parts], [weight for _, weight in parts], stage.rank, work / "adapter")
        meter.advance(1)
        return tables.store.commit_adapter(stage.policy, made, {"kind": "average", "name": stage.name, "asked": stage.spec()})


def train_sampler(tables: Tables, stage: TrainSampler, prompts: Callable[[], Sequence[Tokens]]) -> Path:
    """The stage's adapter, fine-tuned if it has to be."""
    folder = tables.store.adapter(stage.policy)
    if folder is not None:
        return folder
    with tables.store.writing(stage.policy):
        if (folder := tables.store.adapter(stage.policy)) is not None:
            return folder
        from lowmem_spin.engines.training.gflownet import GFlowNetTrainer

        previous, base, longest = tables.adapter(stage.previous), tables.adapter(stage.base), stage.sampling.max_new_tokens
        if previous is None:
            raise TypeError(f"{stage.name}: the bare base has no adapter to go on from")
        work = training_folder(tables.store, stage.policy)
        engine = sampling_mixtures(tables.engines.generator())
        rows = stage.draw.prompts * stage.passes
        with tables.progress.stage("amortise", stage.name, rows) as meter, _naming_a_full_disk(work):
            trainer = GFlowNetTrainer(engine, previous, base, prompts(), stage.alpha, longest, stage.settings, work)
            made, metrics = trainer.run(told_of(meter))
        manifest = {"kind": "amortise", "name": stage.name, "asked": stage.spec(), "rows": stage.draw.prompts}
        return tables.store.commit_adapter(stage.policy, made, {**manifest, "metrics": metrics})


def train(tables: Tables, stage: Train, pairs: Callable[[], Sequence[Pair]], label: str, note: Note | None = None) -> Path:
    """The stage's adapter; `pairs` are put together, and `note` is told, only if it has to be trained."""
    policy = stage.policy
    folder = tables.store.adapter(policy)
    if folder is not None:
        return folder
    with tables.store.writing(policy):
        folder = tables.store.adapter(policy)
        if folder is None:
            folder = _train(tables, stage, pairs(), label, note)
    return folder


def _train(tables: Tables, stage: Train, pairs: Sequence[Pair], label: str, note: Note | None) -> Path:
    work = training_folder(tables.store, stage.policy)
    learner = tables.engines.learner()
    tokens_per_row = sum(pair.tree.tokens for pair in pairs) / len(pairs)
    rows = len(pairs) * stage.settings["num_train_epochs"]
    with tables.progress.stage("train", label, rows) as meter, _naming_a_full_disk(work):
        made, metrics = learner.train(
            tables.adapter(stage.init),
            pairs,
            _with_source(tables, stage.loss),
            stage.settings,
            work,
            told_of(meter, tokens_per_row, note),
        )
    manifest = {"kind": "train", "name": stage.name, "asked": stage.spec(), "rows": len(pairs), "metrics": metrics}
    return tables.store.commit_adapter(stage.policy, made, manifest)


def _with_source(tables: Tables, loss: dict[str, Any]) -> dict[str, Any]:
    """A loss as a learner takes it: one of a person's own goes there with its source, for that may be another process."""
    return {**loss, "function": tables.own_loss} if loss["name"] == "function" else loss


def told_of(meter: Meter, tokens_per_row: float = 0.0, note: Note | None = None) -> Advance:
    """Callback that passes training progress to the meter.

    Rows that an earlier run learned from are no measure of this one's speed.
    """

    def told(rows: int, loss: float | None = None, resumed: bool = False, record: Mapping[str, float] | None = None) -> None:
        if record is not None:
            if note is not None:
                note(record)
        elif not rows:
            meter.saved()
        elif resumed:
            meter.skip(rows)
        else:
            meter.advance(rows, round(rows * tokens_per_row), loss)

    return told


def training_folder(store: Store, policy: str) -> Path:
    """The folder of a training, in which checkpoints that are not whole are set aside."""
    work = store.work(policy)
    work.mkdir(parents=True, exist_ok=True)
    damaged = dict(damaged_checkpoints(work))
    whole = next((folder.name for folder in checkpoints(work) if folder not in damaged), None)
    for folder, why in damaged.items():
        store.set_aside(folder, why, "training starts again" if whole is None else f"training goes on from {whole}")
    return work


@contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    """torch and safetensors each report a full disk in their own way; say it as the system does."""
    try:
        yield
    except Exception as error:
        if shutil.disk_usage(folder).free < ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
