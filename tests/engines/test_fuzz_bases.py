"""Whatever a model's folder holds: it is played with the very weights of its files, or refused in one line; never a traceback.

`FUZZ_BASES=500` takes so many folders, all made from one seed.
"""

import builtins
import json
import math
import os
import random
import re
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.damaged_folders import HARMS
from helpers.games import QUICKSTART, open_hf, opened, save_slot, shake_slot, tiny
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.grid import sweep_points
from lowmem_spin.config.load import find_recipe
from lowmem_spin.engines.base import Request
from lowmem_spin.runner.planning.plan import plan

BASES = int(os.environ.get("FUZZ_BASES", "20"))
ROOM, SECONDS = 3 * 2**30, 120  # of address space beyond what is taken, and before a folder counts as one that never ends
FIELD = re.compile(r"(model|data|game|generation|training|evaluation|runtime)(\.\w+)+: ")


class Never(BaseException):
    """What nothing may catch: it took for ever, or asked somebody."""


@contextmanager
def bounded() -> Iterator[None]:
    """Little more memory than is taken now, and an end."""

    def end(*_: Any) -> None:
        raise Never("it does not end")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, end)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = open_hf(QUICKSTART / "base", "none")
    shake_slot(engine)
    return save_slot(engine, tmp_path_factory.mktemp("adapter"))


def line(refusal: InputError, folder: Path) -> str:
    """What is said, which has to be one line of a field."""
    said = str(refusal).replace(str(folder), "FOLDER")
    assert FIELD.match(said), said
    assert "\n" not in said and len(said) <= 400, said
    return said


def played(game: Any, base: Path) -> None:
    """One batch answered and scored, with weights that are all in the folder's files."""
    adapter, prompt = game.tables.base_adapter, game.rows.train.prompt(0)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=None, max_new_tokens=4, seed=0, generator={})
    answers = game.engines.generator().generate([Request(adapter, prompt, seed) for seed in range(2)], sampling)
    engine = game.engines.learner()
    rows = [*((prompt, answer.tokens) for answer in answers), (prompt, game.rows.train.chosen(0))]
    scored = engine.score(adapter, rows)
    for logp in [*(answer.logp for answer in answers), *scored]:
        assert math.isfinite(logp)
        assert logp <= 0
    for answer, logp in zip(answers, scored, strict=False):  # a token at a time and all at once: what comes later is not seen
        assert math.isclose(answer.logp, logp, rel_tol=1e-3, abs_tol=1e-2), (answer.logp, logp)
    files = [load_file(path) for path in base.glob("*.safetensors")]
    assert all(one.dtype.is_floating_point for file in files for name, one in file.items() if name.endswith(".weight"))
    stored = [one.float() for file in files for one in file.values()]
    for name, weight in engine.model.named_parameters():
        if "lora_" not in name and weight.is_floating_point() and not hasattr(weight, "quant_state"):
            assert any(one.shape == weight.shape and torch.equal(one, weight.float()) for one in stored), f"made up: {name}"


def check(seed: int, folder: Path, adapter: Path, outcomes: Counter[str]) -> str:
    """One folder; what came of it."""
    r = random.Random(seed)
    base = Path(shutil.copytree(QUICKSTART / "base", folder / "base"))
    shutil.copytree(adapter, folder / "adapter")
    (name,) = r.choices(list(HARMS), [weight for _, weight in HARMS.values()])
    told = HARMS[name][0](r, base)
    asked = [f"model.name_or_path={base}", "generation.max_new_tokens=4", "game.pairs=3", "evaluation={health_prompts: 2}"]
    asked += ["training.lora={r: 8, lora_alpha: 16, dropout: 0}", f"model.quantization={r.choice(['none', 'none', 'nf4'])}"]
    asked += [f"model.adapter={folder / 'adapter'}"] if name.startswith("adapter") or r.random() < 0.1 else []
    asked += ["model.chat_template=gemma"] if name != "template" and r.random() < 0.1 else []
    (folder / "train.jsonl").write_text("".join((QUICKSTART / "train.jsonl").read_text().splitlines(keepends=True)[:24]))
    recipe, said = find_recipe("quickstart"), []

    def planned() -> None:
        plan(sweep_points(recipe, tiny(folder, *asked), {}, 1), folder)

    def run() -> None:
        game = opened(folder, *asked)
        try:
            played(game, base)
        finally:
            game.engines.pool.close()

    for do in (planned, run):
        try:
            with bounded():
                do()
            said.append("")
        except InputError as refusal:
            said.append(line(refusal, folder))
        except BaseException as error:
            error.add_note(ascii(f"{name}: {told}; {asked}; plan said {said}"))
            raise
    assert not list(folder.rglob("RAN")), (name, told)
    if said[0] and not said[0].endswith("cannot be planned"):
        assert said[0] == said[1], (name, told)
    outcome = "refused by both" if said[0] else "refused by run" if said[1] else "plays"
    outcomes[f"{name}: {outcome}"] += 1
    if "FUZZ_SAID" in os.environ:
        with open(os.environ["FUZZ_SAID"], "a") as out:
            print(seed, name, ascii(told)[:200], outcome, said[1], sep=" | ", file=out)
    return outcome


@pytest.mark.parametrize("part", range(2))
def test_every_folder_is_played_or_refused(part: int, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asks(*_: Any) -> None:
        raise Never("it asks somebody")

    monkeypatch.setattr(builtins, "input", asks)
    found, failed, outcomes = Counter[str](), [], Counter[str]()
    for seed in range(part, BASES, 2):
        try:
            found[check(seed, tmp_path / "f", adapter, outcomes)] += 1
        except BaseException as error:
            if not isinstance(error, Exception | Never) and type(error).__name__ != "PanicException":
                raise
            failed.append((seed, error))
        shutil.rmtree(tmp_path / "f")
        (tmp_path / "x.safetensors").unlink(missing_ok=True)
    print(dict(found), json.dumps(outcomes, indent=1, sort_keys=True))
    if failed:
        raise AssertionError(f"folders {[seed for seed, _ in failed]} of {dict(found)}") from failed[0][1]
