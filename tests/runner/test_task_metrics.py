"""Metrics of greedy answers besides exact match: what they count, and that a game is measured by them."""

import json
import os
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from helpers.commands import assert_one_line, call
from helpers.games import QUICKSTART, opened, played
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.metric_choices import Contains, FinalNumber, OwnMetric, Regex
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.own_function import OwnFunction
from lowmem_spin.report.compare import side_by_side
from lowmem_spin.report.load import read_run_results
from lowmem_spin.report.summary import run_grid, terminal_table, verdict
from lowmem_spin.runner import task_metrics
from lowmem_spin.runner.own_functions import OwnFunctions
from lowmem_spin.runner.run import Player
from lowmem_spin.runner.task_metrics import TaskMetric, final_number

MINE = """import os
open(os.environ['RAN'], 'w').close()

def metric(prompt, answer, expected):
    return answer == expected
"""
WORKED = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether she sold 48+24 = <<48+24=72>>72 clips.\n#### 72"


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (WORKED, "72"),
        ("She makes 18 dollars every day.", "18"),
        ("so it costs $1,234.50.", "1234.50"),
        ("#### $ 1,000", "1000"),
        ("First #### 3, no, I was wrong.\n#### 4 apples (of 9)", "9"),
        ("The change is -5 degrees", "-5"),
        ("It is 10-4", "4"),
        ("from 3 - 7", "7"),
        ("half of it: .5", ".5"),
        ("no number", None),
        ("42 apples\n#### none", None),
        ("x2 = 4x", "4"),
    ],
)
def test_the_final_number(answer: str, number: str | None) -> None:
    assert final_number(answer) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("section", "answer", "expected", "score"),
    [
        (FinalNumber(), "That makes 72.0", WORKED, 1),
        (FinalNumber(), "That makes 71", WORKED, 0),
        (FinalNumber(), "none", "none", 0),
        (Contains(), "It is Paris, of course.", " Paris\n", 1),
        (Contains(), "It is paris.", "Paris", 0),
        (Regex(pattern=r"answer is \(?([A-D])"), "At first the answer is A, but the answer is (C).", "The answer is C", 1),
        (Regex(pattern=r"answer is \(?([A-D])"), "The answer is D", "The answer is C", 0),
        (Regex(pattern=r"answer is \(?([A-D])"), "C", "The answer is C", 0),
        (Regex(pattern=r"a(b)?"), "a", "a", 0),
    ],
)
def test_what_counts_as_right(section: Any, answer: str, expected: str, score: float) -> None:
    assert TaskMetric(section).score("prompt", answer, expected) == score


def test_a_pattern_that_never_ends_its_search_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own expressions would try every way to split the text, of which there are some 10**12."""
    monkeypatch.setattr(task_metrics, "SEARCHED", 0.1)
    metric = TaskMetric(Regex(pattern=r"^((a|aa)+)$"))
    assert metric.score("", "aaa", "aaa") == 1
    with pytest.raises(InputError, match=r"\^\(\(a\|aa\)\+\)\$' is still searching an answer of 61 characters after 0.1 s"):
        metric.score("", "a" * 60 + "!", "aaa")


def test_data_without_anything_to_compare_with_is_said_or_refused() -> None:
    metric = TaskMetric(FinalNumber())
    assert list(metric.check([WORKED, "1"])) == []
    assert list(metric.check([WORKED, "none", "1"])) == [
        "evaluation.metric: 1 of 3 held-out answers has no number; every policy counts as wrong there"
    ]
    with pytest.raises(InputError, match="none of the 2 held-out answers has a number; use another metric"):
        list(metric.check(["none", "no"]))
    with pytest.raises(InputError, match=r"none of the 1 held-out answers has a match of '\(x\)'"):
        list(TaskMetric(Regex(pattern="(x)")).check(["y"]))


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("{name: regex, pattern: '(a'}", "evaluation.metric.pattern: '(a' cannot be used: no regular expression: missing )"),
        ("{name: regex, pattern: 'a'}", "evaluation.metric.pattern: 'a' cannot be used: it has no group; put what is to be"),
        ("regex", "evaluation.metric.pattern: missing; add it"),
        ("bleu", "evaluation.metric: 'bleu' cannot be used: its name is none of exact_match, none, final_number, regex,"),
        ("{name: contains, x: 1}", "evaluation.metric.x: unknown field; known here: name"),
        ("function", "evaluation.metric.function: missing; add it"),
    ],
)
def test_what_is_no_metric_is_one_line(written: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(find_recipe("quickstart"), [f"evaluation.metric={written}"])
    assert line in str(error.value) and "tagged-union" not in str(error.value)


def test_names_alone_are_metrics_and_the_old_ones_stay_texts() -> None:
    def read(written: str) -> Any:
        return load_recipe(find_recipe("quickstart"), [f"evaluation.metric={written}"]).evaluation.metric

    assert [read("exact_match"), read("{name: exact_match}"), read("none")] == ["exact_match", "exact_match", "none"]
    assert read("final_number") == read("{name: final_number}") == FinalNumber()
    recipe = load_recipe(find_recipe("quickstart"), ["evaluation.metric=contains"])
    assert Recipe.model_validate(recipe.model_dump()) == recipe


def test_an_own_metric_gives_numbers_or_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "def f(prompt, answer, expected):\n    return {'yes': True, 'half': .5}.get(answer, answer)\n"
    )
    own = OwnFunction.find("evaluation.metric.function", "m.py:f", tmp_path)
    metric = TaskMetric(OwnMetric(name="function", function="m.py:f"), own)
    assert [metric.score("", "yes", ""), metric.score("", "half", "")] == [1.0, 0.5]
    for answer in ("text", "nan"):
        with pytest.raises(InputError, match=rf"evaluation.metric.function: .*m.py:f gave '{answer}', which is no number"):
            metric.score("", answer, "")
    (tmp_path / "n.py").write_text("def f(answer):\n    return 1\n")
    short = TaskMetric(OwnMetric(name="function", function="n.py:f"), OwnFunction.find("f", "n.py:f", tmp_path))
    with pytest.raises(InputError, match=r"is called with \(prompt, answer, expected\)"):
        list(short.check(["x"]))


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_game_is_measured_by_its_metric_and_no_policy_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An own metric that is exact match gives exact match's numbers, on the same policies."""
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "mine.py").write_text(MINE)
    held = tmp_path / "held.jsonl"
    held.write_text("".join((QUICKSTART / "heldout.jsonl").read_text().splitlines(keepends=True)[:40]))
    metrics = {
        "exact_match": "exact_match",
        "function": f"{{name: function, function: {tmp_path / 'mine.py'}:metric}}",
        "contains": "contains",
    }
    games = {
        name: played(
            tmp_path,
            "game.iterations=1",
            f"evaluation={{path: {held}, health_prompts: 4, metric: {written}}}",
            f"output.dir={tmp_path / name}",
        )
        for name, written in metrics.items()
    }
    assert len({str(game.stages) for game in games.values()}) == 1, "a metric is in no key"
    exact, own, within = (_records(tmp_path / name) for name in metrics)
    for one, other, loose in zip(exact, own, within, strict=True):
        assert one["policy"] == other["policy"] == loose["policy"]
        for end in ("", "_se", "_n", "/sort"):
            assert other[f"function{end}"] == one[f"exact_match{end}"] or one[f"exact_match{end}"] is None
        assert (other["gain"], other["gain_se"]) == (one["gain"], one["gain_se"])
        assert loose["contains"] >= one["exact_match"]
        assert "exact_match" not in other
    assert exact[-1]["gain"] != 0 and any(
        loose["contains"] > one["exact_match"] for one, loose in zip(exact, within, strict=True)
    )
    run = read_run_results(tmp_path / "contains")
    assert run_grid(run).headings[:4] == ["policy", "contains, %", "gain, %", "log-prob of data, nats"]
    assert run_grid(run, brief=True).headings[3] == "log-prob\nof data, nats"  # the table's title says %
    assert "sampled" not in str(terminal_table(run)) and "share of answers that contain the data's" in verdict(run)[0]
    assert run.base.categories, "by category, too"
    folder_names = {run.folder.name for run in (read_run_results(tmp_path / name) for name in metrics)}
    assert folder_names == set(metrics)
    own_games = ["function", "other"]
    (tmp_path / "other.py").write_text(MINE)
    said = StringIO()
    for name, folder in (("other", "other"), ("other", "contains")):  # the latter is measured again, by another metric
        section = f"{{name: function, function: {tmp_path / f'{name}.py'}:metric}}"
        measured = f"evaluation={{path: {held}, health_prompts: 4, metric: {section}}}"
        game = opened(tmp_path, "game.iterations=1", measured, f"output.dir={tmp_path / folder}")
        Player(game, Display(Console(file=said, width=1000)), {}).play_all()
        game.engines.pool.close()
    assert _records(tmp_path / "contains") == _records(tmp_path / "other") and "has other numbers" not in said.getvalue()
    with pytest.raises(InputError, match=r"has another evaluation\.metric than .*: their numbers do not compare"):
        side_by_side([tmp_path / name for name in own_games])
    assert side_by_side([tmp_path / "other", tmp_path / "contains"]).score == "function"


def test_an_own_metric_runs_only_once_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "mine.py").write_text(MINE)
    metric = f"evaluation.metric={{name: function, function: {tmp_path / 'mine.py'}:metric}}"
    places = [f"--set=output.store={tmp_path / 'store'}", f"--set=output.dir={tmp_path / 'run'}"]
    assert_one_line(call("run", "quickstart", f"--set={metric}", *places), "evaluation.metric.function", "--trust")
    assert not os.path.exists(tmp_path / "ran")
    written = metric.partition("=")[2]
    game = opened(tmp_path, f"evaluation={{path: quickstart/heldout.jsonl, metric: {written}}}")
    own = OwnFunctions.find(game.recipe, tmp_path)
    assert own.files() == {"evaluation.metric.function": f"{tmp_path / 'mine.py'}:metric"}
