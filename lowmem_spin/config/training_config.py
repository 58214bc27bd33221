"""The training section of a recipe, and the warm start's: engine, adapters and optimiser."""

from typing import Literal

from pydantic import Field, field_validator

from lowmem_spin.config.bounds import BATCH, EPOCHS, RANK, ROWS, SINGLE, TOKENS_AT_ONCE
from lowmem_spin.config.choices import Option
from lowmem_spin.config.per_iteration import Count, Positive
from lowmem_spin.config.section import Section


class Lora(Section):
    """The shape of the LoRA adapters; all policies of a game share it."""

    r: int = Field(default=16, ge=1, le=RANK)
    """Rank of the adapters. A higher one can learn more and costs memory and disk space."""
    lora_alpha: int = Field(default=32, ge=1, le=1_000_000)
    """Scale of the adapters: the update to a layer is lora_alpha / r * B A. Scale it together with r."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout probability on the adapters' input during training. Raise it if training overfits."""
    target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter: all-linear, or a list of module names such as [q_proj, v_proj]. Name fewer to save memory."""


class Training(Section):
    """How iterates are trained and scored: the engine, the adapters and the optimiser."""

    engine: Literal["auto", "hf", "unsloth"] = "auto"
    """What scores and trains. hf: transformers and PEFT, on any device. unsloth: its faster kernels, on a GPU. auto: unsloth
    on a GPU where its self-test passes (see `lowmem-spin doctor`), else hf."""
    lora: Lora = Lora()
    """Rank, scale, dropout and layers of the LoRA adapters that are trained."""
    learning_rate: Positive | list[Positive] = 5e-5
    """Peak learning rate of the adapter; a list has one number per iteration, as in SPIN's code, which lowers it later. Lower
    it if the loss diverges or iterates drift too far."""
    num_train_epochs: Count | list[Count] = 1
    """Passes over an iteration's pairs; a list has one number per iteration. Raise it for small data sets."""
    per_device_train_batch_size: int = Field(default=4, ge=1, le=BATCH)
    """Pairs of full length in one forward and backward pass; shorter ones are packed, as many as have no more tokens. Lower it
    if memory runs out. Dropout's random draws aside, only its product with gradient_accumulation_steps affects the result."""
    tokens_per_batch: int | None = Field(default=None, ge=1, le=TOKENS_AT_ONCE)
    """Most tokens of pairs in one forward and backward pass, at least those of one pair of full length; null is as many as
    per_device_train_batch_size such pairs have, but not over 4096; 8192 on a GPU with room for them, 1024 of a model of 50 M
    parameters or more on a CPU. Lower it if memory runs out; dropout's random draws aside, no result depends on it."""
    gradient_accumulation_steps: int = Field(default=16, ge=1, le=BATCH)
    """How many times per_device_train_batch_size pairs make an optimiser step. Raise it as much as you lower that."""
    optim: str = "adamw_torch"
    """Optimiser, by its name in transformers. paged_adamw_8bit saves memory on a GPU."""
    optim_args: dict[str, Option] = Field(default_factory=dict)
    """Options of the optimiser that have no field here, by their names in transformers, for instance {momentum: 0.9} with sgd.
    One that the optimiser does not read is refused."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's running mean of gradients, for optimisers that have one. Lower it for short trainings."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's running mean of squared gradients, for optimisers that have one. Lower it if the loss has spikes."""
    adam_epsilon: float = Field(default=1e-8, gt=0, le=SINGLE)
    """What Adam adds to the root of that mean before it divides by it. Raise it if training is unstable."""
    lr_scheduler_type: str = "linear"
    """Learning-rate schedule, by its name in transformers, for instance linear, cosine or constant."""
    lr_scheduler_kwargs: dict[str, Option] = Field(default_factory=dict)
    """Options of the schedule, by their names in transformers: cosine_with_min_lr needs {min_lr_rate: 0.1} or min_lr,
    warmup_stable_decay needs {num_decay_steps: 100}."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the optimiser steps, from 0 to 1, in which the learning rate rises to its peak. Raise it if the first
    steps are unstable."""
    warmup_from: Literal["zero", "first_step"] = "zero"
    """Where the rise begins. zero: at learning rate 0, so that the first step changes nothing, as in transformers and TRL.
    first_step: one step's share above 0, for trainings of few steps, in which one is much to waste."""
    weight_decay: float = Field(default=0.0, ge=0, le=1_000_000)
    """Weight decay of the optimiser on the adapter's weights; 0 turns it off. Raise it if training overfits."""
    max_grad_norm: float = Field(default=1.0, ge=0, le=SINGLE)
    """Gradient norm above which gradients are scaled down; 0 turns clipping off. Lower it if the loss has spikes."""
    disable_dropout: bool = False
    """Whether the base's own dropout, which GPT-2 has, is off while adapters are trained; false trains with what its
    config.json says. That of the adapters is training.lora.dropout; TRL's DPO has neither. Scoring never drops anything."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass: less memory and the same result, in about a third more time.
    Turn it on if training runs out of memory."""

    @field_validator("optim", "lr_scheduler_type")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not value.isidentifier():
            raise ValueError("give a name that transformers knows, such as adamw_torch or linear")
        return value


class WarmStart(Section):
    """Ordinary fine-tuning on the data's answers before the game; its adapter becomes the game's base policy."""

    rows: int = Field(ge=1, le=ROWS)
    """Rows of the data to fine-tune on before the game."""
    num_train_epochs: int = Field(default=1, ge=1, le=EPOCHS)
    """Passes over the warm start's rows."""
    learning_rate: float = Field(default=2e-4, gt=0, le=SINGLE)
    """Peak learning rate of the warm start; its other options are those of `training`."""
