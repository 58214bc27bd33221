"""Plain vLLM, all requests of an iteration in one call, each with its adapter, in a worker process."""

import time
from typing import Any

from vllm import LLM, SamplingParams  # pyright: ignore
from vllm.lora.request import LoRARequest  # pyright: ignore


class VLLMRival:
    """`options` are those of vLLM's own LLM."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.llm = LLM(**options)

    def generate(self, requests: list[tuple[str | None, list[int]]], sampling: dict[str, Any]) -> tuple[int, int, float]:
        """(completions, their tokens, seconds) of (adapter folder, prompt) requests; adapters are loaded before."""
        folders = list(dict.fromkeys(folder for folder, _ in requests if folder is not None))
        adapters = {folder: LoRARequest(folder, number + 1, folder) for number, folder in enumerate(folders)}
        for folder in [None, *folders]:
            self._call([(folder, requests[0][1])], {**sampling, "max_tokens": 1}, adapters)
        began = time.perf_counter()
        outputs = self._call(requests, sampling, adapters)
        seconds = time.perf_counter() - began
        return len(outputs), sum(len(output.outputs[0].token_ids) for output in outputs), seconds

    def _call(
        self, requests: list[tuple[str | None, list[int]]], sampling: dict[str, Any], adapters: dict[str, Any]
    ) -> list[Any]:
        return self.llm.generate(
            [{"prompt_token_ids": prompt} for _, prompt in requests],
            SamplingParams(**sampling),
            lora_request=[None if folder is None else adapters[folder] for folder, _ in requests],
            use_tqdm=False,
        )
