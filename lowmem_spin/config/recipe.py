"""What a user writes: frozen, documented, checked values. load.py reads them."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lowmem_spin.config import game_config
from lowmem_spin.config.choices import FunctionOracle, JudgeOracle, Option
from lowmem_spin.config.paths import PathText
from lowmem_spin.config.per_iteration import Count, Positive, check_lengths, value_at
from lowmem_spin.config.section import Section

OWN_ARGUMENTS = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")  # set when rendering


class Model(Section):
    """The frozen base model that every policy is an adapter on."""

    name_or_path: PathText
    """Hub id or local folder (safetensors) of the base model. A relative path is looked up next to the recipe, then in the
    working directory."""
    revision: str | None = None
    """Branch, tag or commit of the base model on the hub; null is its main branch. Set a commit to pin it."""
    quantization: Literal["nf4", "none"] = "nf4"
    """How the frozen base is stored. nf4: in 4 bits with bitsandbytes (QLoRA). none: unquantized in model.dtype, for small
    models or large cards."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format to compute in. auto: bfloat16 on a GPU that has it, float16 on an older one, float32 on a CPU."""
    chat_template: str | None = None
    """Chat template for a base model without one: gemma, chatml, zephyr, alpaca, or your own: Jinja text, or a .jinja file next
    to the recipe or in the working directory, whose text is then the recipe's. null uses the tokenizer's own."""
    adapter: PathText | None = None
    """Local folder of a PEFT adapter, for instance from an SFT run, that is made part of the base policy; the game starts from
    it. Its rank, scale and layers must be those of training.lora."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run. Turn it on only for code that you have read."""


class Columns(Section):
    """What a file's columns are called, where they have none of the usual names; the others of it are then not read."""

    prompt: str | None = None
    """Name of the column with what is asked: a text or a list of messages. null: there is none, or the usual one."""
    completion: str | None = None
    """Name of the column with the answer: a text or a list of messages. null: there is none, or the usual one."""
    messages: str | None = None
    """Name of the column with whole conversations, as lists of {role, content} or {from, value}; instead of prompt and
    completion."""
    chosen: str | None = None
    """Name of the column with the better answer, for game.algorithm offline."""
    rejected: str | None = None
    """Name of the column with the worse answer, for game.algorithm offline."""
    system: str | None = None
    """Name of the column with the system message of each row; use it with any of the others."""


class Data(Section):
    """The prompts and answers that the iterates learn from."""

    path: PathText
    """Hub data set, or a file: .jsonl, .ndjson, .json (by lines or one array), .csv, .tsv, each also .gz, or .parquet; a
    relative path is looked up next to the recipe, then in the working directory. Columns: `messages`; `prompt` and
    `completion` or `response`; SPIN's `real`; `chosen`, and `rejected` for an offline game; ShareGPT's `conversations`;
    Alpaca's `instruction`, `input` and `output`; `question` and `answer` or `response`; `query` and `response`; `input` and
    `output`; for others see data.columns. For game.algorithm sppo the prompts suffice."""
    name: str | None = None
    """Configuration of a hub data set that has several, for instance main for openai/gsm8k; null is its only one."""
    columns: Columns = Columns()
    """Names of the columns to read where they are none of the usual ones, for instance {prompt: Frage, completion: Antwort}.
    They hold for evaluation.path as well."""
    system_prompt: str | None = None
    """System message that is put before every conversation without one, of held-out rows as well; null puts none. Set it to
    train for the system prompt that the model will be used with."""

    @field_validator("system_prompt")
    @classmethod
    def _says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it says nothing; use null for no system message")
        return value

    revision: str | None = None
    """Branch, tag or commit of a hub data set; null is its main branch. Set a commit to pin it."""
    split: str = "train"
    """Split of a hub data set to learn from, for instance train_sft; local files have none."""
    turns: Literal["first", "all"] = "first"
    """Which answers of a conversation become rows. first: only the first, as in SPIN. all: every one, for
    multi-turn data."""
    resample: bool | Literal["split"] = True
    """Which prompts an iteration draws. true: a new draw each time. false: the same ones every time. split: the iterations
    share the data out, so that no two of them learn from the same prompt."""
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Arguments of the chat template, such as enable_thinking: false for a model whose prompts otherwise open a thought. Chats,
    benchmarks, served and exported policies keep them. The template's text says which it knows."""
    max_prompt_length: int = Field(default=512, ge=1)
    """Longest prompt in tokens; rows with a longer one are left out and counted, never cut. Raise it if too many are left
    out and memory allows."""
    max_completion_length: int = Field(default=512, ge=1)
    """Longest answer of the data in tokens; longer ones are counted and cut, without an end of turn. Raise it if too many are
    cut and memory allows."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _of_the_template(cls, value: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        for name in value:
            if not name.isidentifier() or name in OWN_ARGUMENTS:
                raise ValueError(f"{name!r} is not an argument that a recipe can set; give others, or none")
        return value


class Generation(Section):
    """How policies generate completions."""

    engine: Literal["auto", "hf", "vllm"] = "auto"
    """What generates. hf: transformers, on any device. vllm: all opponents in one batch, each request with its own adapter.
    auto: vllm on a GPU where its self-test passes (see `lowmem-spin doctor`), else hf."""
    weights: Literal["dequantized", "bnb4bit", "shared"] = "dequantized"
    """How vllm holds a 4-bit base. dequantized: unpacked to model.dtype, equal up to rounding to what is trained, at full
    speed. bnb4bit and shared are not implemented yet."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature. 1 samples from the policy itself, which the algorithms assume; 0 is greedy decoding."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: only the likeliest tokens with this total probability are sampled. 1 keeps all tokens, which the
    algorithms assume."""
    top_k: int | None = Field(default=None, ge=1)
    """Number of likeliest tokens among which the next one is sampled; null keeps all tokens, which the algorithms assume."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest completion in tokens; one that reaches it is marked as truncated. Raise it if the report shows many truncated
    completions."""

    @field_validator("weights")
    @classmethod
    def _supported(cls, value: str) -> str:
        if value != "dequantized":
            raise ValueError("not implemented yet; use dequantized")
        return value


class Lora(Section):
    """The shape of the LoRA adapters; all policies of a game share it."""

    r: int = Field(default=16, ge=1)
    """Rank of the adapters. A higher one can learn more and costs memory and disk space."""
    lora_alpha: int = Field(default=32, ge=1)
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
    per_device_train_batch_size: int = Field(default=4, ge=1)
    """Pairs in one forward and backward pass; lower it if memory runs out. Dropout's random draws aside, only its product with
    gradient_accumulation_steps affects the result."""
    gradient_accumulation_steps: int = Field(default=16, ge=1)
    """Forward and backward passes in one optimiser step. Raise it as much as you lower per_device_train_batch_size."""
    optim: str = "adamw_torch"
    """Optimiser, by its name in transformers. paged_adamw_8bit saves memory on a GPU."""
    optim_args: dict[str, Option] = Field(default_factory=dict)
    """Options of the optimiser that have no field here, by their names in transformers, for instance {momentum: 0.9} with sgd.
    One that the optimiser does not read is refused."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's running mean of gradients, for optimisers that have one. Lower it for short trainings."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's running mean of squared gradients, for optimisers that have one. Lower it if the loss has spikes."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """What Adam adds to the root of that mean before it divides by it. Raise it if training is unstable."""
    lr_scheduler_type: str = "linear"
    """Learning-rate schedule, by its name in transformers, for instance linear, cosine or constant."""
    lr_scheduler_kwargs: dict[str, Option] = Field(default_factory=dict)
    """Options of the schedule, by their names in transformers: cosine_with_min_lr needs {min_lr_rate: 0.1} or min_lr,
    warmup_stable_decay needs {num_decay_steps: 100}."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the optimiser steps, from 0 to 1, in which the learning rate rises to its peak. Raise it if the first
    steps are unstable."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of the optimiser on the adapter's weights; 0 turns it off. Raise it if training overfits."""
    max_grad_norm: float = Field(default=1.0, ge=0)
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

    rows: int = Field(ge=1)
    """Rows of the data to fine-tune on before the game."""
    num_train_epochs: int = Field(default=1, ge=1)
    """Passes over the warm start's rows."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate of the warm start; its other options are those of `training`."""


class Evaluation(Section):
    """How every policy is measured: held-out rows, benchmarks, and who judges."""

    path: PathText | None = None
    """Held-out rows: a hub data set or a file with the columns of `data`. null sets evaluation.health_prompts rows of the data
    aside instead."""
    name: str | None = None
    """Configuration of a hub data set that held-out rows come from; null is its only one."""
    split: str = "test"
    """Split of a hub data set that held-out rows come from; local files have none."""
    metric: Literal["exact_match", "none"] = "none"
    """Score on held-out rows. exact_match: the share of greedy answers that end and equal the row's answer to the letter. It
    suits short answers and needs evaluation.path."""
    category: str = "category"
    """Name of the column by which reports group held-out rows; change it if your file calls it otherwise."""
    health_prompts: int = Field(default=256, ge=1)
    """Held-out prompts on which every policy's drift, lengths and win-rates are measured. More give narrower intervals and
    cost generation time."""
    compare_sft: bool = False
    """Whether to also run plain SFT on the same rows for as many steps. Turn it on to see whether self-play beats it."""
    benchmarks: list[str] = Field(default_factory=list)
    """Benchmarks to run on every policy when the game is over, as `lowmem-spin evaluate` does: leaderboard, mtbench, alpaca,
    diversity, or tasks of lm-evaluation-harness by name."""
    judge: JudgeOracle | None = None
    """Language model that grades mtbench and alpaca; null leaves their answers ungraded."""
    mtbench: PathText | None = None
    """Folder with FastChat's MT-Bench questions and reference answers; null is the folder mtbench in output.store."""
    alpaca: PathText | None = None
    """File with instructions and a baseline's outputs in AlpacaEval's format; null is the official file from the hub."""


class Runtime(Section):
    """Speed and memory: nothing here changes what is computed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: on the first GPU if there is one, else on the CPU. Set cpu to leave the GPU alone."""
    generation_batch_size: int = Field(default=64, ge=1)
    """Completions generated together and stored as one batch. Lower it if generation runs out of memory."""
    scoring_batch_size: int = Field(default=16, ge=1)
    """Rows whose log-probs are computed in one forward pass. Lower it if scoring runs out of memory."""
    checkpoint_steps: int = Field(default=50, ge=1)
    """Optimiser steps between two checkpoints, which is the most that a crash in the middle of training can cost. Lower it if
    steps are slow."""
    vram_gb: float | None = Field(default=None, gt=0)
    """Most GPU memory to plan with, in GB of 10^9 bytes; null is all that is free. Set it to leave room for other programs."""
    residency: Literal["auto", "resident", "sleep", "exit"] = "auto"
    """What generator and learner do while the other one works, if they are two engines. resident: stay loaded. sleep: the
    generator's weights wait in RAM (GPU only). exit: end and load again. auto: the first of these that fits in memory."""


class Output(Section):
    """Where results are stored and logged."""

    dir: PathText | None = None
    """Folder for this run's results, which are of one game; null is runs/ plus the recipe's file name. --set adds to its name
    what it changes, unless it sets this: --set game.alpha=0.8 goes to runs/quickstart-alpha0.8."""
    store: PathText = "runs/store"
    """Folder for completions, log-probs and adapters, each computed once. Let all runs share one store, so that they reuse
    each other's results."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = "none"
    """Experiment tracker to log to as well. It logs into output.dir and offline, unless the tracker's own settings say
    otherwise."""


class Recipe(Section):
    """A whole game: the model, the data, how to play, train and measure, and where results go."""

    model: Model
    """The base model: which one, how it is quantized, and its chat template."""
    data: Data
    """The data set with prompts and answers to learn from."""
    game: game_config.GameConfig = game_config.GameConfig()
    """The algorithm and its options: iterations, alpha, opponents, reference and loss."""
    warm_start: WarmStart | None = None
    """Ordinary fine-tuning before the game; null starts from the base as it is. Use it for a base that does not answer in the
    chat format yet."""
    generation: Generation = Generation()
    """Engine and sampling options with which policies answer."""
    training: Training = Training()
    """Engine, adapter shape and optimiser with which iterates are trained."""
    evaluation: Evaluation = Evaluation()
    """Held-out rows, metrics and benchmarks by which policies are measured."""
    runtime: Runtime = Runtime()
    """Device, batch sizes and memory; nothing here changes the result."""
    output: Output = Output()
    """Folders for results and shared computations, and the experiment tracker."""
    seed: int = Field(default=42, ge=0)
    """Random seed of prompt draws, sampled completions, initial adapter weights and row order. Change it to repeat the game
    independently."""

    @model_validator(mode="after")
    def _cross_checks(self) -> "Recipe":
        once_or_each = {
            "game.pairs": self.game.pairs,
            "game.loss.beta": getattr(self.game.loss, "beta", None),
            "training.learning_rate": self.training.learning_rate,
            "training.num_train_epochs": self.training.num_train_epochs,
        }
        check_lengths(once_or_each, self.game.iterations)
        game_config.check_game(self.game)
        asking, whole = game_config.whole_policies(self.game), {"temperature": 1.0, "top_p": 1.0, "top_k": None}
        for name, value in whole.items() if asking else ():
            if (asked := getattr(self.generation, name)) != value:
                remedy = "null" if value is None else "1"
                raise ValueError(
                    f"generation.{name}: {asked}, but {asking} needs samples of the unchanged policies; use {remedy}"
                )
        if self.game.algorithm == "sppo" and self.generation.temperature == 0:
            raise ValueError(
                "generation.temperature: 0 makes all answers to a prompt identical, and sppo compares different ones; use 1"
            )
        if self.evaluation.metric != "none" and self.evaluation.path is None:
            raise ValueError("evaluation.metric: exact_match needs held-out rows; set evaluation.path, or use none")
        return self

    def with_half_batches(self) -> "Recipe":
        """The same experiment in about half the memory: no result depends on these batch sizes."""
        r, t = self.runtime, self.training
        runtime = {name: max(1, getattr(r, name) // 2) for name in ("generation_batch_size", "scoring_batch_size")}
        training = {"per_device_train_batch_size": max(1, t.per_device_train_batch_size // 2)}
        return self.model_copy(update={"runtime": r.model_copy(update=runtime), "training": t.model_copy(update=training)})

    def needs_answers(self, held_out: bool) -> str | None:
        """What needs the data's answers, of rows to learn from or of held-out ones; None: prompts alone suffice."""
        game, measured = self.game, held_out or self.evaluation.path is None
        if game.algorithm != "sppo":
            return f"game.algorithm {game.algorithm}"
        needing = {
            "game.oracle exact_match": isinstance(game.oracle, FunctionOracle) and game.oracle.function == "exact_match",
            "warm_start": self.warm_start is not None and not held_out,
            "evaluation.compare_sft": self.evaluation.compare_sft and not held_out,
            "evaluation.metric exact_match": self.evaluation.metric == "exact_match" and measured,
            "game.stop_when.chosen_logp_falls": game.stop_when.chosen_logp_falls is not None and measured,
        }
        return next((name for name, needs in needing.items() if needs), None)

    def pairs_at(self, t: int) -> int:
        """Rows to train on in iteration t."""
        return value_at(self.game.pairs, t)
