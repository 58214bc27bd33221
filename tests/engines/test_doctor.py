"""The self-tests of engines: what passes, what does not, and what is left of a failed one."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from helpers.forked import forks
from helpers.games import CPU, Plain, open_hf, recipe_on, save_slot, shake_slot
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.data.sources import Source
from lowmem_spin.engines import doctor, registry, worker
from lowmem_spin.engines.base import Completion, Request
from lowmem_spin.engines.doctor import NEAR, PROMPT, Expected, answers
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.vllm import Server

END = 5  # one of the base's


class Deaf(HF):
    """An engine that answers as the base, whichever adapter it is asked for."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        return super().generate([replace(request, adapter=None) for request in requests], sampling)


@pytest.mark.parametrize(
    ("engine", "verdict"),
    [
        ("lowmem_spin.engines.hf:HF", "works: greedy tokens within 0.000 nats"),
        ("test_doctor:Deaf", "answers differently than hf"),
    ],
)
def test_a_generator_passes_only_with_hfs_policies(
    engine: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.ENGINES, "vllm", replace(registry.ENGINES["vllm"], target=engine))
    for module in (doctor, registry):
        monkeypatch.setattr(module, "installed", lambda name: True)
    (_, hf), (_, found) = doctor.self_tests(["vllm"], tmp_path)
    assert hf.startswith("works: trained two adapters, 3 different answers")
    assert found.startswith(verdict)


def test_the_shortfall_is_of_the_worst_token(quickstart: Path) -> None:
    """Against transformers' own logits; each token is judged after those that the engine itself drew before it."""
    expected, plain = Expected(open_hf(quickstart / "base", quantization="none"), [None]), Plain(quickstart / "base")

    def gaps(tokens: list[int]) -> list[float]:
        with torch.no_grad():
            logits = plain.model(input_ids=torch.tensor([PROMPT + tokens])).logits[0, len(PROMPT) - 1 : -1].double()
        return [(row.max() - row[token]).item() for row, token in zip(logits, tokens, strict=True)]

    for tokens, reason in (([70, 71, 72, END], "stop"), (list(range(70, 78)), "length")):
        assert expected.shortfall([Completion(tokens, "", reason, 0.0)]) == pytest.approx(max(gaps(tokens)), abs=1e-4)
    for tokens, reason in (([70, END, 71, END], "stop"), ([70, 71], "length"), ([70, END], "length")):
        assert expected.shortfall([Completion(tokens, "", reason, 0.0)]) == math.inf


def test_half_precision_passes_and_another_adapter_does_not(quickstart: Path, tmp_path: Path) -> None:
    hf, folder = open_hf(quickstart / "base"), quickstart / "base"
    adapters: list[Path | None] = [None]
    for seed in range(3):
        shake_slot(hf, seed, scale=0.12)
        adapters.append(save_slot(hf, tmp_path / str(seed)))
    expected = Expected(hf, adapters)
    for dtype in ("bfloat16", "float16"):
        half = HF(recipe_on(folder), Source(str(folder), None, "test"), replace(CPU, dtype=dtype))
        assert expected.shortfall(answers(half, adapters)) <= NEAR[dtype]
    found = answers(hf, adapters)
    assert expected.shortfall(found) <= NEAR["float32"]
    assert expected.shortfall([*found[:2], found[3], found[2]]) > 2 * max(NEAR.values())


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_the_log_that_a_failed_test_names_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is real up to its worker process, which looks for vLLM in vain; it is forked, and so need not import torch."""
    forking = forks()
    monkeypatch.setattr(worker.multiprocessing, "get_context", lambda kind: forking)
    for module in (doctor, registry):
        monkeypatch.setattr(module, "installed", lambda name: True)
    _, (name, verdict) = doctor.self_tests(["vllm"], tmp_path / "store")
    kept = doctor.recorded_verdict("vllm", tmp_path / "store")
    assert name == "vllm" and kept is not None and verdict.startswith(kept)
    assert kept.startswith("fails: the vllm worker failed: No module named 'vllm'")
    assert "ModuleNotFoundError" in Path(kept.rpartition("its log is ")[2]).read_text()


def test_vllm_is_never_given_a_name_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes requests of one name for one adapter. Here vLLM itself only keeps what it is given."""
    folders = ["a/adapter", "b/adapter"]
    loaded: list[tuple[str, int, str]] = []
    stub, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    output = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1], finish_reason="stop", cumulative_logprob=0.0)])
    vars(stub)["LLM"] = lambda: SimpleNamespace(
        generate=lambda prompts, *_, **__: [output] * len(prompts), llm_engine=SimpleNamespace(add_lora=loaded.append)
    )
    vars(stub)["SamplingParams"] = dict
    vars(request)["LoRARequest"] = lambda *values: values
    for name, module in (("vllm", stub), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    Server({}, on_cpu=False).generate([(folder, [1], 0) for folder in [*folders, None, *folders]], {})
    names, numbers, paths = zip(*loaded, strict=True)
    assert (len(set(names)), len(set(numbers)), list(paths)) == (2, 2, folders)
