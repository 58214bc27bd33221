"""Worker processes and what happens when they die; residency; which engine auto stands for. Real processes, no GPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines import doctor, pool
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import (
    CONTEXT,
    Shape,
    idle_memory,
    peak,
    stage_memory,
    vllm_memory,
)
from lowmem_spin.engines.registry import ENGINES
from lowmem_spin.engines.residency import plan_residency
from lowmem_spin.engines.worker import Resident, Worker, WorkerDiedError

RECIPE = Recipe.model_validate(
    {
        "model": {"name_or_path": "m"},
        "data": {"path": "d"},
        "training": {"per_device_train_batch_size": 1, "gradient_checkpointing": True},
        "runtime": {"scoring_batch_size": 16},
    }
)
BOTH = ENGINES["vllm"], ENGINES["unsloth"]
GEMMA_2B = Shape(18, 2048, 16384, 8, 1, 256, 256000, True)


class Served:
    """What runs in the process: it dies of any batch larger than `limit`."""

    def __init__(self, batch: int, limit: int) -> None:
        self.batch, self.limit = batch, limit

    def work(self, rows: int, advance: Any) -> int:
        for row in range(rows):
            if row == 3 and self.batch > self.limit:
                os.kill(os.getpid(), signal.SIGKILL)
            advance(1)
            advance(0, None, False, {"step": float(row)})
        return self.batch

    def refuse(self) -> None:
        raise InputError("data.path: no")

    def overflow(self) -> None:
        raise MemoryError("too large")

    def pid(self) -> int:
        return os.getpid()


def resident(folder: Path, limit: int, said: list[str]) -> Resident:
    def start(recipe: Recipe) -> Worker:
        arguments = (recipe.runtime.scoring_batch_size, limit)
        return Worker("test", "test_worker:Served", arguments, {}, folder / "log", "lower the batch")

    return Resident(start, RECIPE, said.append)


def test_a_script_that_starts_a_worker_is_not_run_there_again(tmp_path: Path) -> None:
    """Without the `if __name__ == "__main__"` that nobody writes in a script of three lines."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from lowmem_spin.engines.worker import Worker\n"
        "print('began', flush=True)\n"
        f"worker = Worker('test', 'collections:Counter', ('abb',), {{}}, Path({str(tmp_path / 'log')!r}), '')\n"
        "print(worker.call('total'), __name__)\n"
        "worker.close()\n"
    )
    answer = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert answer.stdout.split() == ["began", "3", "__main__"], answer.stderr


def test_a_worker_that_dies_at_work_is_started_once_more_with_half_the_batch(tmp_path: Path) -> None:
    said: list[str] = []
    reported: list[int] = []
    records: list[dict[str, float]] = []

    def report(rows: int, loss: float | None = None, resumed: bool = False, record: Any = None, /) -> None:
        reported.append(rows)
        records.extend([record] if record else [])

    worker = resident(tmp_path, 8, said)
    assert worker.call("work", 5, report=report) == 8
    assert sum(reported) == 5  # rows done twice are told once
    assert [record["step"] for record in records] == [0, 1, 2, *range(5)]  # records know their steps
    assert said == [
        "the test worker was killed by SIGKILL; lower the batch, and run again to continue; "
        f"its log is {tmp_path / 'log'}; starting it again, with half the batch"
    ]
    os.kill(worker.call("pid"), signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="killed by SIGKILL; lower the batch"):
        worker.call("pid")
    assert len(said) == 1


def test_one_that_is_still_too_large_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(WorkerDiedError, match="killed by SIGKILL") as error:
        resident(tmp_path, 4, []).call("work", 5, report=lambda *told: None)
    assert "\n" not in str(error.value)


def test_a_refusal_leaves_the_worker_alive_and_a_full_memory_does_not(tmp_path: Path) -> None:
    worker = resident(tmp_path, 16, said := [])
    before = worker.call("pid")
    with pytest.raises(InputError, match=r"^data\.path: no$"):
        worker.call("refuse")
    assert worker.call("pid") == before
    with pytest.raises(WorkerDiedError, match="too large"):
        worker.call("overflow")
    assert len(said) == 1  # it was started again, and overflowed again


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """Also when the parent is killed -9 and can close nothing: a vLLM engine left behind would hold the GPU."""
    if (child := os.fork()) == 0:
        (tmp_path / "pid").write_text(str(resident(tmp_path, 16, []).call("pid")))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


@pytest.mark.parametrize("oracle", [0.0, 12e9])
def test_auto_takes_the_first_residency_that_fits(oracle: float) -> None:
    """Against the three inequalities, over all sizes of card: both at once; one awake, one asleep; one at a time. An oracle of
    so many bytes judges while the learner waits."""
    beside = {"oracle's weights": oracle} if oracle else {}
    needed = peak(vllm_memory(RECIPE, GEMMA_2B, "bfloat16"))
    found = stage_memory(RECIPE, GEMMA_2B, "bfloat16")
    waiting = idle_memory(RECIPE, GEMMA_2B, "bfloat16")
    working = max(peak(found["score"]), peak(found["train"]), waiting + 1.15 * oracle)
    seen = set()
    for gigabytes in range(4, 64):
        limit = gigabytes * 1e9
        if needed + working <= limit:
            wanted = "resident"
        elif needed + waiting <= limit and working + CONTEXT <= limit:
            wanted = "sleep"
        elif needed <= limit:
            wanted = "exit"
        else:
            with pytest.raises(InputError, match=r"^runtime\.residency: with exit, vllm needs"):
                plan_residency(RECIPE, GEMMA_2B, "bfloat16", *BOTH, beside, limit, 64e9)
            continue
        settled = plan_residency(RECIPE, GEMMA_2B, "bfloat16", *BOTH, beside, limit, 64e9)
        seen.add(settled.residency)
        assert settled.residency == wanted
        left = {"resident": working, "sleep": waiting, "exit": 0.0}[wanted]
        # vllm measures what is free after its own context was made, and refuses to start with less
        assert 0 < settled.generator_bytes <= limit - left - CONTEXT + 1
        assert settled.generator_bytes + CONTEXT >= needed - 1
    assert seen == {"resident", "sleep", "exit"}
    tight = next(gb * 1e9 for gb in range(4, 64) if _residency(gb * 1e9, 64e9, beside) == "sleep")
    assert _residency(tight, 1e9, beside) == "exit"  # its weights would not fit in so little RAM
    asleep = RECIPE.model_copy(update={"runtime": RECIPE.runtime.model_copy(update={"residency": "sleep"})})
    with pytest.raises(InputError, match=r"^runtime\.residency: asleep, .* wait in RAM, of which 1.0 GB are free"):
        plan_residency(asleep, GEMMA_2B, "bfloat16", *BOTH, beside, tight, 1e9)


def _residency(limit: float, ram: float, oracle: dict[str, float]) -> str | None:
    try:
        return plan_residency(RECIPE, GEMMA_2B, "bfloat16", *BOTH, oracle, limit, ram).residency
    except InputError:
        return None


class Pretended:
    """An engine that only says what is done with it."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said
        said.append(f"open {name}")

    def release(self) -> None:
        self.said.append(f"rest {self.name}")

    def close(self) -> None:
        self.said.append(f"close {self.name}")


@pytest.mark.parametrize("residency", ["sleep", "exit"])
def test_two_tenants_of_one_gpu_settle_once(residency: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAM that the sleeping generator itself takes is no reason to think again. The GPU is pretended, the memory is not."""
    shape = {"num_hidden_layers": 18, "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8}
    config = shape | {"num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000, "tie_word_embeddings": True}
    monkeypatch.setattr(pool, "read_shape", lambda model: Shape.of(config))
    said: list[str] = []
    free = iter([64e9, 1e9, 1e9, 1e9, 1e9])
    monkeypatch.setattr(pool.psutil, "virtual_memory", lambda: SimpleNamespace(available=next(free)))
    monkeypatch.setattr(pool, "open_engine", lambda name, *_: Pretended(name, said))
    recipe = RECIPE.model_copy(update={"runtime": RECIPE.runtime.model_copy(update={"residency": residency})})
    machine = Machine("cuda", "bfloat16", 24e9, 24e9)
    source = Source(str(tmp_path), None, "gemma")
    choices = pool.EngineChoices(machine, "vllm", "unsloth")
    both = pool.GameEngines(
        recipe=recipe,
        model=source,
        choices=choices,
        weights_dir=tmp_path,
        display=Display(Console(quiet=True)),
        pool=pool.EnginePool(),
    )
    for _ in range(2):
        both.generator()
        both.learner()
    gone = "rest" if residency == "sleep" else "close"
    first = ["open vllm", f"{gone} vllm", "open unsloth", f"{gone} unsloth"]
    again = ["rest vllm"] if residency == "sleep" else ["open vllm", "close vllm", "open unsloth"]
    assert said == [*first, *again]
    assert next(iter(both.pool.settled.values())).residency == residency


class Weighty:
    """An oracle that takes so much of the GPU; it judges nothing."""

    def memory(self, *_: object) -> dict[str, float]:
        return {"oracle's weights": 8e9}

    def spec(self) -> dict[str, str]:
        return {"oracle": "weighty"}

    def release(self) -> None:
        """Nothing is held."""

    close = release


def test_a_game_whose_oracle_needs_room_settles_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sweep: what its generator keeps beside another game's learner would leave the oracle no room."""
    limit = next(gb * 1e9 for gb in range(4, 64) if _residency(gb * 1e9, 64e9, {}) == "resident")
    assert _residency(limit, 64e9, Weighty().memory()) == "sleep"
    monkeypatch.setattr(pool, "read_shape", lambda model: GEMMA_2B)
    monkeypatch.setattr(pool.psutil, "virtual_memory", lambda: SimpleNamespace(available=64e9))
    said, residencies, engines = list[str](), list[str](), pool.EnginePool()

    def opened(name: str, recipe: Recipe, model: Source, machine: Machine, *_: object) -> Pretended:
        residencies.append(f"{name} {machine.residency}")
        return Pretended(name, said)

    monkeypatch.setattr(pool, "open_engine", opened)
    judge: Any = Weighty()

    def game(oracle: Any, *names: str) -> pool.GameEngines:
        return pool.GameEngines(
            recipe=RECIPE,
            model=Source(str(tmp_path), None, "gemma"),
            choices=pool.EngineChoices(Machine("cuda", "bfloat16", limit, limit), *names),
            weights_dir=tmp_path,
            display=Display(Console(quiet=True)),
            pool=engines,
            judge=oracle,
        )

    game(None, "vllm", "unsloth").generator()
    judged = game(judge, "vllm", "unsloth")
    judged.generator()
    assert judged.oracle() is judge
    judged.generator()
    assert said == ["open vllm", "close vllm", "open vllm", "rest vllm"]
    assert residencies == ["vllm resident", "vllm sleep"]
    for oracle in (None, judge):  # one engine leaves no room to itself, and is shared
        game(oracle, "hf", "hf").generator()
    assert residencies[2:] == ["hf resident"]


def test_auto_is_the_gpus_engine_only_where_it_has_passed_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU and the packages are pretended here, the verdicts are real files."""
    tested: list[str] = []

    def test(verdict: str | None) -> Any:
        def run(name: str, store: Path) -> None:
            tested.append(name)
            if verdict:
                doctor.record_verdict(name, store, verdict)

        return run

    assert doctor.choose_engine("generation", "auto", tmp_path, test("works")).engine == "hf"  # no GPU here
    monkeypatch.setattr(doctor, "cuda_capability", lambda: 8.9)
    monkeypatch.setattr(doctor, "installed", lambda name: name == "vllm")
    assert doctor.choose_engine("training", "auto", tmp_path, test("works")).why.startswith("unsloth is not installed")
    assert doctor.choose_engine("generation", "auto", tmp_path, None).engine == "vllm" and not tested
    assert doctor.choose_engine("generation", "auto", tmp_path, test("fails: no kernel image")).engine == "hf"
    again = doctor.choose_engine("generation", "auto", tmp_path, test("works"))
    assert (again.engine, tested) == ("hf", ["vllm"])  # tested once; its failure is remembered
    assert "no kernel image" in again.why
    doctor.record_verdict("vllm", tmp_path, "works: 3 of 3")
    assert doctor.choose_engine("generation", "auto", tmp_path, test(None)).engine == "vllm"
    monkeypatch.setattr(doctor, "cuda_capability", lambda: 6.0)
    assert doctor.choose_engine("generation", "auto", tmp_path, None).engine == "hf"
    assert doctor.choose_engine("generation", "vllm", tmp_path, None).engine == "vllm"
