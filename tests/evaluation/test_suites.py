"""Benchmarks of a played sweep's policies: the harness's own numbers, each computed once, and what a report makes of them."""

import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from peft import PeftModel
from rich.console import Console
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from helpers.commands import SMALL, call
from helpers.games import open_hf, save_slot, shake_slot, unchecked
from helpers.page import Page, cells, check_offline
from lowmem_spin.cli.evaluate import announced, evaluate
from lowmem_spin.cli.play import run as play
from lowmem_spin.cli.play import sweep as play_sweep
from lowmem_spin.common.display import Display, TimeIsUpError
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config import grid
from lowmem_spin.config.harness_config import GenKwargs, Harness
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.evaluation import diversity, harness_tasks, suites
from lowmem_spin.evaluation.benchmark_records import _number
from lowmem_spin.evaluation.harness import mean_of_subtasks
from lowmem_spin.evaluation.harness_tasks import Catalogue, Task
from lowmem_spin.evaluation.leaderboard import COLUMNS, OF_SUBTASKS, Column
from lowmem_spin.evaluation.prompting import PLAIN, HarnessChanges, Prompting
from lowmem_spin.evaluation.suites import EvaluationRequest, measure_policies
from lowmem_spin.evaluation.target import EvaluationTarget
from lowmem_spin.report.benchmarks import blocks
from lowmem_spin.report.load import read_results, read_run_results
from lowmem_spin.report.page import write_all
from lowmem_spin.runner import gc, run_folder
from lowmem_spin.runner.open import SharedResources
from lowmem_spin.runner.sweep import Entry, SweepState

SWEEP = "game-sweep"
IN_PLAIN_TEXT = HarnessChanges(apply_chat_template=False)  # the tasks here write the template's tokens themselves
NAMES = ("skills_choice", "skills_answer")
CHAT = "skills_chat"  # a question alone, with an example before it: the template is the harness's to write
PENALTY = 1.3
WRITTEN = "<bos><user>{{prompt}}<end_of_turn><model>"


def write_tasks(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Two tasks as a user would write them: one by log-probs with an example before each question, one by answering."""
    folder.mkdir()
    for place, row in enumerate(rows):
        row["choices"] = [row["completion"], *(rows[(place + step) % len(rows)]["completion"] for step in (1, 2, 3))]
    for name in (*NAMES, CHAT):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": 0, "num_fewshot": 1}
    choice |= {"fewshot_split": "test", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
    answer = {"output_type": "generate_until", "doc_to_target": "{{completion}}", "metric_list": [{"metric": "exact_match"}]}
    answer |= {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 20}}
    chat = answer | {"doc_to_text": "{{prompt}}", "num_fewshot": 1, "fewshot_split": "test"}
    for name, task in zip((*NAMES, CHAT), (choice, answer, chat), strict=True):
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
        shape = {"test_split": "test", "doc_to_text": WRITTEN, "target_delimiter": "", "metadata": {"version": 2.0}}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **data, **shape, **task}))  # JSON is YAML
    hard = {"include": "skills_choice.yaml", "task": "skills_hard", "doc_to_text": "{{prompt}} is ", "num_fewshot": 0}
    (folder / "hard.yaml").write_text(json.dumps(hard))
    group = {"group": "skills", "task": ["skills_choice", "skills_hard"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "skills.yaml").write_text(json.dumps(group))


@pytest.fixture(scope="module")
def home(quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A played sweep of two points that share their base, diversity measured at its end; and tasks."""
    folder = tmp_path_factory.mktemp("home")
    rows = [json.loads(line) for line in (quickstart / "heldout.jsonl").read_text().splitlines()[:40]]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tasks(folder / "tasks", rows)
    values = {
        **SMALL,
        "game.iterations": 1,
        "game.pairs": 48,
        "evaluation.health_prompts": 8,
        "model.quantization": "none",
        "evaluation.path": folder / "heldout.jsonl",
    }
    values |= {"output.store": folder / "store", "output.dir": folder / "game", "evaluation.benchmarks": "[diversity]"}
    recipe, overrides = find_recipe("quickstart"), [f"{name}={value}" for name, value in values.items()]
    axes = {"training.learning_rate": [3e-3, 1e-3]}
    entries = [Entry(point) for point in grid.sweep_points(recipe, overrides, axes, 1)]
    play_sweep(SweepState("quickstart", folder / SWEEP, axes, [42], entries), recipe.parent, quiet())
    return folder


def quiet() -> Display:
    return Display(Console(quiet=True))


def points(home: Path) -> list[Path]:
    return sorted((home / SWEEP / "points").iterdir(), reverse=True)


def lines(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    read_back = [json.loads(line) for line in (folder / "benchmarks.jsonl").read_text().splitlines()]
    return {(line["name"], line["task"]): line for line in read_back}


@pytest.fixture(scope="module")
def measured(home: Path) -> Path:
    """The home after `evaluate` on the whole sweep."""
    evaluate(home / SWEEP, EvaluationRequest(tasks=NAMES, include=home / "tasks"), "all", quiet(), changes=IN_PLAIN_TEXT)
    chat = HarnessChanges(gen_kwargs=f"repetition_penalty={PENALTY}", log_samples=True)  # the template is the default
    evaluate(home / SWEEP, EvaluationRequest(tasks=[CHAT], include=home / "tasks"), "all", quiet(), changes=chat)
    return home


def harness(
    base: Path, tasks: Path, out: Path, adapter: Path | None, names: Sequence[str] = NAMES, **asked: Any
) -> dict[str, Any]:
    """What the harness by itself writes of a policy."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(out))
    evaluate_by_itself: Any = lm_eval.simple_evaluate  # its decorator hides its types
    found = evaluate_by_itself(
        model="hf",
        model_args=f"pretrained={base},dtype=float32" + (f",peft={adapter}" if adapter else ""),
        tasks=list(names),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=2,
        device="cpu",
        log_samples=True,
        evaluation_tracker=tracker,
        **asked,
    )
    tracker.save_results_aggregated(results=found, samples=found["samples"])
    for name in names:
        tracker.save_results_samples(name, found["samples"][name])
    (results,) = out.rglob("results_*.json")
    return json.loads(results.read_text())


def test_the_numbers_are_those_of_the_harness_by_itself(quickstart: Path, measured: Path, tmp_path: Path) -> None:
    first, second = points(measured)
    policies = {"base": None, "iterate 0": first / "iterates" / "0"}
    found = lines(first)
    for name, adapter in policies.items():
        theirs = harness(quickstart / "base", measured / "tasks", tmp_path / name, adapter)
        for task in NAMES:
            ours, about = found[name, task]["numbers"], found[name, task]
            metrics = {key: value for key, value in theirs["results"][task].items() if "," in key}
            assert {key for key in metrics if "_stderr" not in key} == ours.keys()
            for metric, number in ours.items():
                assert number["value"] == metrics[metric]
                assert number["stderr"] == metrics[metric.replace(",", "_stderr,")]
            assert about["fewshot"] == theirs["n-shot"][task] == (1 if task == "skills_choice" else 0)
            assert about["recorded"]["task_hash"] == {task: theirs["task_hashes"][task]}
            assert about["recorded"]["task_version"] == theirs["versions"][task] == 2.0
            assert about["count"] == 40
    values = [found[name, "skills_answer"]["numbers"]["exact_match,none"]["value"] for name in policies]
    assert values[0] != values[1]  # two policies, not one under two names
    assert found["base", "skills_choice"] == lines(second)["base", "skills_choice"]
    assert found["iterate 0", "skills_answer"]["policy"] != lines(second)["iterate 0", "skills_answer"]["policy"]


def test_with_the_chat_template_too(quickstart: Path, measured: Path, tmp_path: Path) -> None:
    """The default, with the example as a turn and answers generated in another way; numbers and samples."""
    first, second = points(measured)
    found = {}
    for name, adapter in {"base": None, "iterate 0": first / "iterates" / "0"}.items():
        asked = {"apply_chat_template": True, "fewshot_as_multiturn": True, "gen_kwargs": {"repetition_penalty": PENALTY}}
        theirs = harness(quickstart / "base", measured / "tasks", tmp_path / name, adapter, [CHAT], **asked)
        ours = lines(first)[name, CHAT]
        assert ours["numbers"]["exact_match,none"]["value"] == theirs["results"][CHAT]["exact_match,none"]
        assert ours["recorded"]["task_hash"] == {CHAT: theirs["task_hashes"][CHAT]}
        assert ours["prompting"] == {
            "chat_template": True,
            "fewshot_as_multiturn": True,
            "gen_kwargs": {"repetition_penalty": PENALTY},
        }
        (written,) = (tmp_path / name).rglob("samples_*.jsonl")
        (file,) = (first / "samples" / name.replace(" ", "_")).iterdir()
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        assert samples == [json.loads(line) for line in written.read_text().splitlines()]
        found[name] = [sample["resps"] for sample in samples]
        prompt = samples[1]["arguments"]["gen_args_0"]["arg_0"]
        assert (
            prompt.startswith("<bos><user>") and prompt.count("<end_of_turn>") == 3 and prompt.endswith("<end_of_turn><model>")
        )
    assert found["base"] != found["iterate 0"]
    alike = [point / "samples" / "base" for point in (first, second)]
    assert [path.read_bytes() for path in alike[0].iterdir()] == [path.read_bytes() for path in alike[1].iterdir()]


def test_a_result_in_plain_text_has_the_key_of_earlier_versions() -> None:
    asked = Task("gsm8k", 5, "0" * 20, own=False)
    spec = partial(Task.spec, policy="1" * 20, limit=None, learner={"engine": "hf", "dtype": "float32"})
    assert digest(spec(asked)) == "b1f0a299628ea334f81a"
    ways = [Harness(apply_chat_template=False), Harness(), Harness(fewshot_as_multiturn=False)]
    ways += [Harness(apply_chat_template=chat, gen_kwargs=GenKwargs(max_gen_toks=9)) for chat in (True, False)]
    keys = [digest(spec(replace(asked, prompting=Prompting.of(way)))) for way in ways]
    assert keys[0] == digest(spec(asked))
    assert len(set(keys)) == len(ways)


def test_the_leaderboard_is_asked_in_plain_text_whatever_tasks_are() -> None:
    request = EvaluationRequest(["leaderboard"], ["gsm8k"], options=Harness(gen_kwargs=GenKwargs(max_gen_toks=9)))
    *papers, named = request.find(request.catalogue())
    assert {task.prompting for task in papers} == {PLAIN}
    assert named.prompting == Prompting(True, True, '{"max_gen_toks": 9}')


def test_samples_that_are_gone_are_measured_again_and_the_numbers_stay(measured: Path, tmp_path: Path) -> None:
    home = moved(measured, tmp_path)
    first, _ = points(home)
    logged = Harness(gen_kwargs=GenKwargs(repetition_penalty=PENALTY), log_samples=True)
    files = [path for point in points(home) for path in (point / "samples" / "base").iterdir()]
    content = files[0].read_bytes()
    assert added(home, first, asked(home, tasks=[CHAT], options=logged)) == 0
    for file in files:
        file.unlink()
    before, told = stored(home), io.StringIO()
    display = Display(Console(file=told, width=500))
    shared = SharedResources()
    both = [EvaluationTarget.from_run(run_folder.read_run_folder(point), "base", shared, display) for point in points(home)]
    measure_policies(both, asked(home, tasks=[CHAT], options=logged), display)
    assert [file.read_bytes() for file in files] == [content, content]
    assert stored(home) == before
    again = f"base on {CHAT} is measured again, for its samples; the stored numbers stay"
    assert told.getvalue().count(again) == 1  # for both games
    assert f"{CHAT}: asked with the chat template, repetition_penalty {PENALTY}" in told.getvalue()
    assert f"samples  {first / 'samples'}" in told.getvalue()

    assert added(home, first, asked(home, tasks=[CHAT]), "base") == 1  # in plain text: another question, another line
    written = map(json.loads, (first / "benchmarks.jsonl").read_text().splitlines())
    ways = [
        line.get("prompting", {}).get("chat_template") for line in written if (line["name"], line["task"]) == ("base", CHAT)
    ]
    assert sorted(ways, key=str) == [None, True]


def test_tables_say_how_tasks_were_asked(measured: Path) -> None:
    titles = [block.title for block in blocks(read_run_results(points(measured)[0]).benchmarks)]
    assert titles[:2] == [
        "Other tasks, without a chat template",
        f"Other tasks, with the chat template, repetition_penalty {PENALTY}",
    ]


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b'{"name": "base", "task"'], ids=["no text", "half a line"])
def test_damaged_benchmarks_are_set_aside_and_written_whole(measured: Path, tmp_path: Path, damage: bytes) -> None:
    home = moved(measured, tmp_path)
    first, _ = points(home)
    whole = lines(first)
    path = first / "benchmarks.jsonl"
    path.write_bytes(path.read_bytes() + damage)
    broken, before = path.read_bytes(), set((home / "store").glob("aside/*"))
    options = [part for name in NAMES for part in ("--task", name)]
    result = call("evaluate", first, *options, "--include-path", home / "tasks", "--no-apply-chat-template")
    assert result.returncode == 0, result.stderr
    (aside,) = set((home / "store").glob("aside/*")) - before
    assert aside.read_bytes() == broken
    said = " ".join((result.stdout + result.stderr).split())
    assert said.count("moved to") == 1 and "tasks that are not asked for now come back from the store" in said
    assert lines(first) == {key: line for key, line in whole.items() if key[1] in NAMES}


def test_a_4_bit_base_measures_as_peft_on_transformers(quickstart: Path, home: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.models import huggingface

    from lowmem_spin.evaluation.harness import HarnessModel, measure_task

    engine = open_hf(quickstart / "base")
    shake_slot(engine, scale=0.1)
    adapter = save_slot(engine, tmp_path / "adapter")
    bench, catalogue = (
        HarnessModel(engine, Source(str(quickstart / "base"), None, "test"), quiet()),
        Catalogue(home / "tasks", NAMES, ""),
    )
    names = (*NAMES, "skills")
    tasks = [catalogue.load(task) for name in names for task in catalogue.tasks(name, None)]
    ours = [[measure_task(bench, policy, task, 20, "")[0]["numbers"] for task in tasks] for policy in (adapter, None, adapter)]
    assert ours[0] == ours[2] != ours[1]

    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model: Any = AutoModelForCausalLM.from_pretrained(quickstart / "base", quantization_config=four_bit, dtype="float32")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    tokenizer = AutoTokenizer.from_pretrained(quickstart / "base")
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    stock: Any = huggingface.HFLM  # the decorators of these two hide their types
    by_the_harness: Any = lm_eval.simple_evaluate
    given = {"model": stock(model, tokenizer=tokenizer, batch_size=4), "task_manager": catalogue.manager}
    theirs = by_the_harness(**given, tasks=list(NAMES), limit=20)["results"]
    theirs |= by_the_harness(**given, tasks=["skills"], limit=20)["results"]
    assert len(ours[0][2]["acc,none"]["values"]) == 40

    shutil.copytree(quickstart / "base", tmp_path / "base")  # its own files know of no end but <eos>, its template does
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": 2}')
    bench = HarnessModel(engine, Source(str(tmp_path / "base"), None, "test"), quiet())
    for chat, ends in ((True, [2, 5]), (False, 2)):
        with bench.playing(adapter, "", chat):
            assert bench.model.generation_config.eos_token_id == ends
    for name, numbers in zip(names, ours[0], strict=True):
        assert {metric: number["stderr"] for metric, number in numbers.items()} == {
            metric: theirs[name][metric.replace(",", "_stderr,")] for metric in numbers
        }
        assert {metric: number["value"] for metric, number in numbers.items()} == {m: theirs[name][m] for m in numbers}


def stored(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (home / "store" / "results").rglob("*.json")}


def asked(home: Path, **changes: Any) -> EvaluationRequest:
    plain = Harness(apply_chat_template=False)
    return EvaluationRequest(**{"tasks": NAMES, "include": home / "tasks", "options": plain} | changes)


def measure_run(folder: Path, question: EvaluationRequest, iterate: str, display: Display) -> None:
    """`evaluate` without its tables and pages."""
    measure_policies(
        [EvaluationTarget.from_run(run_folder.read_run_folder(folder), iterate, SharedResources(), display)], question, display
    )


def added(home: Path, folder: Path, question: EvaluationRequest, iterate: str = "all") -> int:
    """How many results measuring adds to the store; it changes none that is there."""
    before, display = stored(home), quiet()
    measure_run(folder, question, iterate, display)
    after = stored(home)
    assert {path: after[path] for path in before if path in after} == {path: before[path] for path in before if path in after}
    assert ("evaluate" in display.seconds) == (after.keys() != before.keys())
    return len(after.keys() - before.keys())


def moved(home: Path, folder: Path) -> Path:
    """A copy of the home, for a test that changes it."""
    there = Path(shutil.copytree(home, folder / "home", symlinks=True))
    for path in [*(there / SWEEP).rglob("recipe.yaml"), *(there / "tasks").glob("*.yaml")]:
        path.write_text(path.read_text().replace(str(home), str(there)))
    return there


def test_nothing_is_measured_twice(measured: Path, tmp_path: Path) -> None:
    home = moved(measured, tmp_path)
    first, second = points(home)
    assert added(home, first, asked(home)) == added(home, second, asked(home)) == 0  # though the tasks' folder moved
    assert len(stored(home)) == 3 * 4  # base and two iterates; three tasks and diversity
    assert added(home, first, asked(home, limit=5), "base") == 2
    assert added(home, second, asked(home, limit=5)) == 2  # the base is shared
    assert added(home, first, asked(home, tasks=NAMES[:1], fewshot=2), "base") == 1
    assert lines(first)["base", NAMES[0]]["fewshot"] == 2
    text = (home / "tasks" / "skills_choice.jsonl").read_text()
    (home / "tasks" / "skills_choice.jsonl").write_text(text.replace("upper: ", "UPPER: "))
    assert added(home, first, asked(home), "base") == 1  # other data: another task
    (home / "tasks" / "skills_choice.jsonl").write_text(text)
    assert added(home, first, asked(home), "base") == 0
    damaged = sorted(
        path for path in stored(home) if path.parent.name == run_folder.read_run_folder(first).policies["iterate 0"]
    )
    damaged[0].write_text("{")
    damaged[1].write_text(unchecked(damaged[1].read_text().replace('"maker": "', '"maker": "other')))
    good = {path: path.read_bytes() for path in stored(measured)}
    measure_run(first, asked(home, suites=("diversity",)), "all", quiet())
    again = {path: path.read_bytes() for path in damaged}
    for path, content in again.items():
        before = json.loads(good[measured / path.relative_to(home)])
        assert json.loads(content)["numbers"] == before["numbers"]
        assert json.loads(content)["maker"] == before["maker"]
    assert len(list((home / "store" / "aside").iterdir())) == 2


def test_what_was_measured_before_a_stop_is_kept(home: Path, tmp_path: Path) -> None:
    for name in ("store", SWEEP):
        shutil.copytree(
            home / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("results", "benchmarks.jsonl")
        )
    for path in (tmp_path / SWEEP).rglob("recipe.yaml"):
        path.write_text(path.read_text().replace(str(home), str(tmp_path)))
    run, hurried = points(tmp_path)[0], quiet()
    hurried.deadline = 0.0
    with pytest.raises(TimeIsUpError):
        measure_run(run, asked(home, tasks=NAMES[1:]), "all", hurried)
    assert len(stored(tmp_path)) == 1
    assert added(tmp_path, run, asked(home, tasks=NAMES[1:])) == 1
    assert lines(run).keys() == {(name, NAMES[1]) for name in ("base", "iterate 0")}


def test_gains_are_taken_document_by_document(measured: Path) -> None:
    run = points(measured)[0]
    values = {}
    for name, key in run_folder.read_run_folder(run).policies.items():
        records = [json.loads(path.read_text()) for path in (measured / "store" / "results" / key).glob("*.json")]
        records = [record for record in records if "prompting" not in record]
        (values[name],) = [r["numbers"]["exact_match,none"]["values"] for r in records if "exact_match,none" in r["numbers"]]
    apart = np.array(values["iterate 0"]) - np.array(values["base"])
    number = lines(run)["iterate 0", "skills_answer"]["numbers"]["exact_match,none"]
    assert math.isclose(number["gain"], apart.mean())
    assert math.isclose(number["gain_stderr"], float(stats.sem(apart)))
    assert "gain" not in lines(run)["base", "skills_answer"]["numbers"]["exact_match,none"]


def test_diversity_is_of_sixteen_answers_to_each_prompt(home: Path) -> None:
    """Measured when the sweep ended; from the store's own files."""
    run = run_folder.read_run_folder(points(home)[0])
    for name, key in run.policies.items():
        found = lines(run.folder)[name, "diversity"]
        rows = [
            row
            for manifest in (home / "store" / "completions").glob("*/manifest.json")
            if (about := json.loads(manifest.read_text())["asked"])["policy"] == key and about["sampling"]["temperature"] == 1
            for file in manifest.parent.glob("*.parquet")
            for row in pq.read_table(file).to_pylist()
        ]
        of_prompt: dict[str, dict[int, Any]] = {}
        for row in rows:
            of_prompt.setdefault(row["prompt_id"], {})[row["sample"]] = row
        several = [list(samples.values()) for samples in of_prompt.values() if len(samples) > 1]
        assert [len(samples) for samples in several] == [16] * 8
        lengths = [np.mean([len(row["tokens"]) for row in samples]) for samples in several]
        words = [[row["text"] for row in samples] for samples in several]
        bleus = [diversity.self_bleu(texts) for texts in words]
        for measure, values in (("length", lengths), ("self_bleu_3", bleus)):
            assert math.isclose(found["numbers"][measure]["value"], np.mean(values))
            assert math.isclose(found["numbers"][measure]["stderr"], float(stats.sem(values)))
        assert found["count"] == 8


def graded(*values: int) -> list[dict[str, Any]]:
    return [{"filter": "none", "acc": float(value)} for value in values]


def test_the_leaderboards_mmlu_is_the_plain_mean_of_subtasks_by_hand() -> None:
    """3 of 4 and 1 of 2: the plain mean is (0.75 + 0.5) / 2 = 0.625, the harness's by size 4 / 6."""
    samples = {"mmlu_b": graded(1, 0), "mmlu_a": graded(1, 1, 0, 1)}
    results = {
        "mmlu": {"acc,none": 4 / 6, "acc_stderr,none": 0.2},
        "mmlu_a": {"acc,none": 0.75, "acc_stderr,none": 0.25},  # the root of 0.75 * 0.25 / 3
        "mmlu_b": {"acc,none": 0.5, "acc_stderr,none": 0.5},
    }
    found = mean_of_subtasks(results, samples)
    assert found == {
        "value": 0.625,
        "stderr": pytest.approx(math.sqrt(0.25**2 + 0.5**2) / 2),
        "values": [1, 1, 0, 1, 1, 0],
        "sizes": [4, 2],
    }
    base = {**found, "value": 0.5, "values": [1, 0, 0, 1, 0, 1]}
    mine, theirs = ({"numbers": {OF_SUBTASKS: one}} for one in (found, base))
    apart = _number(mine, theirs, OF_SUBTASKS)  # 0, 1, 0, 0 and 1, -1: the means are 0.25 and 0
    assert apart["gain"] == pytest.approx(0.125)
    assert apart["gain_stderr"] == pytest.approx(math.hypot(0.25, 1) / 2)
    alone = mean_of_subtasks({**results, "mmlu_b": {"acc,none": 1.0, "acc_stderr,none": "N/A"}}, samples)
    assert (alone["value"], alone["stderr"]) == (0.875, None)


def test_the_leaderboard_measures_a_group_by_its_subtasks(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaderboard of one group, whose members have 40 and 10 documents."""
    few = (home / "tasks" / "skills_choice.jsonl").read_text().splitlines()[:10]
    tasks = Path(shutil.copytree(home / "tasks", tmp_path / "tasks"))
    (tasks / "few.jsonl").write_text("\n".join(few) + "\n")
    hard = json.loads((tasks / "hard.yaml").read_text())
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tasks / "few.jsonl")}}}
    (tasks / "hard.yaml").write_text(json.dumps(hard | data))
    group = {"group": "skills", "task": ["skills_choice", "skills_hard"]}
    means = [{"metric": "acc", "weight_by_size": True}]
    (tasks / "skills.yaml").write_text(json.dumps(group | {"aggregate_metric_list": means}))
    monkeypatch.setattr(harness_tasks, "COLUMNS", [Column("MMLU", "skills", 5, OF_SUBTASKS)])
    run = Path(shutil.copytree(points(home)[0], tmp_path / "run"))
    evaluate(run, EvaluationRequest(suites=["leaderboard"], include=tasks), "base", quiet())
    numbers = lines(run)["base", "skills"]["numbers"]
    evaluate(
        run,
        EvaluationRequest(tasks=["skills_choice", "skills_hard"], fewshot=5, include=tasks),
        "base",
        quiet(),
        changes=IN_PLAIN_TEXT,
    )
    parts = [lines(run)["base", name]["numbers"]["acc,none"] for name in ("skills_choice", "skills_hard")]
    assert parts[0]["value"] != parts[1]["value"]
    assert numbers[OF_SUBTASKS]["value"] == pytest.approx((parts[0]["value"] + parts[1]["value"]) / 2)
    assert numbers[OF_SUBTASKS]["stderr"] == pytest.approx(math.hypot(parts[0]["stderr"], parts[1]["stderr"]) / 2)
    assert numbers["acc,none"]["value"] == pytest.approx((40 * parts[0]["value"] + 10 * parts[1]["value"]) / 50)


def test_only_the_leaderboards_group_has_another_key() -> None:
    plain = Task("mmlu", 5, "i", False).spec("p", None, {})
    assert Task("mmlu", 5, "i", False, "leaderboard").spec("p", None, {}) == plain
    assert Task("mmlu", 5, "i", False, "leaderboard", of_subtasks=True).spec("p", None, {}) == {**plain, "mean": "of subtasks"}


def test_what_an_earlier_version_has_measured_by_size_is_shown_and_said(run: Path) -> None:
    made = leaderboard(run)
    new = table_1(run, made)
    assert "MMLU 5-shot acc mean of subtasks" in new and "earlier version" not in new
    for line in made:
        if line["task"] == "mmlu" and line["name"] == "base":
            line["numbers"] = {"acc,none": line["numbers"][OF_SUBTASKS]}
    old = table_1(run, made)
    assert old.split("The paper's rows")[0].strip().endswith("for base, measured by an earlier version: evaluate again.")
    assert cells(old.split("| difference")[0], "base") == cells(new.split("| difference")[0], "base")


def test_self_bleu_and_distinct_against_nltk_and_by_hand() -> None:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from sacrebleu.metrics.bleu import BLEU

    texts = ["the cat sat on the mat today", "a cat sat on the mat", "the cat sat on a red mat today", "the dog sat on the mat"]
    cut = [text.split() for text in texts]
    theirs = [100 * sentence_bleu(cut[:i] + cut[i + 1 :], cut[i], weights=(1 / 3,) * 3) for i in range(4)]  # type: ignore[misc]
    assert math.isclose(diversity.self_bleu(texts), float(np.mean(theirs)))
    assert "|smooth:exp|" in diversity._signature()
    apart = ["the cat sat on the mat", "a dog lay on my bed", "the cat ran to a dog", "my bed is on the mat"]
    cut = [text.split() for text in apart]
    method = SmoothingFunction().method1  # as RSPO's code has it: sacrebleu's floor, of a tenth
    theirs = [sentence_bleu(cut[:i] + cut[i + 1 :], cut[i], (1 / 3,) * 3, smoothing_function=method) for i in range(4)]  # type: ignore[misc]
    floor = BLEU(max_ngram_order=3, effective_order=True, tokenize="13a", smooth_method="floor", smooth_value=0.1)
    ours = [floor.sentence_score(text, [*apart[:i], *apart[i + 1 :]]).score for i, text in enumerate(apart)]
    np.testing.assert_allclose(ours, 100 * np.array(theirs))
    assert diversity.self_bleu(apart) > np.mean(ours) + 1  # another smoothing, another number
    assert diversity.self_bleu(["abc", "abc", "abc"]) == 100
    assert diversity.self_bleu(["", ""]) == 100
    assert diversity.self_bleu(["one two three", "four five six"]) < 40
    assert diversity.distinct(["a b a", "a b"], 1) == 2 / 5
    assert diversity.distinct(["a b a", "a b"], 2) == 2 / 3
    assert diversity.distinct(["(a) b."], 1) == 1  # 13a cuts off punctuation: ( a ) b .
    assert diversity.distinct(["a", ""], 2) is None


def test_a_slip_in_a_suite_is_no_missing_package(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(find_recipe("quickstart"), ["evaluation.benchmarks=[healht]"])
    game = SimpleNamespace(recipe=recipe, resolved=SimpleNamespace(recipe_dir=home), store=SimpleNamespace(root=home))
    monkeypatch.setattr(suites, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"evaluation.benchmarks 'healht': no such suite; did you mean health\?"):
        suites.check_benchmarks(game)  # type: ignore[arg-type]


def test_what_nobody_has_asked_for_is_announced_with_its_size() -> None:
    """Policies that games of a sweep share count once."""
    recipe = load_recipe(find_recipe("quickstart"))
    games: Any = [
        SimpleNamespace(recipe=recipe, policies={"base": "b", "iterate 0": key}, wanted=["base", "iterate 0"]) for key in "xy"
    ]
    what, size = announced(EvaluationRequest(["health", "diversity"], limit=5), games, of_recipe=False)
    assert what.startswith("measuring health, diversity of 3 policies, as neither --suite nor --task is given; there are ")
    assert all(name in what for name in suites.SUITES)
    assert "16 answers to each of 5 held-out prompts, 240 answers of up to 20 tokens in all, less those that are stored" in size
    (line,) = announced(EvaluationRequest(["alpaca"], ["gsm8k"]), games[:1], of_recipe=True)
    assert line.startswith("measuring alpaca, gsm8k of 2 policies, as the recipe's evaluation.benchmarks says; --suite or ")


def test_an_evaluation_that_nobody_specified_begins_with_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(points(home)[0], tmp_path / "run", symlinks=False)
    said = io.StringIO()
    display = Display(Console(file=said, width=300))
    before: list[str] = []
    monkeypatch.setattr(suites, "measure_policies", lambda *_: before.append(said.getvalue()))
    evaluate(tmp_path / "run", EvaluationRequest(), "all", display)
    evaluate(tmp_path / "run", EvaluationRequest(["diversity"]), "all", display)
    assert "measuring diversity of 2 policies, as the recipe's evaluation.benchmarks says" in before[0]
    assert before[1].count("measuring ") == 1


def test_gc_frees_results_of_policies_that_no_run_has(measured: Path) -> None:
    first, second = points(measured)
    own = run_folder.read_run_folder(second).policies["iterate 0"]
    unused = gc.unused(measured / "store", gc.used_by([first]))
    assert [item.path.name for item in unused if item.kind == "results"] == [own]
    assert not [item for item in gc.unused(measured / "store", gc.used_by([first, second])) if item.kind == "results"]


@pytest.mark.parametrize(
    ("question", "iterate", "line"),
    [
        ({"suites": ["leaderbord"]}, "all", "--suite 'leaderbord': unknown; known, nearest first: leaderboard, "),
        ({}, "3", "--iterate '3': '"),
        ({"include": "nowhere"}, "base", "--include-path: no folder 'nowhere'"),
        ({"include": "."}, "base", "--include-path: '.' has no task: no YAML file there"),
        ({"tasks": ["torn"]}, "base", "--task 'torn': does not load (FileNotFoundError: "),
        (
            {"tasks": ["diversty"]},
            "base",
            "--task 'diversty': lm-evaluation-harness has no such task, and ' ... did you mean --suite diversity",
        ),
        (
            {"tasks": [], "suites": ["leaderboard"]},
            "base",
            "--suite leaderboard 'arc_challenge': cannot reach the Hugging Face hub, ",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: dict[str, Any], iterate: str, line: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(home / "tasks", tmp_path / "tasks")
    torn = json.loads((home / "tasks" / "skills_answer.yaml").read_text()) | {"task": "torn"}
    torn["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "gone.jsonl")}}
    (tmp_path / "tasks" / "torn.yaml").write_text(json.dumps(torn))
    (run := tmp_path / "run").mkdir()
    for name in ("run.json", "recipe.yaml"):
        shutil.copy(points(home)[0] / name, run / name)
    before = stored(home)
    full: dict[str, Any] = {"tasks": NAMES, "include": tmp_path / "tasks"} | question
    full["include"] = Path(full["include"])
    with pytest.raises(InputError) as error:
        evaluate(run, EvaluationRequest(**full), iterate, quiet())
    begins, _, then = line.partition(" ... ")
    assert str(error.value).startswith(begins) and then in str(error.value)
    assert "\n" not in str(error.value)
    assert stored(home) == before
    assert not (run / "benchmarks.jsonl").exists()


def test_without_the_extra_one_line_says_what_to_install(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(points(home)[0], tmp_path / "run", symlinks=False)
    done = without(["lm_eval"], ["evaluate", str(tmp_path / "run"), "--suite", "leaderboard"])
    line = "--suite leaderboard: lm-evaluation-harness is not installed; in your clone: `pip install -e '.[eval]'`\n"
    assert (done.returncode, done.stderr) == (2, f"error: {line}")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(
        InputError, match=r"--suite diversity: sacrebleu is not installed; in your clone: `pip install -e '\.\[eval\]'`"
    ):
        evaluate(tmp_path / "run", EvaluationRequest(["diversity"]), "all", quiet())
    recipe = run_folder.read_run_folder(tmp_path / "run").recipe  # refused before a game is played
    for name, missing in (("diversity", "sacrebleu"), ("gsm8k", "lm-evaluation-harness")):
        asked_for = recipe.evaluation.model_copy(update={"benchmarks": [name]})
        with pytest.raises(InputError, match=f"evaluation.benchmarks: {missing} is not installed"):
            play(recipe.model_copy(update={"evaluation": asked_for}), tmp_path, quiet())


def without(modules: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A command where these modules are not installed."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({modules})); from lowmem_spin.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", hidden, *arguments], capture_output=True, text=True, check=False)


def leaderboard(run: Path, limit: int | None = None, own: bool = False, left_out: str = "") -> list[dict[str, Any]]:
    """Made-up results of the six tasks, as `evaluate` would write them."""
    made = []
    for place, (name, key) in enumerate(run_folder.read_run_folder(run).policies.items()):
        for column in COLUMNS:
            index = COLUMNS.index(column)
            number = {"value": 0.3 + 0.05 * index + 0.02 * place, "stderr": 0.004 + 0.001 * index}
            gain = {"gain": 0.02, "gain_stderr": 0.005 * (1 + index)} if place else {}
            about = {"name": name, "policy": key, "suite": "leaderboard", "task": column.task, "limit": limit, "own": own}
            about |= {"fewshot": column.fewshot, "count": 1000, "recorded": {"versions": {"lm-eval": "0.4.13"}}}
            if column.heading != left_out:
                made.append({**about, "numbers": {column.metric: {**number, **gain}}})
    return made


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(points(home)[0], tmp_path / "run", symlinks=False))


def report(run: Path, made: list[dict[str, Any]]) -> str:
    (run / "benchmarks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    write_all(read_results(run))
    check_offline(Page(run / "report.html"))
    return (run / "report.md").read_text()


def test_table_1_is_laid_out_as_the_papers(run: Path) -> None:
    text = report(run, leaderboard(run))
    assert "| policy | ARC | TruthfulQA | Winogrande | GSM8K | HellaSwag | MMLU | Average |" in text
    table = text[text.index("Open LLM Leaderboard v1") :]
    values, errors = np.arange(6) * 5 + 32.0, np.arange(6) * 0.1 + 0.4
    mine = [f"{v:.2f} ±{1.96 * e:.2f}" for v, e in zip(values, errors, strict=True)]
    average = f"{values.mean():.2f} ±{1.96 * np.sqrt((errors**2).sum()) / 6:.2f}"
    between, against = table.split("| difference", 1)
    assert cells(between, "iterate 0") == ["iterate 0", *mine, average]
    # Table 1 of arXiv 2404.04291, averages as printed there.
    assert cells(between, "paper: history 2, iterate 2")[1:] == ["50.09", "33.86", "66.22", "21.23", "73.65", "40.54", "47.60"]
    assert cells(between, "paper: history 1, iterate 0")[1:] == ["49.32", "33.15", "65.98", "18.20", "72.10", "41.03", "46.63"]
    apart = cells(against, "iterate 0")[1:]
    assert apart[0] == f"+2.00 ±{1.96 * 0.5:.2f}"
    assert ["(noise)" in cell for cell in apart] == [1.96 * 0.5 * (1 + i) > 2 for i in range(6)] + [False]
    assert apart[6] == f"+2.00 ±{1.96 * np.sqrt(((0.5 * np.arange(1, 7)) ** 2).sum()) / 6:.2f}"
    said = "iterate 0 is above the base on ARC, TruthfulQA, Average; within noise of the base on Winogrande, GSM8K"
    assert said in Page(run / "report.html").words
    assert (run / "report_benchmark_0.png").is_file()


def table_1(run: Path, made: list[dict[str, Any]]) -> str:
    (run / "benchmarks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    results = read_run_results(run)
    (block,) = blocks(results.benchmarks)
    return "\n".join(block.markdown())


def test_the_paper_is_beside_what_is_the_same_and_nothing_else(run: Path) -> None:
    assert "| paper" in table_1(run, leaderboard(run))
    limited = table_1(run, leaderboard(run, limit=100))
    assert "| paper" not in limited
    assert "the first 100 documents of each task" in limited
    mine = table_1(run, leaderboard(run, own=True))
    assert "| paper" not in mine
    assert "Of your own YAML" in mine
    table = table_1(run, leaderboard(run, left_out="GSM8K")).split("| difference")[0]
    assert cells(table, "paper: history 2, iterate 0")[1:] == ["48.98", "33.00", "65.35", "", "72.20", "41.01", ""]
    assert cells(table, "iterate 0")[4] == cells(table, "iterate 0")[7] == ""  # no average of five


def test_a_report_needs_neither_torch_nor_the_harness(run: Path) -> None:
    (run / "benchmarks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in leaderboard(run)))
    hidden = ["torch", "transformers", "lm_eval", "sacrebleu"]
    done = without(hidden, ["report", str(run)])
    assert done.returncode == 0, done.stderr
    assert "paper: history 1, iterate 2" in Page(run / "report.html").words
    with (run / "benchmarks.jsonl").open("a") as file:
        file.write('{"name": "base"')
    done = without(hidden, ["report", str(run)])
    assert done.returncode == 2
    assert "benchmarks.jsonl: line 13 is not a whole record of a benchmark" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def seeds(home: Path, tmp_path: Path) -> Iterator[Path]:
    """A sweep of one configuration over three seeds, with made-up leaderboard results."""
    listed = []
    for seed, shift in enumerate((0.0, 0.01, 0.05)):
        name = f"seed-{seed}"
        folder = Path(shutil.copytree(points(home)[0], tmp_path / "points" / name, symlinks=False))
        made = leaderboard(folder)
        for line in made:
            if line["name"] == "iterate 0":
                line["policy"] = digest(seed)
                for number in line["numbers"].values():
                    number["value"] += shift
                    number["gain"] += shift
        (folder / "benchmarks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
        for file in ("run.json", "metrics.jsonl"):
            key = run_folder.read_run_folder(points(home)[0]).policies["iterate 0"]
            (folder / file).write_text(unchecked((folder / file).read_text().replace(key, digest(seed))))
        listed.append({"name": name, "values": {"seed": seed}, "dir": f"points/{name}", "status": "finished", "error": None})
    (tmp_path / "sweep.json").write_text(json.dumps({"recipe": "q", "axes": {}, "seeds": [0, 1, 2], "points": listed}))
    yield tmp_path


def test_a_sweep_has_intervals_over_its_seeds(seeds: Path) -> None:
    write_all(read_results(seeds))
    check_offline(Page(seeds / "report.html"))
    text = (seeds / "report.md").read_text()
    table, against = text[text.index("Open LLM Leaderboard v1") :].split("| difference", 1)
    arcs = np.array([32.0, 33.0, 37.0])
    half = stats.t.ppf(0.975, 2) * stats.sem(arcs)
    assert cells(table, "base")[1] == f"30.00 ±{1.96 * 0.4:.2f}"  # one policy: its own error
    assert cells(table, "the recipe")[1] == f"{arcs.mean():.2f} ±{half:.2f}"
    assert cells(against, "the recipe")[1] == f"+4.00 ±{half:.2f} (noise)"
    assert cells(table, "the recipe")[7].endswith(f" ±{half:.2f}")  # all tasks of a seed move together, and so their average


@pytest.mark.parametrize(
    ("changes", "tasks", "line"),
    [
        ({"gen_kwargs": "greedy"}, 1, "--gen-kwargs 'greedy': give KEY=VALUE,..., for instance do_sample=true,temperature=0.7"),
        ({"gen_kwargs": "temprature=1"}, 1, "--gen-kwargs: unknown 'temprature'; did you mean temperature?"),
        ({"gen_kwargs": "temperature=0.7"}, 1, "--gen-kwargs: temperature has no effect unless do_sample is true: "),
        ({"gen_kwargs": "do_sample=true,top_p=7"}, 1, "--gen-kwargs top_p=7: write a number of at most 1"),
        ({"apply_chat_template": False, "fewshot_as_multiturn": True}, 1, "--fewshot-as-multiturn: without the chat template"),
        ({"apply_chat_template": False}, 0, "--no-apply-chat-template: of which task? it is for those named by --task"),
        ({"log_samples": True}, 0, "--log-samples: of which task?"),
    ],
)
def test_how_tasks_cannot_be_asked_is_one_line(changes: dict[str, Any], tasks: int, line: str) -> None:
    with pytest.raises(InputError) as error:
        HarnessChanges(**changes).of(Harness(), bool(tasks), bool(tasks))
    assert str(error.value).startswith(line)


def test_a_command_changes_only_what_it_names_of_the_recipes_way() -> None:
    own = Harness(fewshot_as_multiturn=False, gen_kwargs=GenKwargs(max_gen_toks=9), log_samples=True)
    assert HarnessChanges().of(own, tasks=False, harness=False) == own
    sampled = HarnessChanges(gen_kwargs="do_sample=true,temperature=0.5,until=['a,b','c']").of(own, tasks=True, harness=True)
    assert sampled.gen_kwargs.given == {"do_sample": True, "temperature": 0.5, "until": ["a,b", "c"]}
    assert (sampled.multiturn, sampled.log_samples) == (False, True)
    assert not HarnessChanges(apply_chat_template=False).of(own, tasks=True, harness=True).multiturn
