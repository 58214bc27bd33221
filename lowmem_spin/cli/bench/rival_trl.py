"""TRL's DPOTrainer on the same pairs, in a worker process: QLoRA with the reference log-probs computed before."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.loss_choices import DPO, Hinge, IPOLengthNormalized
from lowmem_spin.config.per_iteration import value_at
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.loading import load_base, load_tokenizer
from lowmem_spin.engines.machine import Machine

Outcome = tuple[int, int, float, int | None]
"""Rows, tokens, seconds, peak bytes of torch's allocator (None on a CPU)."""
PairTokens = tuple[list[int], list[int], list[int]]
"""Token ids of a pair's prompt, chosen and rejected side."""


class _Trainer(DPOTrainer):
    """TRL's trainer, which takes token ids as they are and times its scoring pass after one batch to warm up."""

    seconds = 0.0

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        first = self.data_collator([dataset[0]])
        self.compute_ref_log_probs(self.model, {key: value.to(self.accelerator.device) for key, value in first.items()})
        _forget_peak()
        began = time.perf_counter()
        scored = super()._precompute_ref_logps(dataset, name, batch_size)
        self.seconds = time.perf_counter() - began
        return scored


class _Steps(TrainerCallback):
    def __init__(self) -> None:
        self.ends = [time.perf_counter()]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


class TRLRival:
    """Loads the same base and, like any user of TRL, lets it add and cast the adapter.

    It reads as many tokens at once as we do, padding included, in whole parts of an optimiser step.
    """

    def __init__(
        self, recipe: Recipe, model: Source, machine: Machine, pairs: Sequence[PairTokens], work: str, limit: float | None
    ):
        self.pairs, self.work = pairs, work
        self.tokens = sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs)
        self.recipe, self.model, self.machine = recipe, model, machine
        self.effective = recipe.training.per_device_train_batch_size * recipe.training.gradient_accumulation_steps
        if machine.device == "cuda" and limit is not None:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        self.base = load_base(model, recipe.model.quantization, machine)
        self.trainer: _Trainer | None = None

    def score(self) -> Outcome:
        """Both sides of every pair under the base: what TRL calls precomputing."""
        training, lora = self.recipe.training, self.recipe.training.lora
        name, strength = _loss(self.recipe)
        longest = max(2 * (len(prompt) + max(len(chosen), len(rejected))) for prompt, chosen, rejected in self.pairs)
        together = pairs_at_once(self.effective, longest, self.recipe.training_tokens)
        arguments = DPOConfig(
            output_dir=self.work,
            loss_type=[name],
            beta=strength,
            max_length=None,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=max(1, self.recipe.scoring_tokens // longest),
            per_device_train_batch_size=together,
            gradient_accumulation_steps=self.effective // together,
            learning_rate=value_at(training.learning_rate, 0),
            num_train_epochs=value_at(training.num_train_epochs, 0),
            optim=training.optim,
            gradient_checkpointing=training.gradient_checkpointing,
            bf16=self.machine.dtype == "bfloat16" and self.machine.device == "cuda",
            fp16=self.machine.dtype == "float16",
            use_cpu=self.machine.device == "cpu",
            disable_dropout=False,  # ours trains with dropout too
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        self.trainer = _Trainer(
            model=self.base,
            args=arguments,
            train_dataset=Dataset.from_dict(
                dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), zip(*self.pairs, strict=True), strict=True))
            ),
            processing_class=load_tokenizer(self.model, False),
            peft_config=LoraConfig(
                r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
            ),
        )
        return 2 * len(self.pairs), self.tokens, self.trainer.seconds, _peak()

    def train(self) -> Outcome:
        """One training; its first step, which compiles, is left out if there is another."""
        if self.trainer is None:
            raise RuntimeError("TRL scores before it trains")
        _forget_peak()
        steps = _Steps()
        self.trainer.add_callback(steps)
        self.trainer.train()
        counted = [end - start for start, end in zip(steps.ends, steps.ends[1:], strict=False)]
        skipped = 1 if len(counted) > 1 else 0
        epochs = value_at(self.recipe.training.num_train_epochs, 0)
        rows = len(self.pairs) * epochs - skipped * min(self.effective, len(self.pairs))
        tokens = round(rows * self.tokens / len(self.pairs))
        return rows, tokens, sum(counted[skipped:]), _peak()


def pairs_at_once(effective: int, longest: int, tokens: int) -> int:
    """How many pairs of `longest` tokens each, padding included, fit in `tokens`: a whole part of an optimiser step."""
    return max((n for n in range(1, effective + 1) if effective % n == 0 and n * longest <= tokens), default=1)


def _loss(recipe: Recipe) -> tuple[str, float]:
    """TRL's name of the game's loss, and its strength, which TRL always calls beta."""
    match recipe.game.loss:
        case DPO(beta=beta):
            return "sigmoid", value_at(beta, 0)
        case Hinge(beta=beta):
            return "hinge", value_at(beta, 0)
        case IPOLengthNormalized(tau=tau):
            return "ipo", tau
        case loss:
            raise InputError(f"game.loss.name: TRL has no {loss.name}; use dpo, hinge or ipo_length_normalized")


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
