"""The trainer: pre-tokenised pairs whose reference log-probs are given, on one adapter.

A subclass of transformers' Trainer, so schedules, optimisers, checkpoints and callbacks are the ones people know.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from lowmem_spin.algorithm.losses import LOSSES, Sides
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import number
from lowmem_spin.engines.base import Advance
from lowmem_spin.engines.training.checkpoints import finish_checkpoint, last_checkpoint
from lowmem_spin.engines.training.layout import RowLayout
from lowmem_spin.engines.training.logps import States, autocast, decoder_states, whole_and_last
from lowmem_spin.engines.training.optimizer import from_first_step, optimizer_arguments, optimizer_steps
from lowmem_spin.engines.training.own_loss import opened
from lowmem_spin.engines.training.pair import Pair
from lowmem_spin.engines.training.trees import Tree

CHECKPOINTING = {"use_reentrant": True}  # the other way of recomputing layers takes a quarter more of the CPU to launch a pass


class LengthGrouped(Sampler[int]):
    """Row order as a pure function of (seed, epoch, effective batch), rows of like length side by side.

    Rows are shuffled, cut into pools of 16 effective batches, sorted by length inside a pool and dealt out as
    effective batches in shuffled order. The device's batch size plays no part, so it changes nothing but dropout's draws.
    """

    POOL = 16

    def __init__(self, lengths: Sequence[int], effective_batch: int, seed: int) -> None:
        self.lengths, self.effective_batch, self.seed, self.epoch = lengths, effective_batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        size, pool = self.effective_batch, self.effective_batch * self.POOL
        order = sorted(range(len(self)), key=lambda row: number(self.seed, self.epoch, row))
        full = len(order) // size * size  # the short batch is last, so that every other one is whole
        batches = []
        for start in range(0, full, pool):
            rows = sorted(order[start : min(start + pool, full)], key=lambda row: -self.lengths[row])
            batches += [rows[index : index + size] for index in range(0, len(rows), size)]
        batches.sort(key=lambda batch: number(self.seed, self.epoch, "batch", batch[0]))
        tail = sorted(order[full:], key=lambda row: -self.lengths[row])
        return iter([row for batch in [*batches, tail] for row in batch])


class PairTrainer(Trainer):
    """Trains the active adapter of a PEFT model with a loss of losses.py, or plainly on the chosen side."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        loss: dict[str, Any],
        batches: Callable[[Sequence[Tree]], list[range]],
        layout: RowLayout,
        states: States,
        dtype: str,
        warmup_from: str = "zero",
        **kwargs: Any,
    ) -> None:
        super().__init__(train_dataset=list(pairs), **kwargs)  # type: ignore[arg-type]
        self.warmup_from = warmup_from
        self.pairs, self.batches, self.layout, self.states, self.dtype = pairs, batches, layout, states, dtype
        self.loss_function, self.loss_options = _loss(loss)
        self.model_accepts_loss_kwargs = True  # compute_loss itself divides by the pairs of the whole step
        self._sums: dict[str, float] = defaultdict(float)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule that transformers makes, its warm-up begun where the recipe says."""
        if self.lr_scheduler is None:
            schedule = super().create_scheduler(num_training_steps, optimizer)
            if self.warmup_from == "first_step" and self.args.lr_scheduler_type != "constant":  # which has no warm-up
                warmup = self.args.get_warmup_steps(num_training_steps)
                self.lr_scheduler = from_first_step(schedule, optimizer or self.optimizer, warmup)
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader:
        """A batch is what one optimiser step learns from."""
        effective = self.args.per_device_train_batch_size
        order = LengthGrouped([pair.length for pair in self.pairs], effective, self.args.seed)
        loader = DataLoader(
            self.pairs,  # type: ignore[arg-type]
            batch_size=effective,
            sampler=order,
            collate_fn=lambda pairs: {"pairs": pairs},
        )
        return self.accelerator.prepare(loader)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward passes over the step's pairs, as many together as memory has room for.

        In place of the base class's, which puts every layer into training mode once more for each pass: a tenth of a small
        one's time. The engine has done so.
        """
        pairs, total = inputs["pairs"], torch.zeros((), device=self.args.device)
        with self.layout.training(self.model.get_base_model()):  # type: ignore[union-attr]
            for run in self.batches([pair.tree for pair in pairs]):
                loss = self.compute_loss(model, {"pairs": pairs[run.start : run.stop]}, num_items_in_batch=len(pairs))
                self.accelerator.backward(loss)
                total += loss.detach()
        return total

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: nothing shows it."""
        return 0

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The mean over the step's pairs, so its split into forward passes does not matter."""
        pairs = inputs["pairs"]
        rows = self.layout.rows([pair.tree for pair in pairs]).to(self.args.device)
        with autocast(self.args.device, self.dtype):  # the trainer's own would only wrap a call of the whole model
            logps, last = whole_and_last(self.model.get_base_model(), rows, self.states)  # type: ignore[union-attr]
        if self.loss_function is None:
            losses = -logps
            self._note({"logps/chosen": logps})
        else:
            sides = _sides(logps, rows.lengths, pairs)
            losses = self.loss_function(sides, **self.loss_options)
            self._note_rewards(sides)
            self._note({"logps/chosen_last": last[::2], "logps/rejected_last": last[1::2]})
        loss = losses.sum() / num_items_in_batch
        if not torch.isfinite(loss):
            rate, step = self.args.learning_rate, self.state.global_step + 1
            raise InputError(f"training.learning_rate: {rate} made the loss {loss.item()} at step {step}; lower it")
        return loss

    def _note_rewards(self, sides: Sides) -> None:
        """Metrics under the names that TRL gives them. A loss without a beta has rewards in nats."""
        scale = self.loss_options.get("beta", 1.0)
        good, bad = scale * (sides.chosen - sides.ref_chosen), scale * (sides.rejected - sides.ref_rejected)
        rewards = {"chosen": good, "rejected": bad, "margins": good - bad, "accuracies": (good > bad).float()}
        self._note({f"rewards/{name}": value for name, value in rewards.items()})
        self._note({"logps/chosen": sides.chosen, "logps/rejected": sides.rejected})

    def _note(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] += value.detach().sum().item()
            self._sums[f"{name}#"] += len(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._sums:
            means = {name: total / self._sums[f"{name}#"] for name, total in self._sums.items() if name[-1] != "#"}
            logs = {**logs, **means}
            self._sums.clear()
        super().log(logs, start_time)


def _loss(loss: dict[str, Any]) -> tuple[Callable[..., Tensor] | None, dict[str, Any]]:
    """The function of a loss and its options; plain fine-tuning has none, and a person's own comes with its source."""
    if loss["name"] == "function":
        return opened(loss["function"]), loss["options"]
    options = {name: value for name, value in loss.items() if name != "name"}
    return None if loss["name"] == "sft" else LOSSES[loss["name"]], options


def _sides(logps: Tensor, lengths: Tensor, pairs: Sequence[Pair]) -> Sides:
    """From log-probs and lengths of each pair's chosen and rejected answer, (2 B,), and what is known of the pairs."""
    chosen, rejected = logps.view(-1, 2).T
    chosen_lengths, rejected_lengths = lengths.view(-1, 2).T
    known = torch.tensor(
        [(*pair.ref_logps, *pair.win_rates, *pair.base_logps, pair.head_to_head) for pair in pairs], dtype=torch.float64
    )
    ref_chosen, ref_rejected, chosen_win_rates, rejected_win_rates, base_chosen, base_rejected, head_to_head = (
        known.float().T.to(logps.device)
    )
    return Sides(
        chosen=chosen,
        rejected=rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        chosen_win_rates=chosen_win_rates,
        rejected_win_rates=rejected_win_rates,
        base_chosen=base_chosen,
        base_rejected=base_rejected,
        head_to_head=head_to_head,
    )


class ProgressCallback(TrainerCallback):
    """Tells the progress display of the rows behind every optimiser step, a resumed training's first ones included, with
    the loss that was logged last; of every record of metrics; and, as 0 rows, that a checkpoint was written."""

    def __init__(self, advance: Advance, rows: int, effective_batch: int) -> None:
        self.advance, self.rows, self.effective_batch, self.told = advance, rows, effective_batch, 0
        self.loss: float | None = None

    def _tell(self, state: Any, resumed: bool = False) -> None:
        epochs, steps = divmod(state.global_step, -(-self.rows // self.effective_batch))
        done = epochs * self.rows + steps * self.effective_batch
        if done > self.told:
            self.advance(done - self.told, self.loss, resumed)
        self.told = done

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state, resumed=True)
        for record in metrics_of(state):
            self.advance(0, None, True, record)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            record = metrics_of(state)[-1]
            self.loss = record["loss"]
            self.advance(0, self.loss, False, record)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        finish_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self.advance(0)


def metrics_of(state: Any) -> list[dict[str, float]]:
    """The records of a training's logged steps; the trainer's last one, of its time, is none."""
    return [record for record in state.log_history if "loss" in record]


def train(
    model: Any,
    pairs: Sequence[Pair],
    loss: dict[str, Any],
    settings: dict[str, Any],
    work: Path,
    *,
    device: torch.device,
    layout: RowLayout,
    tokens: int,
    device_batch: int,
    checkpoint_steps: int,
    gradient_checkpointing: bool,
    advance: Advance,
    states: States = decoder_states,
) -> list[dict[str, float]]:
    """Train the active adapter of `model` in place, from the last finished checkpoint in `work` if there is one.

    `settings` are game.Train's: schedule, optimiser, effective batch, seed. `device` is the engine's: not every weight
    need be there. One forward has at most `tokens` tokens of packed pairs, or `device_batch` padded ones.

    Returns:
        One record of metrics per logged step, named as TRL names them.
    """
    effective = settings["batch_size"]
    steps = optimizer_steps(len(pairs), settings)
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=effective,
        num_train_epochs=settings["num_train_epochs"],
        **optimizer_arguments(settings, steps),
        max_grad_norm=settings["max_grad_norm"],
        gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs=CHECKPOINTING if gradient_checkpointing else None,
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=checkpoint_steps,
        save_total_limit=None,  # older ones go when the new one is whole, not before
        seed=number(settings["seed"], settings["iteration"]) % 2**31,
        use_cpu=device.type == "cpu",
        fp16=device.type == "cuda" and settings["learner"]["dtype"] == "float16",  # for its loss scaling
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
    )
    steps_told = [ProgressCallback(advance, len(pairs), effective)]
    dtype = settings["learner"]["dtype"]

    def batches(trees: Sequence[Tree]) -> list[range]:
        return layout.batches(trees, tokens, device_batch)

    begins = settings.get("warmup_from", "zero")
    trainer = PairTrainer(
        pairs, loss, batches, layout, states, dtype, begins, model=model, args=arguments, callbacks=steps_told
    )
    trainer.remove_callback(PrinterCallback)  # our own display shows progress
    resume = last_checkpoint(work)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return metrics_of(trainer.state)
