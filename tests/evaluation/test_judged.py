"""MT-Bench, AlpacaEval and the arena of a played game, judged by a real HTTP server on this machine."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from peft import PeftModel
from rich.console import Console
from scipy import optimize, stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.commands import SMALL, assert_one_line, call
from helpers.games import unchecked
from helpers.page import Page, check_offline
from helpers.server import Body, Handler, Server, reasoner, send, serving, shown, wait
from lowmem_spin.algorithm.game import sampling_params
from lowmem_spin.algorithm.stages import Inputs
from lowmem_spin.cli.evaluate import evaluate
from lowmem_spin.cli.play import run as play
from lowmem_spin.cli.play import sweep as play_sweep
from lowmem_spin.cli.results import show_arena
from lowmem_spin.common.checked import read_checked
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config import grid
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.engines.oracles.endpoint import Endpoint
from lowmem_spin.engines.oracles.judge import LLMJudge
from lowmem_spin.engines.pool import EnginePool, GameEngines
from lowmem_spin.evaluation import bradley_terry
from lowmem_spin.evaluation.arena import arena as play_arena
from lowmem_spin.evaluation.judged import alpaca, mtbench, mtbench_files
from lowmem_spin.evaluation.judged.alpaca_suite import answer_sampling, in_words
from lowmem_spin.evaluation.judged.shared import Judged, judge_from_options, with_recipe_defaults
from lowmem_spin.evaluation.suites import EvaluationRequest, benchmarks_of, measure_policies
from lowmem_spin.evaluation.target import EvaluationTarget
from lowmem_spin.report.benchmarks import blocks
from lowmem_spin.report.load import read_results, read_run_results
from lowmem_spin.report.page import write_all
from lowmem_spin.runner import gc, run_folder
from lowmem_spin.runner.open import SharedResources
from lowmem_spin.runner.sweep import Entry, SweepState
from lowmem_spin.store.memo import Tables

QUESTIONS = [
    (81, "writing", ["upper: abc", "reverse: abc {answer}"]),
    (101, "reasoning", ["reverse: word", "upper: word"]),
    (111, "math", ["first: stone", "last: stone"]),
    (121, "stem", ["double: ab", "lower: ABC"]),
    (131, "humanities", ["reverse: lamp", "upper: lamp"]),
]
PLACES = {
    "single-v1": "Q {question} A {answer}",
    "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
    "single-v1-multi-turn": "Q {question_1} A {answer_1} Q {question_2} A {answer_2}",
    "single-math-v1-multi-turn": "R {ref_answer_1} {ref_answer_2} Q {question_1} A {answer_1} Q {question_2} A {answer_2}",
}
POLICIES = ["base", "iterate 0"]


def write_questions(folder: Path) -> None:
    """A folder as FastChat has it, with questions and prompts of our own."""
    (folder / "reference_answer").mkdir(parents=True)
    questions = [{"question_id": number, "category": kind, "turns": turns} for number, kind, turns in QUESTIONS]
    references = [
        {"question_id": number, "choices": [{"index": 0, "turns": [f"first of {number}", f"second of {number}"]}]}
        for number, kind, _ in QUESTIONS
        if kind in ("reasoning", "math")
    ]
    prompts = [{"name": name, "system_prompt": f"system of {name}", "prompt_template": text} for name, text in PLACES.items()]
    for name, lines in (
        (mtbench_files.QUESTIONS, questions),
        (mtbench_files.REFERENCES, references),
        (mtbench_files.PROMPTS, prompts),
    ):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def grade(body: Body, number: int) -> str:
    """A score that only the text decides."""
    shown = "\n".join(message["content"] for message in body["messages"])
    return f"As [1] says, fair. Rating: [[{1 + hashlib.sha256(shown.encode()).digest()[0] % 10}]]"


def longer(body: Body, number: int) -> str:
    first, second = map(len, shown(body))
    return f"[[{'A' if first > second else 'B' if second > first else 'C'}]]"


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serving(grade)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A played game of two policies whose recipe asked for MT-Bench at its end, and the questions."""
    folder = tmp_path_factory.mktemp("home")
    write_questions(folder / "mt")
    values = {
        **SMALL,
        "game.iterations": 1,
        "evaluation.health_prompts": 24,
        "game.pairs": 48,
        "model.quantization": "none",
        "generation.max_new_tokens": 12,
    }
    values |= {
        "output.store": folder / "store",
        "output.dir": folder / "game",
    }
    for server in serving(grade):
        asked = f"{{base_url: '{server.url}', model: strict/one}}"
        values |= {"evaluation.benchmarks": "[mtbench]", "evaluation.judge": asked}
        recipe = find_recipe("quickstart")
        values["evaluation.mtbench"] = os.path.relpath(folder / "mt", recipe.parent)  # beside the recipe, as users write it
        play(load_recipe(recipe, [f"{name}={value}" for name, value in values.items()]), recipe.parent, quiet())
        assert set(server.requests.values()) == {1}
        (folder / "requests").write_text(str(len(server.asked)))
    return folder


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """The home, to do with as one likes."""
    folder = Path(shutil.copytree(home, tmp_path / "home", symlinks=True))
    for path in (folder / "game" / "recipe.yaml", folder / "game" / "run.json"):
        path.write_text(unchecked(path.read_text().replace(str(home), str(folder))))
    for link in (folder / "game" / "iterates").iterdir():
        target = folder / "store" / "adapters" / link.resolve().name
        link.unlink()
        link.symlink_to(target)
    return folder


def quiet() -> Display:
    return Display(Console(quiet=True))


def measure(home: Path, server: Server, name: str = "m", **changes: Any) -> Display:
    """`evaluate` without its tables and pages."""
    display = quiet()
    known = {"judge": JudgeOracle(base_url=server.url, model=name), "mtbench": home / "mt", **changes}
    suites = [known.pop("suite", "mtbench")]
    asked = EvaluationRequest(suites, limit=known.pop("limit", None), judged=Judged(**known))
    measure_policies(
        [EvaluationTarget.from_run(run_folder.read_run_folder(home / "game"), "all", SharedResources(), display)],
        asked,
        display,
    )
    return display


def judgements(home: Path, name: str = "strict_one") -> Any:  # a DataFrame, whose stubs know few of its ways
    return pd.read_json(home / "game" / "mtbench" / "model_judgment" / f"{name}_single.jsonl", lines=True)


def benchmarks(home: Path, suite: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in (home / "game" / "benchmarks.jsonl").read_text().splitlines()]
    return {line["name"]: line for line in lines if line["suite"] == suite}


def test_scores_are_those_that_fastchat_makes_of_its_files(home: Path) -> None:
    """As its show_result does: means of the judgement file by model, turn and category."""
    lines = judgements(home)
    assert len(lines) == len(POLICIES) * len(QUESTIONS) * 2
    lines["category"] = lines["question_id"].map({number: kind for number, kind, _ in QUESTIONS})
    for name, line in benchmarks(home, "mtbench").items():
        mine, numbers = lines[lines["model"] == name.replace(" ", "_")], line["numbers"]
        assert numbers["score"]["value"] == pytest.approx(mine["score"].mean())
        for turn, mean in mine.groupby("turn")["score"].mean().items():
            assert numbers[f"turn {turn}"]["value"] == pytest.approx(mean)
        for category, mean in mine.groupby("category")["score"].mean().items():
            assert numbers[str(category)]["value"] == pytest.approx(mean)
        of_question = mine.groupby("question_id", sort=False)["score"].mean()
        assert numbers["score"]["stderr"] == pytest.approx(stats.sem(of_question))
        assert numbers["failed"]["value"] == 0
    line = benchmarks(home, "mtbench")["base"]
    assert line["task"] == "MT-Bench judged by strict/one" and line["recorded"]["versions"] == {"judge": "strict/one"}
    both = lines.pivot_table(index="question_id", columns="model", values="score")
    apart = both["iterate_0"] - both["base"]
    gain = benchmarks(home, "mtbench")["iterate 0"]["numbers"]["score"]
    assert (gain["gain"], gain["gain_stderr"]) == (pytest.approx(apart.mean()), pytest.approx(stats.sem(apart)))


def test_the_judge_sees_what_fastchat_shows(home: Path) -> None:
    """The prompt by category and turn, its places filled; a question that looks like a place stays as it is."""
    answers = {
        name: {line["question_id"]: line["choices"][0]["turns"] for line in map(json.loads, path.read_text().splitlines())}
        for path in (home / "game" / "mtbench" / "model_answer").iterdir()
        for name in [path.stem]
    }
    assert answers.keys() == {"base", "iterate_0"}
    for line in judgements(home).to_dict("records"):
        number, turn = line["question_id"], line["turn"]
        _, kind, turns = next(question for question in QUESTIONS if question[0] == number)
        one, two = answers[line["model"]][number]
        if turn == 1:
            referred = f" R first of {number}" if kind in ("reasoning", "math") else ""
            expected = f"Q {turns[0]}{referred} A {one}"
        else:
            referred = f"R first of {number} second of {number} " if kind in ("reasoning", "math") else ""
            expected = f"{referred}Q {turns[0]} A {one} Q {turns[1]} A {two}"
        assert line["user_prompt"] == expected
        prompt = ("single-math-v1" if referred else "single-v1") + ("-multi-turn" if turn == 2 else "")
        assert line["judge"] == ["strict/one", prompt]
        told = f"system of {prompt}\n{expected}"
        assert line["score"] == 1 + hashlib.sha256(told.encode()).digest()[0] % 10


def test_answers_are_those_of_transformers_by_itself(home: Path, quickstart: Path) -> None:
    """The greedy categories, both turns, the second with the first in its conversation; base and iterate through PEFT."""
    tokenizer = AutoTokenizer.from_pretrained(quickstart / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(quickstart / "base", dtype="float32")
    peft = PeftModel.from_pretrained(model, str(home / "game" / "iterates" / "0"))
    ends = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")})

    def answer(conversation: list[dict[str, str]]) -> str:
        prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = peft.generate(**prompt, do_sample=False, max_new_tokens=200, eos_token_id=ends, pad_token_id=0)
        return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)

    for name in POLICIES:
        path = home / "game" / "mtbench" / "model_answer" / f"{name.replace(' ', '_')}.jsonl"
        stored = {line["question_id"]: line["choices"][0]["turns"] for line in map(json.loads, path.read_text().splitlines())}
        for number, kind, turns in QUESTIONS:
            if kind in ("reasoning", "math"):
                with peft.disable_adapter() if name == "base" else nullcontext():
                    first = answer([{"role": "user", "content": turns[0]}])
                    said = [{"role": "user", "content": turns[0]}, {"role": "assistant", "content": first}]
                    second = answer([*said, {"role": "user", "content": turns[1]}])
                assert stored[number] == [first, second]
    sampled = {
        json.loads(path.read_text())["asked"]["sampling"]["temperature"]: path.parent
        for path in (home / "store" / "completions").glob("*/manifest.json")
        if json.loads(path.read_text())["asked"]["sampling"]["max_new_tokens"] > 12
    }
    assert sampled.keys() == {0, 0.1, 0.7}  # FastChat's of these categories
    rows = sum(pq.read_metadata(file).num_rows for file in sampled[0.7].glob("*.parquet"))
    assert rows == 2  # writing's two turns


def test_nothing_is_asked_twice(copy: Path, server: Server) -> None:
    told = int((copy / "requests").read_text())
    assert told <= len(POLICIES) * len(QUESTIONS) * 2  # two policies' equal answers are one question
    display = measure(copy, server, "strict/one")
    assert not server.asked and not {"generate", "judge"} & display.seconds.keys()
    shutil.rmtree(copy / "store" / "results")
    display = measure(copy, server, "strict/one")  # from the replies on disk
    assert not server.asked and "generate" not in display.seconds
    before = judgements(copy)
    shutil.rmtree(copy / "store" / "judge")
    measure(copy, server, "strict/one")  # the judgements are with the results, too
    assert not server.asked and judgements(copy).equals(before)
    display = measure(copy, server, "another")
    assert len(server.asked) == told and "generate" not in display.seconds
    assert {line["task"] for line in map(json.loads, (copy / "game" / "benchmarks.jsonl").read_text().splitlines())} == {
        "MT-Bench judged by strict/one",
        "MT-Bench judged by another",
    }
    again = gc.unused(copy / "store", gc.used_by([copy / "game"]))
    assert not [item for item in again if item.kind in ("completions", "results")]


def test_a_judge_that_misbehaves_judges_every_answer_once(copy: Path, server: Server) -> None:
    """500s, rate limits, cut and garbled JSON, a reply that comes too late, no score, and scores that are none."""
    faults = [
        send(500, "no"),
        send(429, "slow down", Retry_After="0"),
        send(200, json.dumps({"choices": [{"message": {"content": "[[5]]"}}]}), cut=9),
        send(200, '{"choices": ['),
        send(200, '{"choices": []}'),
        lambda handler: time.sleep(2.5),
    ]
    garbage = ["I cannot say.", "[[eleven]]", "[[11]]", "[[0.5]]", "[[-3]]", ""]
    given: dict[str, str] = {}

    def behave(body: Body, number: int) -> Any:
        text = json.dumps(body["messages"])
        place = hashlib.sha256(text.encode()).digest()[1]
        if number <= 1 + place % 2:
            return faults[(place + number) % len(faults)]
        given[text] = garbage[place % 6] if place % 4 == 0 else f"no [[8]], rather [[{1 + place % 10}.5]]"
        return given[text]

    server.behave = behave
    bench = mtbench_files.read_mtbench(copy / "mt", None, "--mtbench")
    endpoint = Endpoint(server.url, "odd", copy / "cache", "--judge", timeout=2, retries=4)  # a busy machine answers in time
    grader = mtbench.Grader(endpoint)
    answers = {q.id: [_Text(f"one {q.id}"), _Text(f"two {q.id}")] for q in bench.questions}
    found = grader.grade(bench, answers, lambda count: None)  # type: ignore[arg-type]
    assert all(count == 1 for count in server.answered.values()) and len(server.answered) == len(given) == 10
    replies = {one.user_prompt: one.reply for one in found}
    assert set(replies.values()) <= set(given.values()) and None not in replies.values()
    numbers = mtbench.mtbench_numbers(bench, found)
    failed = sum(not re.search(r"\[\[8\]\]", reply) for reply in given.values())
    assert numbers["failed"]["value"] == failed / 10 and 0 < failed < 10
    assert numbers["score"]["value"] == 8 and "values" not in numbers["score"]
    again = mtbench.Grader(Endpoint("http://127.0.0.1:9/v1", "odd", copy / "cache", "--judge"))
    assert again.grade(bench, answers, lambda count: None) == found  # type: ignore[arg-type]


class _Text:
    def __init__(self, text: str) -> None:
        self.text = text


def test_what_got_no_reply_is_asked_again_and_nothing_else(copy: Path, server: Server) -> None:
    refused = "first of 111"

    def behave(body: Body, number: int) -> Any:
        text = body["messages"][-1]["content"]
        return send(400, "too long") if refused in text and "R first of 111 A" in text else grade(body, number)

    server.behave = behave
    measure(copy, server)
    lines, numbers = judgements(copy, "m"), benchmarks(copy, "mtbench")["base"]["numbers"]
    silent = lines[lines["judgment"] == "$ERROR$"]
    assert set(silent["question_id"]) == {111} and set(silent["turn"]) == {1} and (silent["score"] == -1).all()
    assert numbers["failed"]["value"] == 0.1
    assert numbers["score"]["value"] == pytest.approx(lines.query("model == 'base' and score > 0")["score"].mean())
    server.asked.clear()
    server.behave = grade
    measure(copy, server)
    assert 1 <= len(server.asked) <= 2 and all(refused in text for _, text in server.asked)
    assert benchmarks(copy, "mtbench")["base"]["numbers"]["failed"]["value"] == 0
    server.behave = lambda body, number: send(400, "no")
    with pytest.raises(
        InputError, match=r"--judge-base-url: \d of \d+ judgements have no reply, at most 20% may; the last: 400"
    ):
        measure(copy, server, "third")


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_judge_that_vllm_serves_is_asked_once_for_every_answer(copy: Path, tmp_path: Path) -> None:
    """A real server on this machine with the tiny base, which has no idea of scores: they are failures, not losses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "lowmem_spin.cli",
        "serve",
        copy / "game",
        "--port",
        str(port),
        "--",
        "--max-model-len",
        "512",
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait(process, port, tmp_path / "log")
        oracle = JudgeOracle(base_url=f"http://127.0.0.1:{port}/v1", model="base", max_tokens=16)
        for _ in range(2):
            played = EvaluationTarget.from_run(run_folder.read_run_folder(copy / "game"), "all", SharedResources(), quiet())
            measure_policies([played], EvaluationRequest(["mtbench"], judged=Judged(oracle, copy / "mt")), quiet())
    finally:
        process.terminate()
        process.wait(60)
    lines = judgements(copy, "base")
    assert len(lines) == len(POLICIES) * len(QUESTIONS) * 2 and "$ERROR$" not in set(lines["judgment"])
    assert (tmp_path / "log").read_text().count('"POST /v1/chat/completions') == len(set(lines["user_prompt"]))
    failed = benchmarks(copy, "mtbench")["base"]["numbers"]["failed"]["value"]
    assert failed == (lines.query("model == 'base'")["score"] < 0).mean()


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Rating: [[7]]", 7),
        ("[[7.5]]", 7.5),
        ("[[3]] or rather [[9]]", 3),  # FastChat takes the first
        ("[4]", 4),
        ("[4] and [[6]]", 6),
        ("[[12]]", -1),
        ("[[0]]", -1),
        ("7", -1),
        ("[[seven]]", -1),
        ("", -1),
    ],
)
def test_a_score_is_read_as_fastchat_reads_it(reply: str, score: float) -> None:
    assert mtbench.parse_score(reply) == score


def test_files_of_fastchat_are_fetched_once(copy: Path, tmp_path: Path) -> None:
    asked = []

    class Files(Handler):
        def do_GET(self) -> None:  # noqa: N802 its library's name
            asked.append(self.path)
            name = self.path.removeprefix("/data/").removeprefix("mt_bench/")
            send(200, (copy / "mt" / name).read_text())(self)

    server = Server()
    server.RequestHandlerClass = Files
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    for _ in range(2):
        mtbench_files.download(tmp_path / "mt", server.url.replace("/v1", "/data"))
    server.shutdown()
    thread.join()
    server.server_close()
    assert asked == [
        f"/data/{n}" for n in ("mt_bench/question.jsonl", "judge_prompts.jsonl", "mt_bench/reference_answer/gpt-4.jsonl")
    ]
    assert mtbench_files.read_mtbench(tmp_path / "mt", None, "") == mtbench_files.read_mtbench(copy / "mt", None, "")
    assert [one.id for one in mtbench_files.read_mtbench(tmp_path / "mt", 2, "").questions] == [
        number for number, *_ in QUESTIONS[:2]
    ]
    with pytest.raises(InputError, match=r"--download: http://127.0.0.1:9/mt_bench/question"):
        mtbench_files.download(tmp_path / "other", "http://127.0.0.1:9")


def instructions(folder: Path, count: int = 12) -> list[dict[str, str]]:
    rows = [
        {
            "instruction": f"upper: {'ab' * (1 + place % 5)}{place}",
            "output": "x" * (1 + place % 9),
            "generator": "other",
            "dataset": "d",
        }
        for place in range(count)
    ]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    return rows


def by_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outputs: Path, baseline: Path, metric: str) -> Any:
    """alpaca-eval on our files with an annotator of this machine: the longer output wins."""
    import alpaca_eval
    from alpaca_eval.decoders import test as decoders

    def annotate(prompts: list[str], **_: Any) -> dict[str, list[Any]]:
        lengths = [[len(text) for text in prompt.split("@@")] for prompt in prompts]
        verdicts = ["one" if a > b else "two" if b > a else "tie" for a, b in lengths]
        free = [0.0] * len(prompts)
        return {"completions": verdicts, "completions_all": verdicts, "price_per_example": free, "time_per_example": free}

    monkeypatch.setattr(decoders, "test_completions", annotate)
    folder = tmp_path / "annotators" / "longer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompt.txt").write_text("{output_1}@@{output_2}")
    matches = {1: "^one$", 2: "^two$", 1.5: "^tie$"}
    how = {"prompt_template": "longer/prompt.txt", "fn_completions": "test_completions", "completions_kwargs": {}}
    how |= {
        "fn_completion_parser": "regex_parser",
        "completion_parser_kwargs": {"outputs_to_match": matches},
        "is_shuffle": False,
    }
    (folder / "configs.yaml").write_text(yaml.safe_dump({"longer": how}))
    known: dict[str, Any] = {"output_path": None, "precomputed_leaderboard": None, "caching_path": None}
    asked: dict[str, Any] = {"fn_metric": f"get_{metric}", "sort_by": "win_rate", "is_return_instead_of_print": True}
    if metric != "winrate":
        asked["metric_kwargs"] = {"save_weights_dir": None}
    run: Any = alpaca_eval.evaluate
    rates, _ = run(str(outputs), str(baseline), annotators_config=str(folder), **known, **asked)
    return rates.iloc[0]


@pytest.mark.filterwarnings("ignore")
def test_alpaca_eval_runs_on_our_outputs_and_agrees(
    copy: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instructions(copy)
    server.behave = longer
    measure(copy, server, suite="alpaca", alpaca=copy / "alpaca.json", longest=12)
    assert set(server.requests.values()) == {1}
    asked = [json.loads(path.read_text())["asked"] for path in (copy / "store" / "completions").glob("*/manifest.json")]
    drawn = [one["policy"] for one in asked if (one["sampling"]["temperature"], one["sampling"]["max_new_tokens"]) == (0.7, 12)]
    assert len(drawn) == len(set(drawn)) == len(POLICIES)
    for name, line in benchmarks(copy, "alpaca").items():
        outputs = copy / "game" / "alpaca" / f"{name.replace(' ', '_')}.json"
        theirs = by_the_package(monkeypatch, tmp_path, outputs, copy / "alpaca.json", "winrate")
        numbers = line["numbers"]
        assert 100 * numbers["win rate"]["value"] == pytest.approx(theirs["win_rate"])
        assert 100 * numbers["win rate"]["stderr"] == pytest.approx(theirs["standard_error"])
        assert int(numbers["length"]["value"]) == theirs["avg_length"]
        assert 0 < theirs["win_rate"] < 100 and theirs["n_total"] == 12
        assert "length-controlled win rate" not in numbers and line["own"]
        assert line["recorded"]["sampling"] == "temperature 0.7"
        annotated = json.loads((copy / "game" / "alpaca" / f"annotations_{name.replace(' ', '_')}_by_m.json").read_text())
        assert {one["preference"] for one in annotated} <= {1.0, 1.5, 2.0}
    display = measure(copy, server, suite="alpaca", alpaca=copy / "alpaca.json", longest=12)
    assert not {"generate", "judge"} & display.seconds.keys()
    (block,) = blocks([one for one in read_run_results(copy / "game").benchmarks if one.suite == "alpaca"])
    assert "Answers are sampled at temperature 0.7." in block.note
    path = copy / "game" / "benchmarks.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["suite"] == "alpaca" and line["name"] == "base":  # as an earlier version has written it
            del line["recorded"]["sampling"]
        elif line["suite"] == "alpaca":
            line["recorded"]["sampling"] = "temperature 0.7, top_p 0.9"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (block,) = blocks([one for one in read_run_results(copy / "game").benchmarks if one.suite == "alpaca"])
    assert "Answers are sampled at temperature 0.7 or temperature 0.7, top_p 0.9." in block.note


def test_alpaca_samples_as_the_game_does_if_that_has_a_sampling_of_its_own() -> None:
    def asked(**generation: Any) -> dict[str, Any]:
        overrides = [f"generation.{name}={value}" for name, value in generation.items()]
        own = sampling_params(load_recipe(find_recipe("quickstart"), overrides), Inputs("b", "d", {"engine": "hf"}, {}))
        given = answer_sampling(own, 300)
        return {**given.spec("p")["sampling"], "words": in_words(given)}

    plain = {"temperature": 0.7, "top_p": 1.0, "top_k": None, "max_new_tokens": 300, "seed": 42, "words": "temperature 0.7"}
    assert asked() == plain  # as AlpacaEval's own entries, and as earlier versions
    words = {"words": "temperature 0.7, top_p 0.9"}
    assert asked(temperature=0.7, top_p=0.9) == {**plain, "top_p": 0.9, **words}  # as SPPO's and RSPO's rows
    assert asked(top_k=20) == {**plain, "temperature": 1.0, "top_k": 20, "words": "temperature 1, top_k 20"}
    assert asked(temperature=0, top_p=0.9)["words"] == "temperature 0"


@pytest.mark.filterwarnings("ignore")
def test_the_length_controlled_rate_is_the_packages(
    copy: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On what this machine's hub cache has in place of the official files."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        InputError, match=r"--alpaca: alpaca_eval_gpt4_baseline.json of tatsu-lab/alpaca_eval is neither here nor"
    ):
        measure(copy, server, suite="alpaca")
    repository = tmp_path / "hub" / "datasets--tatsu-lab--alpaca_eval"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    rows = instructions(copy)
    (snapshot / alpaca.OFFICIAL).write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"--alpaca: df_gamed.csv of tatsu-lab/alpaca_eval is neither here nor"):
        measure(copy, server, suite="alpaca")
    draw = np.random.default_rng(3)
    gamed = [
        {
            "model": m,
            "preference": draw.random(),
            "index": k,
            "std_delta_len": draw.normal(),
            "instruction_difficulty": draw.normal(),
        }
        for m in ("concise", "verbose")
        for k in range(len(rows))
    ]
    pd.DataFrame([{**row, "not_gamed_baseline": False} for row in gamed]).to_csv(snapshot / "df_gamed.csv", index=False)
    server.behave = longer
    measure(copy, server, suite="alpaca", longest=12)
    for name, line in benchmarks(copy, "alpaca").items():
        outputs = copy / "game" / "alpaca" / f"{name.replace(' ', '_')}.json"
        theirs = by_the_package(monkeypatch, tmp_path, outputs, snapshot / alpaca.OFFICIAL, "length_controlled_winrate")
        controlled = line["numbers"]["length-controlled win rate"]
        assert 100 * controlled["value"] == pytest.approx(theirs["length_controlled_winrate"])
        assert 100 * controlled["stderr"] == pytest.approx(theirs["lc_standard_error"])
        assert abs(theirs["length_controlled_winrate"] - theirs["win_rate"]) > 0.1
        assert line["task"] == "AlpacaEval 2 against other, judged by m" and not line["own"]
    measure(copy, server, suite="alpaca", longest=12, limit=5)  # length control is fitted to all of them
    lines = [json.loads(line) for line in (copy / "game" / "benchmarks.jsonl").read_text().splitlines()]
    some = [line for line in lines if line["limit"] == 5]
    assert len(some) == len(POLICIES) and all(line["own"] and line["task"].startswith("Win-rate") for line in some)
    assert not any("length-controlled win rate" in line["numbers"] for line in some)


def test_an_arena_of_a_judge_that_prefers_the_longer(copy: Path, server: Server) -> None:
    """No policy answers anew: the game has had held-out rows answered. The matrix is that of the answers' lengths."""
    server.behave = longer
    judged, display = Judged(JudgeOracle(base_url=server.url, model="m")), quiet()
    play_arena(copy / "game", None, 16, judged, display)
    assert "generate" not in display.seconds and set(server.requests.values()) == {1}
    found = json.loads((copy / "game" / "arena.json").read_text())
    run = run_folder.read_run_folder(copy / "game")
    texts = {}
    for manifest in (copy / "store" / "completions").glob("*/manifest.json"):
        asked = json.loads(manifest.read_text())["asked"]
        if asked["sampling"]["temperature"] == 1:
            table = [row for file in manifest.parent.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
            texts[asked["policy"]] = {row["prompt_id"]: row["text"] for row in table}
    base, iterate = texts[run.policies["base"]], texts[run.policies["iterate 0"]]
    held = EvaluationTarget.from_run(run, "all", SharedResources(), quiet()).answering().held
    names = [held.rows.ids[place] for place in held.health[:16]]
    wins = [np.sign(len(iterate[name]) - len(base[name])) / 2 + 0.5 for name in names]
    assert found["names"] == POLICIES and found["prompts"] == 16
    assert found["wins"][1][0] == pytest.approx(np.mean(wins)) == 1 - found["wins"][0][1]
    assert found["errors"][1][0] == pytest.approx(stats.sem(wins)) and 0 < np.mean(wins) < 1
    play_arena(copy / "game", None, 16, judged, display)
    assert set(server.requests.values()) == {1}
    server.behave = lambda body, number: "[[A]]"  # looks at places only
    play_arena(copy / "game", None, 16, Judged(JudgeOracle(base_url=server.url, model="blind")), quiet())
    found = json.loads((copy / "game" / "arena.json").read_text())
    assert found["wins"] == [[0.5, 0.5], [0.5, 0.5]] and found["strengths"] == [0, 0]


def test_strengths_are_the_likeliest() -> None:
    """Against scipy's minimiser of the same likelihood, an extra tie for each pair; and two policies in closed form."""
    draw = np.random.default_rng(5)
    for count in (2, 3, 6):
        wins = np.triu(draw.random((count, count)), 1)
        wins[0, -1] = 1.0  # never lost
        wins = wins + np.tril(1 - wins.T, -1)
        np.fill_diagonal(wins, 0.5)

        def unlikely(free: np.ndarray, wins: np.ndarray = wins) -> float:
            nats = np.concatenate([[0.0], free])
            beats = np.log1p(np.exp(nats[None, :] - nats[:, None]))
            return float(((40 * wins + 0.5) * beats)[~np.eye(len(wins), dtype=bool)].sum())

        best = optimize.minimize(unlikely, np.zeros(count - 1), tol=1e-12).x * 400 / np.log(10)
        assert bradley_terry.strengths(wins, 40) == pytest.approx([0, *best], abs=0.05)
    two = bradley_terry.strengths(np.array([[0.5, 0.25], [0.75, 0.5]]), 99)
    assert two[1] == pytest.approx(400 * np.log10((0.75 * 99 + 0.5) / (0.25 * 99 + 0.5)))


def test_the_arenas_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """300 arenas of three policies of known strengths: the share of intervals that hold them is near 95%."""
    truth = np.array([0.0, 60.0, -80.0])
    chances = 1 / (1 + 10 ** ((truth[None, :] - truth[:, None]) / 400))
    draw, held = np.random.default_rng(1), Counter[int]()
    for _ in range(100):
        upper = np.triu(draw.random((80, 3, 3)) < chances, 1).astype(float)
        preferences = upper + np.tril(1 - upper.transpose(0, 2, 1), -1) + 0.5 * np.eye(3)
        found = bradley_terry.arena_table(["a", "b", "c"], preferences, 0)
        for place in (1, 2):
            held[place] += bool(found.low[place] <= truth[place] <= found.high[place])
        assert found.wins == pytest.approx(preferences.mean(0))
        assert found.errors[0, 1] == pytest.approx(stats.sem(preferences[:, 0, 1]))
    assert 88 <= held[1] <= 100 and 88 <= held[2] <= 100


def test_the_recipes_own_oracle_can_judge_an_arena(copy: Path) -> None:
    path = copy / "game" / "recipe.yaml"
    content = yaml.safe_load(path.read_text())
    content["game"]["oracle"] = {"name": "function", "function": "exact_match"}
    path.write_text(yaml.safe_dump(content))
    (copy / "prompts.jsonl").write_text(
        json.dumps({"prompt": "upper: a\u2028bc"}, ensure_ascii=False)  # no end of a line in JSON
        + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "lower: ABC"}, {"role": "assistant", "content": "abc"}]})
        + "\n"
    )
    play_arena(copy / "game", copy / "prompts.jsonl", 64, Judged(), quiet())
    found = json.loads((copy / "game" / "arena.json").read_text())
    assert found["prompts"] == 2 and found["judge"] == "function" and found["from"] == "prompts.jsonl"


def test_the_report_names_the_judge_beside_every_score(copy: Path, server: Server) -> None:
    server.behave = longer
    play_arena(copy / "game", None, 8, Judged(JudgeOracle(base_url=server.url, model="<judge> & co")), quiet())
    paths = write_all(read_results(copy / "game"))
    page = paths[0].read_text()
    check_offline(Page(paths[0]))
    for title in ("MT-Bench judged by strict/one", "Strengths, judged by &lt;judge&gt; &amp; co", "Wins, judged by"):
        assert title in page
    assert "<judge>" not in page
    score = benchmarks(copy, "mtbench")["iterate 0"]["numbers"]["score"]["value"]
    assert f"{score:.2f} ±" in page
    assert {"report_arena.png", "report_benchmark_0.png"} <= {path.name for path in paths}
    stale = read_checked(copy / "game" / "arena.json")
    stale["policies"][1] = digest("another")
    (copy / "game" / "arena.json").write_text(json.dumps(stale))
    assert read_run_results(copy / "game").arena is None


@pytest.mark.parametrize(
    ("suite", "changes", "line"),
    [
        ("mtbench", {"mtbench": "nowhere"}, "--mtbench: 'nowhere' has no question.jsonl; `evaluate --download` fetches"),
        ("mtbench", {"mtbench": "torn"}, "--mtbench: 'torn/reference_answer/gpt-4.jsonl' is missing; FastChat has it"),
        ("mtbench", {"mtbench": "short"}, "--mtbench: question 7 of 'short' needs 2 turns, and a reference answer"),
        ("mtbench", {"judge": "http://127.0.0.1:9/v1"}, "--judge-base-url: 'http://127.0.0.1:9/v1' cannot be reached: "),
        (
            "mtbench",
            {"key": "NO_SUCH_KEY"},
            "--judge-api-key-env: the environment variable 'NO_SUCH_KEY' is not set; export it",
        ),
        ("mtbench", {"mtbench": "dup"}, "--mtbench: 'dup/question.jsonl' has a question_id twice"),
        ("mtbench", {"mtbench": "text"}, "--mtbench: question 8 of 'text' needs 2 turns, and a reference answer"),
        ("mtbench", {"mtbench": "bare"}, "--mtbench: question 101 of 'bare' needs 2 turns, and a reference answer"),
        (
            "mtbench",
            {"mtbench": "place"},
            "--mtbench: prompt 'single-v1' of 'place/judge_prompts.jsonl' has a place that nothing fills: 'score'",
        ),
        ("alpaca", {"alpaca": "torn"}, "--alpaca: 'torn' cannot be read: Is a directory; give a file of JSON"),
        ("alpaca", {"alpaca": "nowhere.json"}, "--alpaca: no file 'nowhere.json'; without the option the official one is"),
        ("alpaca", {"alpaca": "bare.json"}, "--alpaca: a row of 'bare.json' has no 'output'; each needs an instruction"),
        ("alpaca", {"alpaca": "two.json"}, "--alpaca: 'two.json' has outputs of a, b; a baseline is one of them"),
    ],
)
def test_what_cannot_be_judged_is_one_line(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: str, changes: dict[str, str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("torn", "short", "dup", "text", "bare", "place"):
        shutil.copytree(copy / "mt", tmp_path / name)
    (tmp_path / "torn" / mtbench_files.REFERENCES).unlink()
    question = {"question_id": 7, "category": "stem", "turns": ["only one"]}
    (tmp_path / "short" / mtbench_files.QUESTIONS).write_text(json.dumps(question))
    (tmp_path / "text" / mtbench_files.QUESTIONS).write_text(json.dumps({**question, "question_id": 8, "turns": "ab"}))
    (tmp_path / "dup" / mtbench_files.QUESTIONS).write_text((copy / "mt" / mtbench_files.QUESTIONS).read_text() * 2)
    (tmp_path / "bare" / mtbench_files.REFERENCES).write_text('{"question_id": 101, "choices": []}')
    prompts = (copy / "mt" / mtbench_files.PROMPTS).read_text().replace("Q {question} A", "{score} Q {question} A", 1)
    (tmp_path / "place" / mtbench_files.PROMPTS).write_text(prompts)
    (tmp_path / "bare.json").write_text('[{"instruction": "a"}]')
    pair = [{"instruction": name, "output": "x", "generator": name} for name in "ab"]
    (tmp_path / "two.json").write_text(json.dumps(pair))
    oracle = JudgeOracle(
        base_url=changes.get("judge", "http://127.0.0.1:9/v1"), model="never asked", api_key_env=changes.get("key")
    )
    paths: dict[str, Any] = {name: Path(changes[name]) for name in ("mtbench", "alpaca") if name in changes}
    judged = Judged(oracle, paths.get("mtbench", copy / "mt"), paths.get("alpaca"))

    def computed() -> list[Path]:
        """All that the store has but who uses it and whom it waits for."""
        places = ((copy / "store" / kind) for kind in ("completions", "judgements", "results", "judge"))
        return sorted(path for place in places for path in place.rglob("*"))

    before = computed()
    with pytest.raises(InputError) as error:
        evaluate(copy / "game", EvaluationRequest([suite], judged=judged), "all", quiet())
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
    assert before and computed() == before


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((None, "m", None), "--judge-model 'm': where? add --judge-base-url"),
        (("http://h/v1", None, None), "--judge-base-url: which of its models? add --judge-model"),
        ((None, None, "KEY"), "--judge-api-key-env: needs --judge-base-url and --judge-model"),
        ((None, None, None), "--judge-max-tokens: needs --judge-base-url and --judge-model"),
    ],
)
def test_half_a_judge_is_refused(given: tuple[str | None, str | None, str | None], line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        judge_from_options(*given, concurrency=1, max_tokens=7)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("{max_tokens: null", "not valid YAML; quote it"),
        ("max_tokens", "write it as '{field: value}'"),
        ("{since: .nan}", "give what JSON has: text, numbers"),
        ("{stream: true}", "stream cannot be set here"),
    ],
)
def test_a_judges_further_fields_are_checked(given: str, line: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--judge-extra-body {given!r}: ")) as error:
        judge_from_options("http://h/v1", "m", None, 1, None, given)
    assert line in str(error.value)
    with pytest.raises(InputError, match=re.escape("--judge-extra-body: needs --judge-base-url and --judge-model")):
        judge_from_options(None, None, None, 1, None, "{}")


def test_an_arena_and_suites_with_a_judge_that_refuses_max_tokens(copy: Path, server: Server) -> None:
    """The options of the command line reach every request; the answers are those that the game's store has."""
    server.behave = reasoner(longer)
    options = ["--judge-base-url", server.url, "--judge-model", "reasoner", "--limit", "16"]
    refused = call("arena", copy / "game", *options)
    assert_one_line(refused, "error: --judge-extra-body: ", "max_completion_tokens")
    body = "{max_tokens: null, max_completion_tokens: 99, temperature: null}"
    assert call("arena", copy / "game", *options, "--judge-extra-body", body).returncode == 0
    instructions(copy)
    files = ["--suite", "mtbench,alpaca", "--mtbench", copy / "mt", "--alpaca", copy / "alpaca.json"]
    server.behave = reasoner(lambda body, number: (longer if "answer_A" in str(body) else grade)(body, number))
    server.asked.clear()
    for _ in range(2):
        assert call("evaluate", copy / "game", *files, *options, "--judge-extra-body", body).returncode == 0
    sent = [json.loads(text) for _, text in server.asked]
    assert all(one.keys() == {"model", "messages", "max_completion_tokens"} for one in sent)
    assert set(server.requests.values()) == {1}  # what was asked so is not asked again
    roles = [[message["role"] for message in one["messages"]] for one in sent]
    assert ["user"] in roles and ["system", "user"] in roles  # of AlpacaEval and of MT-Bench


def test_no_key_is_anywhere(copy: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge repeats the key that it was given, in replies and in refusals; other keys are not for it at all."""
    secrets = {"A_KEY": "canary-key-of-the-judge", "HF_TOKEN": "hf_canary", "OPENAI_API_KEY": "canary-openai"}
    for name, value in {**secrets, "OPENAI_ORG_ID": "canary-org"}.items():
        monkeypatch.setenv(name, value)
    said = f"Authorization: Bearer {secrets['A_KEY']}"

    def behave(body: Body, number: int) -> Any:
        text = json.dumps(body["messages"])
        if "upper: word" in text or "upper: abab1" in text:
            return send(400, json.dumps({"error": {"message": said}}), retry_after=said)
        return f"{said}\ud800\x1b[31m\n{longer(body, number) if 'answer_A' in text else grade(body, number)}"

    server.behave = behave
    instructions(copy)
    judge = ["--judge-base-url", server.url, "--judge-model", "m", "--judge-api-key-env", "A_KEY"]
    files = ["--mtbench", copy / "mt", "--alpaca", copy / "alpaca.json"]
    output = []
    for command in (
        ["evaluate", copy / "game", "--suite", "mtbench,alpaca", *files, *judge],
        ["arena", copy / "game", "--limit", "8", *judge],
        ["report", copy / "game"],
        ["export", copy / "game", "--to", copy / "exported"],
    ):
        done = call(*command)
        assert done.returncode == 0, done.stderr
        output += [done.stdout, done.stderr]
    assert "judgements have no score" in output[0] and "400, Authorization: Bearer ***" in output[0]
    server.behave = lambda body, number: send(401, json.dumps({"detail": said}))
    refused = call("arena", copy / "game", *judge, "--judge-model", "other")
    assert_one_line(refused, "error: --judge-api-key-env: ", "401, Authorization: Bearer ***; look at A_KEY")
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {secrets['A_KEY']}"}
    assert "canary-o" not in "".join(map(str, server.headers)) and "canary" not in "".join([*output, refused.stderr])
    kept = [path for path in copy.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"canary" in path.read_bytes()]
    assert [path for path in kept if b"Bearer ***" in path.read_bytes() and path.parent.name == "judge"]


@pytest.mark.parametrize(
    ("file", "change", "line"),
    [
        (mtbench_files.QUESTIONS, {"category": "score"}, "has the category 'score'; a category is a text, and none of score"),
        (mtbench_files.QUESTIONS, {"category": ["math"]}, "has the category ['math']; a category is a text"),
        (mtbench_files.QUESTIONS, {"question_id": {}}, "'question_id' in a line of"),
        (mtbench_files.REFERENCES, {"question_id": [1]}, "'question_id' in a line of"),
        (mtbench_files.PROMPTS, {"name": []}, "'name' in a line of"),
        (mtbench_files.PROMPTS, {"system_prompt": None}, "'system_prompt' in a line of"),
    ],
)
def test_questions_of_odd_kinds_are_refused(tmp_path: Path, file: str, change: dict[str, Any], line: str) -> None:
    """A category called score would stand in the place of the score."""
    write_questions(tmp_path / "mt")
    first, *others = (tmp_path / "mt" / file).read_text().splitlines()
    (tmp_path / "mt" / file).write_text("\n".join([json.dumps({**json.loads(first), **change}), *others]))
    with pytest.raises(InputError, match=f"^--mtbench: .*{re.escape(line)}"):
        mtbench_files.read_mtbench(tmp_path / "mt", None, "--mtbench")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "--prompts: 'prompts.jsonl' cannot be read: Is a directory"),
        ('"text"', "--prompts: a line of 'prompts.jsonl' has neither a prompt nor messages"),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "--prompts: a line of 'prompts.jsonl' has neither a prompt nor"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "--prompts: a line of 'prompts.jsonl' asks nothing"),
    ],
)
def test_what_an_arena_cannot_ask_is_one_line(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("prompts.jsonl")
    path.mkdir() if content is None else path.write_text(content)
    judged = Judged(JudgeOracle(base_url="http://127.0.0.1:9/v1", model="never asked"))
    with pytest.raises(InputError, match=re.escape(line)):
        play_arena(copy / "game", path, 4, judged, quiet())


def test_a_run_knows_its_recipes_files_from_anywhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_folder.read_run_folder(home / "game")
    judged = benchmarks_of(run.recipe, run.folder).judged
    assert judged.mtbench == home / "mt" and judged.alpaca is None


def test_messages_name_what_the_user_wrote(tmp_path: Path) -> None:
    own = Judged(None, mtbench=tmp_path / "a")
    recipes = Judged(
        JudgeOracle(base_url="http://h/v1", model="m"), tmp_path / "b", tmp_path / "c", recipes=frozenset({"judge", "mtbench"})
    )
    both = with_recipe_defaults(own, recipes)
    assert (both.judge, both.mtbench, both.alpaca) == (recipes.judge, tmp_path / "a", tmp_path / "c")
    assert [both.option(name) for name in ("judge", "mtbench", "alpaca")] == [
        "evaluation.judge",
        "--mtbench",
        "evaluation.alpaca",
    ]


def test_categories_are_asked_and_judged_as_fastchat_has_them() -> None:
    """Its temperature_config, 0.7 where that has none, and its NEED_REF_CATS."""
    known = {"writing": 0.7, "roleplay": 0.7, "extraction": 0, "math": 0, "coding": 0, "reasoning": 0, "stem": 0.1}
    known |= {"humanities": 0.1, "of my own": 0.7}
    assert {kind: mtbench.MTBenchQuestion(1, kind, [], None).temperature for kind in known} == known
    assert set(mtbench.REFERRED) == {"math", "reasoning", "coding"}


def test_a_comparison_that_got_no_reply_is_asked_again_and_nothing_else(copy: Path, server: Server) -> None:
    rows = instructions(copy)
    refused = rows[2]["instruction"]

    def behave(body: Body, number: int) -> Any:
        return send(400, "no") if refused in body["messages"][0]["content"] else longer(body, number)

    def rates() -> list[float]:
        measure(copy, server, suite="alpaca", alpaca=copy / "alpaca.json", longest=12)
        found = benchmarks(copy, "alpaca")
        failed.append(found["base"]["numbers"]["failed"]["value"])
        return [line["numbers"]["win rate"]["value"] for line in found.values()]

    failed: list[float] = []
    server.behave = behave
    rates()
    server.asked.clear()
    server.behave = longer
    again = rates()
    assert server.asked and all(refused in text for _, text in server.asked)
    assert failed == [pytest.approx(2 / 24), 0]
    shutil.rmtree(copy / "store" / "judgements")
    shutil.rmtree(copy / "store" / "results")
    assert rates() == again


def test_what_a_judge_never_decided_is_counted_by_every_call(copy: Path, server: Server) -> None:
    """One order of one pair has no verdict, all tries: an arena that finds all of it stored says so, too."""
    first: list[str] = []

    def behave(body: Body, number: int) -> str:
        content = body["messages"][0]["content"]
        first.append(content)
        return "I cannot say." if content == first[0] else longer(body, number)

    server.behave = behave
    judged, counts = Judged(JudgeOracle(base_url=server.url, model="m")), set()
    for _ in range(2):
        show_arena(copy / "game", play_arena(copy / "game", None, 16, judged, quiet()), quiet())
        found = json.loads((copy / "game" / "arena.json").read_text())
        counts.add((found["failed"], found["orders"]))
    ((failed, orders),) = counts
    assert failed == 1 and orders == len({json.loads(text)["messages"][0]["content"] for text in server.requests})
    assert f"1 of {orders} judgements failed." in (copy / "game" / "report.html").read_text()


def test_a_judge_keeps_its_own_address_and_counts(tmp_path: Path) -> None:
    """Two of one identity, as the game's oracle and the judge of its benchmarks may be."""
    pool = EnginePool()
    judges = [LLMJudge(f"http://{host}/v1", "m", tmp_path, print, field=host) for host in ("one", "two")]
    unused: Any = None
    for one in judges:
        engines = GameEngines(
            recipe=unused, model=unused, choices=unused, weights_dir=tmp_path, display=quiet(), pool=pool, judge=one
        )
        assert engines.oracle() is one


def test_an_arena_of_a_game_under_way_has_no_report_yet(copy: Path, server: Server) -> None:
    server.behave = longer
    for name in ("metrics.jsonl", "report.html"):
        (copy / "game" / name).unlink(missing_ok=True)
    show_arena(
        copy / "game", play_arena(copy / "game", None, 8, Judged(JudgeOracle(base_url=server.url, model="m")), quiet()), quiet()
    )
    assert (copy / "game" / "arena.json").is_file() and not (copy / "game" / "report.html").exists()


def test_scores_are_of_the_answers_beside_them(copy: Path, server: Server) -> None:
    """Shorter answers are others, and so are those that came out differently after they were lost."""
    limit = JudgeOracle(base_url=server.url, model="m", max_tokens=99)
    results = [len(list((copy / "store" / "results").rglob("*.json")))]
    for judge_of, longest, asked_for in ((None, 200, 2048), (None, 3, 2048), (limit, 3, 99)):
        server.asked.clear()
        changes: dict[str, Any] = {"judge": judge_of} if judge_of else {}
        measure(copy, server, **changes, longest=longest)
        assert {json.loads(text)["max_tokens"] for _, text in server.asked} == {asked_for}
        results.append(len(list((copy / "store" / "results").rglob("*.json"))))
        lines = judgements(copy, "m")
        for path in (copy / "game" / "mtbench" / "model_answer").iterdir():
            turns = {one["question_id"]: one["choices"][0]["turns"] for one in map(json.loads, path.read_text().splitlines())}
            mine = lines[lines["model"] == path.stem].to_dict("records")
            assert mine and all(line["user_prompt"].endswith(turns[line["question_id"]][line["turn"] - 1]) for line in mine)
    assert set(np.diff(results)) == {len(POLICIES)}  # each beside the others
    for path in (copy / "store" / "results").rglob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "answers": digest("others"), "judgements": []}))
    measure(copy, server, longest=3, judge=limit)
    assert len(judgements(copy, "m")) == len(POLICIES) * len(QUESTIONS) * 2


def test_another_baseline_is_judged_anew(copy: Path, server: Server) -> None:
    server.behave = longer
    found = []
    for length in (1, 60):
        rows = [{**row, "output": "x" * length} for row in instructions(copy)]
        (copy / "alpaca.json").write_text(json.dumps(rows))
        measure(copy, server, suite="alpaca", alpaca=copy / "alpaca.json", longest=12)
        found.append(benchmarks(copy, "alpaca")["base"]["numbers"]["win rate"]["value"])
    assert found[0] > 0.5 > found[1]
    measure(copy, server, suite="alpaca", alpaca=copy / "alpaca.json", longest=12, limit=5)
    five = [line for line in map(json.loads, (copy / "game" / "benchmarks.jsonl").read_text().splitlines()) if line["limit"]]
    assert {(line["count"], line["limit"]) for line in five} == {(5, 5)}
    free = gc.unused(copy / "store", gc.used_by([copy / "game"]))
    assert not [item for item in free if item.kind in ("completions", "judgements")]


def test_policies_go_by_the_names_of_their_game(copy: Path, server: Server) -> None:
    """The same adapter under a second name; and what lies behind an early stop is no policy of the game."""
    path = copy / "game" / "run.json"
    record = read_checked(path)
    record["policies"]["iterate 1"] = record["policies"]["iterate 0"]
    record["roles"]["iterate 1"] = {"role": "iterate", "iteration": 1}
    path.write_text(json.dumps(record))
    measure(copy, server)
    assert Counter(judgements(copy, "m")["model"]) == dict.fromkeys(["base", "iterate_0", "iterate_1"], len(QUESTIONS) * 2)
    record["stopped"] = {"after": "iterate 0", "why": "", "keep": "iterate 0"}
    path.write_text(json.dumps(record))
    assert (
        EvaluationTarget.from_run(run_folder.read_run_folder(copy / "game"), "all", SharedResources(), quiet()).wanted
        == POLICIES
    )


def test_answers_under_way_are_in_use(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves half answered is not for gc to free."""
    (copy / "game" / run_folder.USED).unlink()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tables, "answers", killed)
    played = EvaluationTarget.from_run(run_folder.read_run_folder(copy / "game"), "all", SharedResources(), quiet())
    with pytest.raises(KeyboardInterrupt):
        measure_policies([played], EvaluationRequest(["mtbench"], judged=Judged(mtbench=copy / "mt")), quiet())
    assert len(run_folder.tables_in_use(copy / "game")["completions"]) == len(POLICIES)


def test_a_judges_name_means_nothing_to_markdown(copy: Path, server: Server) -> None:
    measure(copy, server, "a\n## b | <i>")
    write_all(read_results(copy / "game"))
    headings = [line for line in (copy / "game" / "report.md").read_text().splitlines() if line.startswith("## ")]
    assert len(headings) == 2 and "<i>" not in "".join(headings)


def test_a_judge_that_has_gone_away_costs_no_report(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai.OpenAI, "_calculate_retry_timeout", lambda *_: 0.0)  # all tries, without their waits
    asked = "evaluation.judge={base_url: 'http://127.0.0.1:9/v1', model: gone}"
    (copy / "game" / "report.html").unlink()
    shutil.rmtree(copy / "game" / "mtbench")
    with pytest.raises(InputError, match=r"evaluation\.judge\.base_url: 'http://127.0.0.1:9/v1' cannot be reached"):
        play(load_recipe(copy / "game" / "recipe.yaml", [asked]), copy, quiet())
    assert (copy / "game" / "report.html").is_file()
    assert (copy / "game" / "mtbench" / "model_answer" / "base.jsonl").is_file()  # the judge may come when the GPU is free
    recipe = load_recipe(copy / "game" / "recipe.yaml")
    axes, folder = {"game.alpha": [recipe.game.alpha]}, grid.sweep_folder(recipe)
    entries = [Entry(point) for point in grid.sweep_points(copy / "game" / "recipe.yaml", [asked], axes, 1)]
    with pytest.raises(InputError, match="cannot be reached"):
        play_sweep(SweepState("game", folder, axes, [42], entries), copy, quiet())
    assert [entry.status for entry in entries] == ["finished"] and (folder / "report.html").is_file()


@pytest.mark.parametrize("damage", [{"wins": [[0.5]]}, {"judge": None}, {"prompts": None}, {"names": 3}])
def test_a_damaged_arena_is_one_line(copy: Path, server: Server, damage: dict[str, Any]) -> None:
    """Of one prompt, whose errors nobody knows: null in the file."""
    server.behave = longer
    play_arena(copy / "game", None, 1, Judged(JudgeOracle(base_url=server.url, model="m")), quiet())
    path = copy / "game" / "arena.json"
    assert "NaN" not in path.read_text() and read_run_results(copy / "game").arena is not None
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(InputError, match="does not read back; delete it"):
        read_results(copy / "game")
