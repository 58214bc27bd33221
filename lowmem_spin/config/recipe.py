"""What a user writes: frozen, documented, checked values. load.py reads them."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lowmem_spin.config.bounds import BATCH, ROWS, SINGLE, STEPS, TOKENS, TOKENS_AT_ONCE
from lowmem_spin.config.choices import FunctionOracle, JudgeOracle
from lowmem_spin.config.data_config import Data
from lowmem_spin.config.game_checks import check_game
from lowmem_spin.config.game_config import GameConfig, whole_policies
from lowmem_spin.config.harness_config import Harness
from lowmem_spin.config.metric_choices import Metric, name_of
from lowmem_spin.config.paths import PathText
from lowmem_spin.config.per_iteration import check_lengths, value_at
from lowmem_spin.config.section import Section
from lowmem_spin.config.training_config import Training, WarmStart

ENOUGH = 4096  # tokens in one pass: more take memory and, on a CPU, more time; a GPU with room takes more (engines/passes.py)


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


class Generation(Section):
    """How policies generate completions."""

    engine: Literal["auto", "hf", "vllm"] = "auto"
    """What generates. hf: transformers, on any device. vllm: all opponents in one batch, each request with its own adapter.
    auto: vllm on a GPU where its self-test passes (see `lowmem-spin doctor`), else hf."""
    weights: Literal["dequantized", "bnb4bit", "shared"] = "dequantized"
    """How vllm holds a 4-bit base. dequantized: unpacked to model.dtype, equal up to rounding to what is trained, at full
    speed. bnb4bit and shared are not implemented yet."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Sampling temperature. 1 samples from the policy itself, which the algorithms assume; 0 is greedy decoding."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: only the likeliest tokens with this total probability are sampled. 1 keeps all tokens, which the
    algorithms assume."""
    top_k: int | None = Field(default=None, ge=1, le=TOKENS)
    """Number of likeliest tokens among which the next one is sampled; null keeps all tokens, which the algorithms assume."""
    max_new_tokens: int = Field(default=256, ge=1, le=TOKENS)
    """Longest completion in tokens; one that reaches it is marked as truncated. Raise it if the report shows many truncated
    completions."""

    @field_validator("temperature")
    @classmethod
    def _not_too_cold(cls, value: float) -> float:
        if 0 < value < 1e-6:  # logits divided by it are no numbers any more
            raise ValueError("a temperature this low always picks the likeliest token; use 0")
        return value

    @field_validator("weights")
    @classmethod
    def _supported(cls, value: str) -> str:
        if value != "dequantized":
            raise ValueError("not implemented yet; use dequantized")
        return value


class Evaluation(Section):
    """How every policy is measured: held-out rows, benchmarks, and who judges."""

    path: PathText | None = None
    """Held-out rows: a hub data set or a file with the columns of `data`. null sets evaluation.health_prompts rows of the data
    aside instead."""
    name: str | None = None
    """Configuration of a hub data set that held-out rows come from; null is its only one."""
    split: str = "test"
    """Split of a hub data set that held-out rows come from; local files have none."""
    metric: Metric = "none"
    """Score on held-out rows, which needs evaluation.path. exact_match: the share of greedy answers that end and equal the
    row's answer to the letter, for short ones. {name: final_number}: of those whose last number does, as for GSM8K. Other tasks
    have {name: regex, pattern: ...}, {name: contains} or {name: function, function: file.py:metric}."""
    category: str = "category"
    """Name of the column by which reports group held-out rows; change it if your file calls it otherwise."""
    health_prompts: int = Field(default=256, ge=1, le=ROWS)
    """Held-out prompts on which every policy's drift, lengths and win-rates are measured, on samples at temperature 1
    from all tokens whatever `generation` says. More give narrower intervals and cost generation time."""
    compare_sft: bool = False
    """Whether to also run plain SFT on the same rows for as many steps. Turn it on to see whether self-play beats it."""
    compare_unquantized: bool | Literal["auto"] = "auto"
    """Whether a base that plays in 4 bits is also measured unquantized, so that what nf4 costs is not taken for gain. auto: a
    base of 50 million parameters or more, if it fits in memory that way. Once for all runs of a store."""
    benchmarks: list[str] = Field(default_factory=list)
    """Benchmarks to run on every policy when the game is over, as `lowmem-spin evaluate` does: leaderboard, mtbench, alpaca,
    diversity, or tasks of lm-evaluation-harness by name."""
    harness: Harness = Harness()
    """How the tasks among the benchmarks are asked: with the chat template, greedily, by default."""
    judge: JudgeOracle | None = None
    """Language model that grades mtbench and alpaca; null leaves their answers ungraded."""
    mtbench: PathText | None = None
    """Folder with FastChat's MT-Bench questions and reference answers; null is the folder mtbench in output.store."""
    alpaca: PathText | None = None
    """File with instructions and a baseline's outputs in AlpacaEval's format; null is the official file from the hub. Policies
    answer with the temperature, top_p and top_k of `generation` if it has any of its own, else at 0.7; tables say which."""


class Runtime(Section):
    """Speed and memory: nothing here changes what is computed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: on the first GPU if there is one, else on the CPU. Set cpu to leave the GPU alone."""
    generation_batch_size: int = Field(default=64, ge=1, le=BATCH)
    """Completions generated together. They are stored as one batch; vllm, in which a completion that ends makes room for the
    next, stores eight such batches as one. Lower it if generation runs out of memory."""
    scoring_batch_size: int = Field(default=16, ge=1, le=BATCH)
    """Answers of full length that are scored in one forward pass; shorter ones are packed, as many as have no more tokens.
    Lower it if scoring runs out of memory."""
    scoring_tokens_per_batch: int | None = Field(default=None, ge=1, le=TOKENS_AT_ONCE)
    """Most tokens that are scored in one forward pass, at least those of a prompt and an answer of full length; null is as many
    as scoring_batch_size of these have, but not over 4096, and on a GPU with room for them 8192. Lower it if scoring runs out
    of memory."""
    layout: Literal["auto", "padded"] = "auto"
    """How prompts and answers go through the model when they are scored or trained on. auto: packed in one row without
    padding, every prompt once; padded where a model's attention does not allow it. padded: always, to compare with."""
    checkpoint_steps: int = Field(default=50, ge=1, le=STEPS)
    """Optimiser steps between two checkpoints, which is the most that a crash in the middle of training can cost. Lower it if
    steps are slow."""
    vram_gb: float | None = Field(default=None, gt=0, le=SINGLE)
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
    """Experiment tracker to log to as well, live, under the recipe's name. TensorBoard, trackio and mlflow log into
    output.dir, unless TRACKIO_SPACE_ID or MLFLOW_TRACKING_URI says where; wandb logs online if you are logged in."""


class Recipe(Section):
    """A whole game: the model, the data, how to play, train and measure, and where results go."""

    model: Model
    """The base model: which one, how it is quantized, and its chat template."""
    data: Data
    """The data set with prompts and answers to learn from."""
    game: GameConfig = GameConfig()
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
    seed: int = Field(default=42, ge=0, le=2**62)
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
        check_game(self.game)
        if self.data.prompt_sets is not None and self.data.resample != "split":
            given, how = self.data.prompt_sets, str(self.data.resample).lower()
            raise ValueError(f"data.prompt_sets: {given} has no effect with data.resample {how}; use split, or leave it out")
        asking, whole = whole_policies(self.game), {"temperature": 1.0, "top_p": 1.0, "top_k": None}
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
        self._check_tokens()
        if self.evaluation.metric != "none" and self.evaluation.path is None:
            name = name_of(self.evaluation.metric)
            raise ValueError(f"evaluation.metric: {name} needs held-out rows; set evaluation.path, or use none")
        return self

    def _check_tokens(self) -> None:
        """Refuse limits that a single pair, or answer, of full length would exceed."""
        prompt, answer = self.data.max_prompt_length, self.longest_answer
        for name, given, least in (
            ("training.tokens_per_batch", self.training.tokens_per_batch, prompt + 2 * answer),
            ("runtime.scoring_tokens_per_batch", self.runtime.scoring_tokens_per_batch, prompt + answer),
        ):
            if given is not None and given < least:
                longest = "a pair" if least > prompt + answer else "a prompt with its answer"
                raise ValueError(
                    f"{name}: {given}, but {longest} may have {least} tokens (data.max_prompt_length {prompt}, answers of "
                    f"{answer}); use at least {least}, or shorten data.max_prompt_length or data.max_completion_length"
                )

    def with_half_batches(self) -> "Recipe":
        """The same experiment in about half the memory: no result depends on these batch sizes."""
        r, t = self.runtime, self.training
        row = self.data.max_prompt_length + self.longest_answer
        runtime = {name: max(1, getattr(r, name) // 2) for name in ("generation_batch_size", "scoring_batch_size")}
        runtime["scoring_tokens_per_batch"] = max(row, self.scoring_tokens // 2)
        training = {
            "per_device_train_batch_size": max(1, t.per_device_train_batch_size // 2),
            "tokens_per_batch": max(row + self.longest_answer, self.training_tokens // 2),
        }
        return self.model_copy(update={"runtime": r.model_copy(update=runtime), "training": t.model_copy(update=training)})

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest completion, the data's or a policy's."""
        return max(self.generation.max_new_tokens, self.data.max_completion_length)

    @property
    def training_tokens(self) -> int:
        """Most tokens of pairs in one forward and backward pass."""
        pair = self.data.max_prompt_length + 2 * self.longest_answer
        return self.training.tokens_per_batch or max(pair, min(self.training.per_device_train_batch_size * pair, ENOUGH))

    @property
    def scoring_tokens(self) -> int:
        """Most tokens of prompts and completions that are scored in one forward pass."""
        row = self.data.max_prompt_length + self.longest_answer
        return self.runtime.scoring_tokens_per_batch or max(row, min(self.runtime.scoring_batch_size * row, ENOUGH))

    def needs_answers(self, held_out: bool) -> str | None:
        """What needs the data's answers, of rows to learn from or of held-out ones; None: prompts alone suffice."""
        game, measured = self.game, held_out or self.evaluation.path is None
        if game.algorithm != "sppo":
            return f"game.algorithm {game.algorithm}"
        needing = {
            "game.oracle exact_match": isinstance(game.oracle, FunctionOracle) and game.oracle.function == "exact_match",
            "warm_start": self.warm_start is not None and not held_out,
            "evaluation.compare_sft": self.evaluation.compare_sft and not held_out,
            f"evaluation.metric {name_of(self.evaluation.metric)}": self.evaluation.metric != "none" and measured,
            "game.stop_when.chosen_logp_falls": game.stop_when.chosen_logp_falls is not None and measured,
        }
        return next((name for name, needs in needing.items() if needs), None)

    def pairs_at(self, t: int) -> int:
        """Rows to train on in iteration t."""
        return value_at(self.game.pairs, t)

    def rows_played(self, t: int) -> int:
        """How many rows at the head of the order that iteration t draws from are played with, in it or in another one."""
        users = [t] if self.data.resample is True else range(self.game.iterations)  # true: an order for each
        starts = {user: self.split_start(user) if self.data.resample == "split" else 0 for user in users}
        return max(start + self.pairs_at(user) for user, start in starts.items())

    def split_start(self, t: int) -> int:
        """For data.resample split: how many rows are in the sets before that of iteration t."""
        iterations, sets = self.game.iterations, self.data.prompt_sets or self.game.iterations
        return sum(max(self.pairs_at(user) for user in range(before, iterations, sets)) for before in range(t % sets))
