"""The vLLM engine: serves every policy of a batch as a LoRA on one base; out of memory, a worker of half the batch follows.

It lives in its own process, so that its memory is its own and its death is survivable (worker.py, Resident, starts the smaller
one), and it stays up for the whole run; new iterates are loaded into it by path. Each request has its own seed. Written to
the API that vLLM 0.20 and 0.32 share.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.base import Completion, Request
from lowmem_spin.engines.dequantized import unpacked
from lowmem_spin.engines.loading import end_tokens, load_tokenizer
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.model_files import ModelFiles
from lowmem_spin.engines.registry import held_rank
from lowmem_spin.engines.worker import Resident, Worker

REMEDY = "lower runtime.generation_batch_size, or use generation.engine hf"


class Server:
    """What runs in the worker process: a vLLM engine and the adapters it has been given."""

    def __init__(self, options: dict[str, Any], on_cpu: bool) -> None:
        from vllm import LLM  # pyright: ignore

        self.llm = LLM(**options)
        self.on_cpu, self.sleeps = on_cpu, options.get("enable_sleep_mode", False)
        self.asleep = False
        self.adapters: dict[str, Any] = {}

    def generate(self, requests: list[tuple[str | None, list[int], int]], options: dict[str, Any]) -> list[tuple[Any, ...]]:
        """(tokens, finish reason, log-prob) for each (adapter, prompt, seed), in order."""
        self._wake()
        if self.on_cpu:
            # The CPU build applies the last adapter to base rows of a batch in which every slot is filled.
            groups = [[n for n, request in enumerate(requests) if (request[0] is None) == plain] for plain in (True, False)]
        else:
            groups = [list(range(len(requests)))]
        results: dict[int, tuple[Any, ...]] = {}
        for places in filter(None, groups):
            results |= zip(places, self._generate([requests[place] for place in places], options), strict=True)
        return [results[place] for place in range(len(requests))]

    def _generate(self, requests: list[tuple[str | None, list[int], int]], options: dict[str, Any]) -> list[tuple[Any, ...]]:
        from vllm import SamplingParams  # pyright: ignore

        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for _, prompt, _ in requests],
            [SamplingParams(**options, seed=seed) for _, _, seed in requests],
            lora_request=[self._adapter(adapter) for adapter, _, _ in requests],
            use_tqdm=False,
        )
        answers = [output.outputs[0] for output in outputs]
        return [(list(answer.token_ids), answer.finish_reason, answer.cumulative_logprob) for answer in answers]

    def _adapter(self, path: str | None) -> Any:
        from vllm.lora.request import LoRARequest  # pyright: ignore

        if path is None:
            return None
        if path not in self.adapters:
            # A number is never given twice: vLLM would serve the old weights under it. Nor is a name, by which it compares
            # requests, and by which it keeps prefixes: folders of one name may lie in several places.
            number = len(self.adapters) + 1
            self.adapters[path] = LoRARequest(f"{Path(path).name}-{number}", number, path)
            self.llm.llm_engine.add_lora(self.adapters[path])  # a bad one raises here and leaves the engine alive
        return self.adapters[path]

    def sleep(self) -> None:
        """Weights to RAM, key-value cache dropped: the card is the learner's until the next batch."""
        if self.sleeps and not self.asleep:
            with _timed("asleep"):
                self.llm.sleep(level=1)
            self.asleep = True

    def _wake(self) -> None:
        if self.asleep:
            with _timed("awake"):
                self.llm.wake_up()
            self.asleep = False


@contextmanager
def _timed(what: str) -> Iterator[None]:
    """Into the worker's log: what it took."""
    began = time.perf_counter()
    yield
    print(f"{what} after {time.perf_counter() - began:.2f} s", flush=True)


class VLLM:
    """A generator whose batches mix policies."""

    mixes_policies = True
    batches_at_once = 8  # it answers a batch at a time; were it asked for one, its places would wait for the longest answer

    def __init__(
        self, recipe: Recipe, model: Source, machine: Machine, weights_dir: Path, notify: Callable[[str], None]
    ) -> None:
        self.recipe, self.model, self.machine, self.weights_dir = recipe, model, machine, weights_dir
        self.tokenizer = load_tokenizer(model, recipe.model.trust_remote_code)
        self.renderer = Renderer.of(self.tokenizer, recipe)
        self.ends = end_tokens(model, self.renderer, recipe.model.trust_remote_code)
        folder, revision = model.location, model.revision
        if recipe.model.quantization != "none":
            quantization, trusted = recipe.model.quantization, recipe.model.trust_remote_code
            folder, revision = str(unpacked(model, quantization, machine, trusted, weights_dir, notify)), None
        self.folder, self.revision = folder, revision
        self.worker = Resident(self._start, recipe, notify)

    def _start(self, recipe: Recipe) -> Worker:
        machine, longest = self.machine, recipe.data.max_prompt_length + recipe.generation.max_new_tokens
        options: dict[str, Any] = {
            "model": self.folder,
            "revision": self.revision,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # the model's own settings are not the policy's
            "dtype": machine.dtype,
            "trust_remote_code": recipe.model.trust_remote_code,
            "max_model_len": min(longest, ModelFiles(self.model).context or longest),  # no row is longer: row_check.py
            "max_num_seqs": recipe.runtime.generation_batch_size,
            "enable_lora": True,
            "max_lora_rank": held_rank(recipe.training.lora.r),
            "max_loras": 4,
            "max_cpu_loras": 16,
            "disable_log_stats": True,
        }
        if machine.device == "cuda":
            options |= {"enable_sleep_mode": machine.sleeps, "gpu_memory_utilization": machine.generator_share}
        else:
            # The CPU build fails on a seeded request whose prompt it splits ("CPU Generator does not use offset").
            options |= {"enforce_eager": True, "enable_chunked_prefill": False}
            options["max_num_batched_tokens"] = max(8192, options["max_model_len"])
        return self._worker("lowmem_spin.engines.vllm:Server", (options, machine.device == "cpu"), "vllm.log")

    def _worker(self, target: str, arguments: tuple[Any, ...], log: str) -> Worker:
        environment = {
            # On older GPUs its kernels are missing, and it is chosen all the same.
            **({"VLLM_USE_FLASHINFER_SAMPLER": "0"} if self.machine.dtype == "float16" else {}),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its own child would outlive a kill -9
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        return Worker("vllm", target, arguments, environment, self.weights_dir.parent / "logs" / log, REMEDY)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Completions of any policies; see base.Generator."""
        options = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or 0,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": self.ends,
            "detokenize": False,
            "logprobs": 0,  # of the drawn token alone
        }
        asked = [
            (
                str(request.adapter.resolve()) if request.adapter else None,
                [int(token) for token in request.prompt],
                request.seed,
            )
            for request in requests
        ]
        results = self.worker.call("generate", asked, options)
        return [self._completion(*result) for result in results]

    def _completion(self, tokens: list[int], reason: str, logp: float) -> Completion:
        stopped = reason == "stop"
        text = self.renderer.said(tokens[:-1] if stopped else tokens)
        return Completion(tokens, text, "stop" if stopped else "length", logp)

    def release(self) -> None:
        """Leave the card to the learner."""
        self.worker.release("sleep")

    def close(self) -> None:
        """End the worker process."""
        self.worker.close()
