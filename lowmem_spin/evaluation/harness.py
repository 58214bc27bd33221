"""lm-evaluation-harness on the policies of a game: one loaded base, and in its slot the policy that is measured.

Tasks, prompts, metrics and standard errors are the library's. Its numbers are those of its own command line.
"""

import contextlib
import functools
import io
import math
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluator, utils
from lm_eval.api.instance import Instance
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.models import huggingface

from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.loading import end_tokens, generation_settings, load_tokenizer
from lowmem_spin.engines.peft_learner import PeftLearner
from lowmem_spin.evaluation.harness_tasks import Loaded, samples_hash, seed
from lowmem_spin.evaluation.leaderboard import OF_SUBTASKS
from lowmem_spin.evaluation.prompting import PLAIN

HFLM: Any = huggingface.HFLM  # its decorators hide its type
harness_evaluate: Any = evaluator.evaluate
# It compiles a task's templates anew for every document: with a small model that was a third of the time.
utils.env.from_string = functools.lru_cache(1024)(utils.env.from_string)  # type: ignore[method-assign]
PACKAGES = ("lm-eval", "torch", "transformers", "peft", "bitsandbytes", "datasets")


class _Counter:
    """What the harness tells of every finished request, for the progress bar."""

    def __init__(self, meter: Any) -> None:
        self.meter = meter

    def add_partial(self, *_: Any) -> None:
        self.meter.advance(1)


class HarnessModel(HFLM):
    """A learner's model as the harness knows models."""

    def __init__(self, engine: PeftLearner, model: Source, display: Display) -> None:
        recipe = engine.recipe
        tokenizer = load_tokenizer(model, recipe.model.trust_remote_code)  # one of its own: the harness changes it
        renderer = Renderer.of(tokenizer, recipe)  # gives the tokenizer the template of the game
        base, size = engine.model.get_base_model(), recipe.runtime.scoring_batch_size
        super().__init__(base, tokenizer=tokenizer, batch_size=size, trust_remote_code=recipe.model.trust_remote_code)
        self.engine, self.display, self.label = engine, display, ""
        self.own_generation = generation_settings(model, recipe.model.trust_remote_code)
        self.in_turns = deepcopy(self.own_generation)
        self.in_turns.eos_token_id = end_tokens(model, renderer, recipe.model.trust_remote_code)

    @contextlib.contextmanager
    def playing(self, adapter: Path | None, label: str, chat: bool) -> Iterator[None]:
        """Be this policy. Answers end where the model's own files say, as with any other program that loads it; with the chat
        template (`chat`) also at the end of a turn, as those of an exported policy do."""
        self.label = label
        with self.engine.playing(adapter) as policy:
            bare, policy.generation_config = policy.generation_config, self.in_turns if chat else self.own_generation
            try:
                yield
            finally:
                policy.generation_config = bare

    @contextlib.contextmanager
    def _counted(self, requests: Sequence[Instance]) -> Iterator[None]:
        with self.display.stage("evaluate", self.label, len(requests)) as meter:
            self.set_cache_hook(_Counter(meter))  # type: ignore[arg-type]
            yield

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probs of continuations; multiple choice comes here too."""
        with self._counted(requests):
            return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probs of whole texts."""
        with self._counted(requests):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answers."""
        with self._counted(requests):
            return super().generate_until(requests, disable_tqdm=True)


Samples = dict[str, list[dict[str, Any]]]
"""Each document with its prompt, answers and numbers, by the name of its task, as the harness has them."""


def measure_task(
    bench: HarnessModel, adapter: Path | None, loaded: Loaded, limit: int | None, name: str
) -> tuple[dict[str, Any], Samples]:
    """One policy on one task.

    Args:
        bench: the loaded base.
        adapter: the policy's; None is the base.
        loaded: the task with its data.
        limit: how many documents of each task; None is all.
        name: of the policy, for the progress bar.

    Returns:
        A record for the store: every metric with its standard error, None if there is none, and if the metric is the mean
        of a number per document these numbers, so that two policies can be compared in pairs. And the samples.
    """
    began, task = time.time(), loaded.task
    results = _evaluate(bench, adapter, loaded, limit, f"{name} on {task.name}")
    own, samples = results["results"][task.name], results["samples"]
    rows = [row for name in sorted(samples) for row in samples[name]]
    numbers = {metric: _number(own, metric, rows) for metric in own if "," in metric and "_stderr," not in metric}
    if task.of_subtasks:
        numbers[OF_SUBTASKS] = mean_of_subtasks(results["results"], samples)
    shots = {results["n-shot"].get(name) for name in samples}
    recorded = {
        "task_version": results["versions"].get(task.name),
        "task_hash": {name: samples_hash(rows) for name, rows in samples.items()},
        "versions": {package: version(package) for package in PACKAGES},
        "seconds": round(time.time() - began, 3),
    }
    shown = shots.pop() if len(shots) == 1 else None
    record = {"numbers": numbers, "count": own["sample_len"], "fewshot": shown, "own": task.own, "recorded": recorded}
    return record | ({"prompting": prompting} if (prompting := _asked(loaded)) else {}), samples


def _evaluate(bench: HarnessModel, adapter: Path | None, loaded: Loaded, limit: int | None, label: str) -> Any:
    """The harness's own results. Its longest rows come first: a batch that does not fit fails at once, and is halved."""
    while True:
        seed()
        torch.manual_seed(DEFAULT_OTHER_SEED)
        for leaf in loaded.harness["tasks"].values():
            leaf.set_fewshot_seed(DEFAULT_OTHER_SEED)
        prompting = loaded.task.prompting
        turns = {"apply_chat_template": prompting.chat_template, "fewshot_as_multiturn": prompting.multiturn}
        hidden = contextlib.redirect_stderr(io.StringIO())  # its bars; ours is shown
        with bench.playing(adapter, label, prompting.chat_template), hidden:
            try:
                return harness_evaluate(lm=bench, task_dict=loaded.harness, limit=limit, **turns)
            except torch.OutOfMemoryError:
                size = int(bench.batch_size_per_gpu)
        torch.cuda.empty_cache()
        if size == 1:
            raise InputError(f"{label}: a single row does not fit in this GPU's memory; use a larger one")
        bench.batch_size_per_gpu = size // 2


def _asked(loaded: Loaded) -> dict[str, Any]:
    """What was done of what was asked for: a text that is scored whole has no turns, and nothing is generated of choices."""
    kinds = {leaf.OUTPUT_TYPE for leaf in loaded.harness["tasks"].values()}
    prompting = loaded.task.prompting
    if kinds == {"loglikelihood_rolling"}:
        prompting = replace(prompting, chat_template=False, multiturn=False)
    if "generate_until" not in kinds:
        prompting = replace(prompting, gen_kwargs=PLAIN.gen_kwargs)
    return prompting.record()


def mean_of_subtasks(results: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """The plain mean of the subtasks' accuracies, however many documents each has, as the leaderboard took it of MMLU.

    `sizes` are the subtasks' numbers of documents, in the order of `values`.
    """
    found = [_number(results[name], "acc,none", samples[name]) for name in sorted(samples)]
    values, errors = ([one[part] for one in found if one[part] is not None] for part in ("value", "stderr"))
    mean: dict[str, Any] = {
        "value": sum(values) / len(found) if len(values) == len(found) else None,
        "stderr": math.hypot(*errors) / len(found) if len(errors) == len(found) else None,
    }
    if all("values" in one for one in found):
        mean |= {"values": [value for one in found for value in one["values"]], "sizes": [len(one["values"]) for one in found]}
    return mean


def _number(results: dict[str, Any], metric: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    name, _, filtered = metric.partition(",")
    value, error = (_finite(results.get(key)) for key in (metric, f"{name}_stderr,{filtered}"))
    found: dict[str, Any] = {"value": value, "stderr": error}
    values = [row.get(name) for row in rows if row["filter"] == filtered]
    if value is not None and values and all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        plain = [float(v) for v in values if v is not None]
        if math.isclose(sum(plain) / len(plain), value, rel_tol=1e-9, abs_tol=1e-12):
            found["values"] = plain
    return found


def _finite(value: Any) -> float | None:
    """A number, or None for "N/A", which the harness says where it has no standard error."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
