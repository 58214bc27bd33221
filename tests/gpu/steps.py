"""What to do on a GPU that is there for minutes: steps, each under its own limit, whatever becomes of the others.

    python tests/gpu/steps.py train|vllm [--seconds N] [--only NAME,...] [--skip NAME,...]

From the repository's root. What is not installed may be unpacked in $KIT_SITE, in folders `train` and `vllm`; `train` is
all that the steps of that name see. $OUT gets summary.txt (the table that is printed last), all.log, workers.txt (logs of
worker processes) and bench.json; $KIT_WORK has everything else, and $KIT_SLOW times as much time is given.
With LOWMEM_SPIN_GPU_TESTS_ON=cpu the same is tried out on a CPU: what needs the GPU fails, and the rest runs.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
OUT = Path(os.environ.get("OUT", REPO / "runs" / "gpu"))
WORK = Path(os.environ.get("KIT_WORK", Path(tempfile.gettempdir()) / "lowmem-spin-gpu"))
SLOW = float(os.environ.get("KIT_SLOW", "1"))
DEVICE = os.environ.get("LOWMEM_SPIN_GPU_TESTS_ON", "cuda").partition(":")[0]
CLI = [sys.executable, "-m", "lowmem_spin.cli"]
IN_FLOAT16 = ["env", f"LOWMEM_SPIN_GPU_TESTS_ON={DEVICE}:float16"]  # as a T4 computes
LEAST = 20  # seconds; with fewer left no step begins
PATIENCE = 8  # seconds from an interrupt to the kill
# What a command says of a failure that it goes on from.
TROUBLE = r".*self-test +(fails|answers|scores|not installed).*|.*worker (failed|was killed|ended).*|(?m:^(trl|vllm): .*)"
VERSIONS = """
import torch, bitsandbytes, transformers, peft, trl, lowmem_spin
for module in (torch, bitsandbytes, transformers, peft, trl):
    print(module.__name__, module.__version__, end="; ")
print("CUDA", torch.version.cuda, torch.cuda.get_device_name(), [round(size / 1e9, 1) for size in torch.cuda.mem_get_info()])
"""


@dataclass(frozen=True)
class Step:
    """A command, its name in the table, and the seconds that it may take."""

    name: str
    seconds: float
    command: list[str]

    @property
    def log(self) -> Path:
        return WORK / "steps" / f"{self.name.replace(' ', '-')}.log"


@dataclass(frozen=True)
class Result:
    """How a step went: PASS, FAIL or SKIP, and why."""

    name: str
    word: str
    seconds: float
    note: str

    def __str__(self) -> str:
        return f"{self.word:<5}{self.name:<20}{self.seconds:6.0f} s  {self.note}".rstrip()


def steps(which: str) -> Iterator[Step]:
    """The quick ones first: time may run out."""
    yield Step("facts", 90, ["bash", "-c", f"nvidia-smi; df -h . | tail -1; {sys.executable} -c '{VERSIONS}'"])
    if which == "train":
        files = [f"test_gpu_{name}.py" for name in ("nf4", "attention", "sampling", "learner", "oracles")]
        yield Step("tests hf", 180, tests(*files, "-k", "not unsloth"))
        yield Step("quickstart hf", 120, quickstart("hf", "training.engine=hf", "generation.engine=hf"))
        yield Step("tests unsloth", 240, tests("test_gpu_learner.py", "-k", "unsloth"))
        yield Step("quickstart unsloth", 150, quickstart("unsloth", "training.engine=unsloth", "generation.engine=hf"))
        yield Step("bench hf trl", 240, bench("training.engine=hf", "generation.engine=hf", versus="trl"))
        both = "runtime.residency=resident"  # neither is started twice
        yield Step("bench unsloth", 150, bench("training.engine=unsloth", "generation.engine=hf", both))
        yield Step("bench hf 15 GB", 150, bench("training.engine=hf", "generation.engine=hf", vram="15"))
        yield Step("bench llama-8b", 240, bench("training.engine=hf", "generation.engine=hf", model="llama-8b", pairs="16"))
        yield Step("tests hf float16", 180, [*IN_FLOAT16, *tests(*files, "-k", "not unsloth")])
        yield Step("tests unsloth float16", 240, [*IN_FLOAT16, *tests("test_gpu_learner.py", "-k", "unsloth")])
        yield Step("tests game", 200, tests("test_gpu_game.py"))
        yield Step("tests memory", 200, tests("test_gpu_game.py", marked="gpu and slow"))
    else:
        yield Step("tests vllm", 240, tests("test_gpu_vllm.py"))
        yield Step("quickstart vllm", 200, quickstart("vllm", "training.engine=hf", "generation.engine=vllm"))
        yield Step("doctor", 200, [*CLI, "doctor", "--store", str(WORK / "auto" / "store")])
        yield Step("quickstart auto", 200, quickstart("auto"))  # goes by doctor's verdicts, which are in its store
        asleep = "runtime.residency=sleep"  # so that it starts once
        yield Step("bench vllm", 300, bench("training.engine=hf", "generation.engine=vllm", asleep, versus="vllm"))


def tests(file: str, *more: str, marked: str = "gpu") -> list[str]:
    """pytest in one process, without what pyproject.toml has for two."""
    folder = Path(__file__).parent
    given = [str(folder / word) if word.endswith(".py") else word for word in (file, *more)]
    options = ["-rA", "-o", "addopts=--strict-markers --durations=5", "-p", "no:cacheprovider"]
    wanted = ["-m", marked] if DEVICE == "cuda" else []  # on a CPU they bear no such mark
    return [sys.executable, "-m", "pytest", *options, *wanted, *given]


def quickstart(name: str, *overrides: str) -> list[str]:
    values = [
        *(f"runtime.device={DEVICE}", "game.iterations=1", "game.pairs=256", "evaluation.compare_sft=false"),
        *(f"output.dir={WORK / name / 'run'}", f"output.store={WORK / name / 'store'}"),
    ]
    return [*CLI, "run", "quickstart", *setting(*values, *overrides)]


def bench(*overrides: str, versus: str = "", model: str = "gemma-2b", vram: str = "24", pairs: str = "64") -> list[str]:
    shape = ["--model", model, "--vram", vram] if DEVICE == "cuda" else ["--model", "tiny"]
    shape += ["--pairs", pairs, "--prompt-length", "256", "--completion-length", "128", "--versus", versus]
    return [*CLI, "bench", *shape, "--store", str(WORK / "bench"), *setting(f"runtime.device={DEVICE}", *overrides)]


def setting(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def environment(which: str) -> dict[str, str]:
    """No network, caches in the working folder, and the unpacked packages before the installed ones."""
    site = os.environ.get("KIT_SITE")
    unpacked = [str(Path(site) / name) for name in ("train", "vllm")[: 1 + (which == "vllm")]] if site else []
    unwanted = ("PYTHONDONTWRITEBYTECODE", "TRITON_INTERPRET")
    mine = {name: value for name, value in os.environ.items() if name not in unwanted}
    path = [*unpacked, str(REPO), *filter(None, [mine.get("PYTHONPATH")])]
    return mine | {
        **{"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "COLUMNS": "110", "MPLBACKEND": "agg"},
        **{"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(WORK / "hub"), "TMPDIR": str(WORK / "tmp")},
        **{"TOKENIZERS_PARALLELISM": "false", "UNSLOTH_DISABLE_STATISTICS": "1", "VLLM_NO_USAGE_STATS": "1"},
        **{"TORCHINDUCTOR_CACHE_DIR": str(WORK / "inductor"), "TRITON_CACHE_DIR": str(WORK / "triton")},
        **{"VLLM_CACHE_ROOT": str(WORK / "vllm"), "DO_NOT_TRACK": "1"},
    }


def run(step: Step, limit: float, surroundings: dict[str, str]) -> int | None:
    """Exit status of a command, None if it ran out of time. Nothing that it started outlives it."""
    with step.log.open("wb") as log:
        process = subprocess.Popen(
            step.command, stdout=log, stderr=subprocess.STDOUT, cwd=REPO, env=surroundings, start_new_session=True
        )
        end = time.monotonic() + limit
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.5)
            keep_worker_logs()
        status = process.returncode
        if status is None:
            os.killpg(process.pid, signal.SIGINT)  # a stack trace says where it was
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                print(f"{step.name} takes no interrupt", flush=True)
        with suppress(ProcessLookupError):  # all of it is gone
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return status


def keep_worker_logs() -> None:
    """Tests, doctor and bench remove their temporary folders, and the logs in them, when they end."""
    with suppress(FileNotFoundError):  # removed just now
        for log in (log for folder in (WORK / "tmp", WORK / "bench") for log in folder.glob("**/logs/*.log")):
            kept = WORK / "kept" / "-".join(log.relative_to(WORK).parts)
            kept.parent.mkdir(exist_ok=True)
            shutil.copy2(log, kept)


def judge(step: Step, status: int | None, limit: float, seconds: float) -> Result:
    """What the exit status and the log say together."""
    text = step.log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"]
    if status == 0 and "pytest" in step.command:
        return Result(step.name, "PASS" if " passed" in lines[-1] else "SKIP", seconds, lines[-1].strip("= ")[:100])
    if status == 0:
        trouble = re.search(TROUBLE, text)
        return Result(step.name, "FAIL" if trouble else "PASS", seconds, trouble.group().strip()[:150] if trouble else "")
    telling = [line for line in lines if re.match(r"FAIL|ERROR|E   ", line) or re.search(r"Error| failed", line)]
    why = f"ran out of {limit:.0f} s" if status is None else f"exit {status}"
    return Result(step.name, "FAIL", seconds, f"{why}; {(telling or lines)[-1][:150]}")


def shown(log: Path, most: int) -> bytes:
    """Beginning and end of a log."""
    data = log.read_bytes()
    return data if len(data) <= most else data[: most // 3] + b"\n[... cut ...]\n" + data[-2 * most // 3 :]


def play(which: str, chosen: list[Step], seconds: float) -> list[Result]:
    """Run the steps, writing down each as it ends: the machine may be gone before the next."""
    for folder in (OUT, WORK / "tmp", WORK / "steps"):
        folder.mkdir(parents=True, exist_ok=True)
    (OUT / "all.log").unlink(missing_ok=True)
    end, results, surroundings = time.monotonic() + seconds, [], environment(which)
    for step in chosen:
        began = time.monotonic()
        limit = min(step.seconds * SLOW, end - began)
        if end - began < LEAST * SLOW:
            results.append(Result(step.name, "SKIP", 0, "no time left"))
        else:
            print(f"--- {step.name} (at most {limit:.0f} s)", flush=True)
            status = run(step, limit, surroundings)
            results.append(judge(step, status, limit, time.monotonic() - began))
            with (OUT / "all.log").open("ab") as file:
                file.write(f"\n######## {results[-1]}\n".encode() + shown(step.log, 400_000))
        (OUT / "summary.txt").write_text("".join(f"{result}\n" for result in results), encoding="utf-8")
        with (OUT / "workers.txt").open("wb") as file:
            for log in [*WORK.glob("*/store/logs/*.log"), *WORK.glob("kept/*.log")]:
                file.write(f"\n######## {log.relative_to(WORK)}\n".encode() + shown(log, 60_000))
        if (rates := WORK / "bench" / "bench.json").exists():
            shutil.copy(rates, OUT / "bench.json")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["train", "vllm"])
    parser.add_argument("--seconds", type=float, default=480, help="for all steps together")
    parser.add_argument("--only", default="", metavar="NAME,...", help="'bench' is all that begin so")
    parser.add_argument("--skip", default="", metavar="NAME,...")
    options = parser.parse_args()
    only, skip = (tuple(filter(None, names.split(","))) for names in (options.only, options.skip))
    chosen = [
        s for s in steps(options.which) if (not only or s.name.startswith(only)) and not (skip and s.name.startswith(skip))
    ]
    if not chosen:
        parser.error(f"no such step; there are: {', '.join(repr(step.name) for step in steps(options.which))}")
    results = play(options.which, chosen, options.seconds * SLOW)
    for step, result in zip(chosen, results, strict=True):
        if step.name.startswith(("bench", "doctor")) and result.seconds:
            print(f"######## {step.name}\n" + step.log.read_text(encoding="utf-8", errors="replace")[-2600:], flush=True)
    print("\n" + "\n".join(map(str, results)), flush=True)
    words = {result.word for result in results}
    sys.exit(0 if "PASS" in words and "FAIL" not in words else 1)


if __name__ == "__main__":
    main()
