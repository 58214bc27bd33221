"""What a user writes: frozen, documented, checked values. recipe_file.py reads them."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lowmem_spin.config import game_config as rules
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.config.section import Section


class Model(Section):
    """The one frozen base that every policy is an adapter on."""

    name_or_path: str
    """A hub id, or a folder with a model in safetensors, looked for beside the recipe and then from here."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is its main branch."""
    quantization: Literal["nf4", "none"] = "nf4"
    """nf4: the frozen base in 4 bits through bitsandbytes (QLoRA). none: in `dtype`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type. auto: bfloat16 on a GPU that has it, float16 on an older one, float32 on a CPU."""
    chat_template: str | None = None
    """For a base model that has none: gemma, chatml, zephyr, alpaca, or Jinja text. null: the tokenizer's own."""
    adapter: str | None = None
    """A PEFT adapter folder that belongs to the base policy, from an SFT run for instance; the game starts from it.
    Its rank, scale and layers have to be those of training.lora."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""


class Data(Section):
    """The human answers to learn from."""

    path: str
    """A hub data set, or a JSONL or Parquet file, looked for beside the recipe and then from here.
    Columns: `messages`; or `prompt` and `completion`; or `real` as in SPIN's own data; or `chosen`, and for an offline game
    `rejected`, with the prompt inside or in `prompt`."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    turns: Literal["first", "all"] = "first"
    """first: one row per conversation, its first answer, as SPIN does. all: one row per answer."""
    resample: bool | Literal["split"] = True
    """true: every iteration draws its own prompts. false: all iterations take the same ones. split: iterations share the
    data out, so that no prompt is learned from in two of them."""
    max_prompt_length: int = Field(default=512, ge=1)
    """In tokens. Rows with longer prompts are counted, reported and left out, never cut."""
    max_completion_length: int = Field(default=512, ge=1)
    """In tokens. The data's longer answers are counted, reported, and end here without an end of turn."""


class Generation(Section):
    """How opponents answer."""

    engine: Literal["auto", "hf", "vllm"] = "auto"
    """hf: transformers, on any device. vllm: all opponents in one batch, each request with its own adapter.
    auto is vllm on a GPU where its self-test passes (see `lowmem-spin doctor`), hf elsewhere."""
    weights: Literal["dequantized", "bnb4bit", "shared"] = "dequantized"
    """How vllm holds a 4-bit base: dequantized is up to rounding the function that is trained, at full speed."""
    temperature: float = Field(default=1.0, ge=0)
    """1 samples from the policy itself, as the algorithms assume; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with this much probability."""
    top_k: int | None = Field(default=None, ge=1)
    """Sample from the k likeliest tokens; null is all of them."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Completions end here at the latest, and are then marked as truncated."""

    @field_validator("weights")
    @classmethod
    def _supported(cls, value: str) -> str:
        if value != "dequantized":
            raise ValueError("so far vllm can only hold the base dequantized")
        return value


class Lora(Section):
    """The shape of the adapters."""

    r: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    lora_alpha: int = Field(default=32, ge=1)
    """Scale of the adapters: the update is lora_alpha / r * B A."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the adapters' input while training."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter, or all-linear."""


class Training(Section):
    """How an iterate is trained."""

    engine: Literal["auto", "hf", "unsloth"] = "auto"
    """What scores and trains. hf: transformers and PEFT, on any device. unsloth: its kernels, on a GPU.
    auto is unsloth on a GPU where its self-test passes (see `lowmem-spin doctor`), hf elsewhere."""
    lora: Lora = Lora()
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of the adapter."""
    num_train_epochs: int = Field(default=1, ge=1)
    """Passes over an iteration's pairs."""
    per_device_train_batch_size: int = Field(default=4, ge=1)
    """Pairs in one forward. Only its product with gradient_accumulation_steps matters to
    the result, dropout's draws aside."""
    gradient_accumulation_steps: int = Field(default=16, ge=1)
    """Forwards in one optimiser step."""
    optim: str = "adamw_torch"
    """Any optimiser name of transformers; paged_adamw_8bit saves memory on a GPU."""
    lr_scheduler_type: str = "linear"
    """Any schedule name of transformers."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of the adapter's weights."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients longer than this are shortened; 0 leaves them."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time, the same result."""

    @field_validator("optim", "lr_scheduler_type")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not value.isidentifier():
            raise ValueError("a name such as adamw_torch or linear is needed")
        return value


class WarmStart(Section):
    """Ordinary fine-tuning on the data's answers before the game. Its adapter is the game's base policy."""

    rows: int = Field(ge=1)
    """Rows of the data to train on."""
    num_train_epochs: int = Field(default=1, ge=1)
    """Passes over them."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate; all else is as in `training`."""


class Evaluation(Section):
    """How every policy is measured."""

    path: str | None = None
    """Held-out rows with the columns of `data`. null: health is measured on rows set aside from the data."""
    split: str = "test"
    """Split of a hub data set."""
    metric: Literal["exact_match", "none"] = "none"
    """exact_match: the share of held-out rows whose greedy answer is the row's, to the letter."""
    category: str = "category"
    """Column that groups the held-out rows, if they have it."""
    health_prompts: int = Field(default=256, ge=1)
    """Prompts on which every iterate's drift and lengths are measured."""
    compare_sft: bool = False
    """Also fine-tune plainly on the same rows for as many steps, as the yardstick."""
    benchmarks: list[str] = Field(default_factory=list)
    """What `lowmem-spin evaluate` measures on every policy when the game is over: leaderboard, mtbench, alpaca,
    diversity, or any task of lm-evaluation-harness by its name."""
    judge: JudgeOracle | None = None
    """Who grades mtbench and alpaca; null leaves the answers ungraded."""
    mtbench: str | None = None
    """Folder with FastChat's MT-Bench files; null is mtbench in output.store."""
    alpaca: str | None = None
    """Instructions with a baseline's outputs in AlpacaEval's format; null is the official file from the hub."""


class Runtime(Section):
    """Nothing here changes what is computed, only how fast and in how much memory."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    generation_batch_size: int = Field(default=64, ge=1)
    """Completions generated, and committed, together."""
    scoring_batch_size: int = Field(default=16, ge=1)
    """Rows scored in one forward."""
    checkpoint_steps: int = Field(default=50, ge=1)
    """Optimiser steps between two checkpoints: what a crash in the middle of training can cost."""
    vram_gb: float | None = Field(default=None, gt=0)
    """Use no more of the GPU than this many GB; null is all of it."""
    residency: Literal["auto", "resident", "sleep", "exit"] = "auto"
    """What the generator and the learner do while the other works, if they are two: stay whole, sleep (the
    generator's weights wait in RAM; only on a GPU), or end. auto is the first of these that fits in memory."""


class Output(Section):
    """Where results go."""

    dir: str | None = None
    """Folder of this run's results; null is runs/ and the recipe's name."""
    store: str = "runs/store"
    """Folder that all runs share: completions, log-probs and adapters, each computed once."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = "none"
    """Tracker to log to as well, in output.dir and offline unless its own settings say otherwise."""


class Recipe(Section):
    """One game: what to play with, how, and where the results go."""

    model: Model
    data: Data
    game: rules.Game = rules.Game()
    warm_start: WarmStart | None = None
    generation: Generation = Generation()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    runtime: Runtime = Runtime()
    output: Output = Output()
    seed: int = Field(default=42, ge=0)
    """Of the prompts drawn, the completions sampled, the adapters' first weights and the row order."""

    @model_validator(mode="after")
    def _cross_checks(self) -> "Recipe":
        rules.check(self.game)
        asking, whole = rules.whole_policies(self.game), {"temperature": 1.0, "top_p": 1.0, "top_k": None}
        for name, value in whole.items() if asking else ():
            if (asked := getattr(self.generation, name)) != value:
                remedy = "null" if value is None else "1"
                raise ValueError(f"generation.{name}: {asked}, but {asking} needs draws from whole policies; use {remedy}")
        if self.game.algorithm == "sppo" and self.generation.temperature == 0:
            raise ValueError("generation.temperature: 0 makes all answers to a prompt the same, and sppo compares them; use 1")
        if self.evaluation.metric != "none" and self.evaluation.path is None:
            raise ValueError("evaluation.metric: exact_match needs held-out rows; give evaluation.path")
        return self

    def with_half_batches(self) -> "Recipe":
        """The same experiment in about half the memory: no result depends on these batch sizes."""
        r, t = self.runtime, self.training
        runtime = {name: max(1, getattr(r, name) // 2) for name in ("generation_batch_size", "scoring_batch_size")}
        training = {"per_device_train_batch_size": max(1, t.per_device_train_batch_size // 2)}
        return self.model_copy(update={"runtime": r.model_copy(update=runtime), "training": t.model_copy(update=training)})

    def pairs_at(self, t: int) -> int:
        """Rows to train on in iteration t."""
        return self.game.pairs[t] if isinstance(self.game.pairs, list) else self.game.pairs
