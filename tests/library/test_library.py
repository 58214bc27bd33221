"""`import lowmem_spin as ls`: the command line's games, folders and answers, as DataFrames, models and lists."""

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from peft import PeftModel
from rich.console import Console

import lowmem_spin as ls
from helpers.commands import SMALL, call
from helpers.games import data_rows, of_policy, unchecked
from lowmem_spin.cli.chat import open_voices, prompt_tokens, sampling_of, talk
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.config.yaml_text import read_yaml
from lowmem_spin.library.policies import open_portable_engine
from lowmem_spin.runner import run_folder

QUESTIONS = ["upper: cvt", "reverse: abcdefghijk", "double: zzet"]


@pytest.fixture(scope="module")
def run(whole: Path) -> Iterator[ls.Run]:
    found = ls.load(whole / "run")
    assert isinstance(found, ls.Run)
    yield found
    found.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def written(store: Path) -> dict[str, int]:
    """When each file of the tables and adapters was written, in ns."""
    files = (path for kind in ("completions", "logps", "adapters") for path in (store / kind).rglob("*"))
    return {str(path.relative_to(store)): path.stat().st_mtime_ns for path in files if path.is_file()}


def test_the_import_is_light_and_results_load_no_model(whole: Path) -> None:
    heavy = "print(sorted({'torch', 'transformers', 'peft', 'pandas', 'numpy', 'pydantic', 'rich'} & sys.modules.keys()))"
    script = [
        "import sys, lowmem_spin as ls",
        heavy,
        "assert set(ls.__all__) <= set(dir(ls))",
        f"run = ls.load({str(whole / 'run')!r})",
        "run.table, run.metrics, run.recipe, run.finished, repr(run), run._repr_html_(), ls.fields()",
        "ls.run, ls.plan",
        heavy,
    ]
    answer = subprocess.run([sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["[]", "['numpy', 'pandas', 'pydantic', 'rich']"]


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    for name in ls.__all__:
        value = getattr(ls, name)
        assert value.__doc__, name
        if isinstance(value, type) and value is not ls.InputError:
            assert all(getattr(value, member).__doc__ for member in dir(value) if not member.startswith("_")), name
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = ls.rum


def test_a_table_has_the_numbers_of_the_metrics_file(run: ls.Run, whole: Path) -> None:
    records, table, metrics, known = lines(whole / "run"), run.table, run.metrics, ls.fields()
    assert list(table.index) == list(metrics.index) == [record["name"] for record in records]
    numbers = [name for name in records[0] if f"{name}_se" in records[0]]
    assert len(numbers) == 10 and set(table.columns) == {*numbers, *(f"{name}_se" for name in numbers)}
    assert list(table.columns[:2]) == ["chosen_logp", "gain"]  # the score by which the page compares, and how far it rose
    for record in records:
        for name in table.columns:
            assert table.loc[record["name"], name] == metrics.loc[record["name"], name] == record[name], name
        assert metrics.loc[record["name"], "samples"] == record["samples"]
    assert set(numbers) <= set(known.index) and (known["meaning"].str.len() > 20).all()
    assert known["unit"].to_dict()["length"] == "tokens" and set(known["unit"]) == {"share", "nats", "tokens", "points", ""}


def test_loading_and_reading_changes_nothing_on_the_disk(run: ls.Run, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    again = ls.load(whole / "run")
    assert repr(again) == repr(run) and again._repr_html_() and run.finished
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert run.recipe.model_dump(mode="json") == yaml.safe_load((whole / "run" / "recipe.yaml").read_text())


@pytest.mark.parametrize("name", ["base", 0, "1", "iterate 1"])
def test_an_iterate_gives_the_log_probs_that_are_stored(run: ls.Run, whole: Path, name: int | str) -> None:
    """The oracle is the store's own Parquet files, read without the package."""
    model, _ = run.iterate(name)
    policies = json.loads((whole / "run" / "run.json").read_text())["policies"]
    key = policies[name if isinstance(name, str) and name in policies else f"iterate {name}"]
    store, rows = whole / "store", data_rows(whole / "store")
    said = {f"{row['table']}/{row['sample']}": {} for row in of_policy(store, "completions", key)}
    for row in of_policy(store, "completions", key):
        said[f"{row['table']}/{row['sample']}"][row["prompt_id"]] = row["tokens"]
    scored = of_policy(store, "logps", key)
    own = [row for row in scored if row["completion"] in said and row["prompt_id"] in said[row["completion"]]]
    chosen = [row for row in scored if row["completion"] == "chosen"]
    assert len(own) > 3 and len(chosen) > 3
    for row in own[:4] + chosen[:4]:
        prompt = rows[row["prompt_id"]]["prompt"]
        answer = (
            rows[row["prompt_id"]]["chosen"] if row["completion"] == "chosen" else said[row["completion"]][row["prompt_id"]]
        )
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        total = sum(logps[len(prompt) - 1 + place, token].item() for place, token in enumerate(answer))
        assert total == pytest.approx(row["logp"], abs=2e-4), row


def test_an_iterate_answers_in_a_batch_with_the_games_template_and_ends(run: ls.Run) -> None:
    model, tokenizer = run.iterate()
    assert isinstance(model, PeftModel)
    talks = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = tokenizer.apply_chat_template(talks, add_generation_prompt=True, tokenize=False)
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    output = model.generate(**batch, max_new_tokens=20, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert tokenizer.batch_decode(output, skip_special_tokens=True) == run.generate(QUESTIONS, temperature=0)
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") in model.generation_config.eos_token_id  # whatever its files say


@pytest.mark.parametrize(("name", "temperature"), [("base", 0.0), ("1", 0.0), (None, 0.0), (None, None)])
def test_answers_are_those_of_a_chat(run: ls.Run, whole: Path, name: str | None, temperature: float | None) -> None:
    game = run_folder.read_run_folder(whole / "run")
    store = run_folder.open_store(game, print)
    voices = open_voices(game, [run_folder.find_policy(game, store, name)], run_folder.find_base(game, store), temperature)
    out = io.StringIO()
    talk(voices, [line for question in QUESTIONS for line in (question, "/reset")], Console(file=out), print)
    assert run.generate(QUESTIONS, name, temperature=temperature) == out.getvalue().splitlines()


def test_the_recipes_system_prompt_opens_every_conversation(whole: Path) -> None:
    game = run_folder.read_run_folder(whole / "run")
    data = game.recipe.data.model_copy(update={"system_prompt": "Be brief."})
    told = replace(game, recipe=game.recipe.model_copy(update={"data": data}))
    engine = open_portable_engine(told, run_folder.find_base(game, run_folder.open_store(game, print)))
    asked, sampling = {"role": "user", "content": "q"}, sampling_of(game, 0.0, "temperature")
    for talk_, first in (([asked], "Be brief."), ([{"role": "system", "content": "Mine."}, asked], "Mine.")):
        tokens = prompt_tokens(engine, talk_, sampling, "shorten it")
        assert engine.tokenizer.decode(tokens) == f"<bos><user>{first}<end_of_turn><user>q<end_of_turn><model>"
    with pytest.raises(ls.InputError, match=r"^the conversation has .* tokens and an answer may have 20, of .*; shorten it$"):
        prompt_tokens(engine, [{"role": "user", "content": "long " * 2000}], sampling, "shorten it")


def test_answers_that_are_cut_are_counted(run: ls.Run, capsys: pytest.CaptureFixture[str]) -> None:
    whole, cut = run.generate(QUESTIONS, 1, temperature=0), run.generate(QUESTIONS, 1, max_new_tokens=4, temperature=0)
    assert all(long.startswith(short) for long, short in zip(whole, cut, strict=True))
    count = sum(long != short for long, short in zip(whole, cut, strict=True))
    assert count > 0 and f"{count} of 3 answers are truncated at max_new_tokens 4" in capsys.readouterr().err


def settings(folder: Path) -> dict[str, Any]:
    short = {name: read_yaml(value) for name, value in SMALL.items()}
    return {**short, "output.store": folder / "store", "output.dir": folder / "run"}


def test_a_finished_game_is_not_played_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = written(copy / "store")
    again = ls.run("quickstart", settings=settings(copy))
    assert written(copy / "store") == before and again.folder == copy / "run"
    assert lines(copy / "run") == lines(again.folder) and "Held-out results" in capsys.readouterr().out
    page = again.report()
    assert page == copy / "run" / "report.html" and "<script" not in page.read_text()


def test_a_game_that_was_stopped_is_gone_on_with(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its hours, then by Ctrl-C; it ends as the game that was never stopped."""
    given, before = settings(tmp_path), signal.getsignal(signal.SIGINT)
    late = ls.run(settings=given, max_hours=1e-7)
    assert (
        not late.finished and "1e-07 hours are over; what is finished is stored, run the same again" in capsys.readouterr().out
    )
    assert (
        repr(late) == f"Run({str(tmp_path / 'run')!r}: not finished: 0 of 2 iterates)"
        and "0 of 2 iterates" in late._repr_html_()
    )
    with pytest.raises(ls.InputError, match=r"^'.*' is not finished, and no policy is measured yet; `lowmem-spin runs` says"):
        _ = late.table
    with pytest.raises(ls.InputError, match=r"iterate '1': iterate 1 of .* is not trained yet"):
        late.generate(QUESTIONS, 1)

    def press() -> None:
        while not list((tmp_path / "store" / "adapters").glob("*/manifest.json")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press, daemon=True)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        ls.run(settings=given)
    presser.join()
    assert "interrupted; what is finished is stored, run the same again to continue" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before and not late.finished
    assert ls.run(settings=given).finished
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (whole / "run" / "metrics.jsonl").read_bytes()


def test_a_game_that_is_not_finished_has_the_numbers_of_what_is_measured(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run leaves them that is stopped after its first iterate."""
    known = lines(copy / "run")
    (copy / "run" / "metrics.jsonl").unlink()
    (copy / "run" / "metrics_so_far.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in known[:2]))
    run = ls.load(copy / "run")
    assert isinstance(run, ls.Run) and not run.finished
    assert run.table["kl_to_base"].to_dict() == {line["name"]: line["kl_to_base"] for line in known[:2]}
    said = capsys.readouterr().err
    assert "this game is not finished: what is shown is of the base and 1 of 2 iterates" in said
    assert list(run.metrics["samples"]) == [line["samples"] for line in known[:2]]
    assert "held-out results so far" in run._repr_html_() and "1 of 2 iterates" in run.report().read_text()


@pytest.fixture(scope="module")
def swept(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> ls.Sweep:
    """Two alphas on the finished game's store: one of them is that game."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("swept") / "copy", symlinks=True))
    given = settings(folder)
    return ls.sweep("quickstart", alpha=(0.95, 0.5), pairs=given.pop("game.pairs"), settings=given)


def test_a_sweep_has_its_axes_as_columns(swept: ls.Sweep, whole: Path) -> None:
    table, runs = swept.table, swept.runs
    assert table["alpha"].tolist() == [0.95, 0.5] and table["seed"].tolist() == [42, 42]
    assert set(table["status"]) == {"finished"} and list(runs) == list(table.index)
    for name, played in runs.items():
        last = lines(swept.folder / "points" / name)[-1]
        assert played.folder == swept.folder / "points" / name
        assert table.loc[name, "policy"] == last["name"] == "iterate 1"
        assert all(table.loc[name, field] == last[field] for field in ("chosen_logp", "kl_to_base_se"))
    assert lines(runs[table.index[0]].folder) == lines(whole / "run")
    assert swept.best.folder == runs[str(table["chosen_logp"].idxmax())].folder
    again = ls.load(swept.folder)
    assert isinstance(again, ls.Sweep) and again.table.equals(table)
    assert "alpha" in swept._repr_html_() and repr(swept).startswith(f"Sweep({str(swept.folder)!r}: finished, alpha 0.")


def test_a_sweep_is_the_one_that_the_command_line_plays(swept: ls.Sweep) -> None:
    """The command finds everything stored, under the same names."""
    folder = swept.folder.parent
    changes = {**SMALL, "output.store": folder / "store", "output.dir": folder / "run"}
    told = call("plan", "quickstart", "--json", "--alpha", "0.95,0.5", *(f"--set={n}={v}" for n, v in changes.items()))
    found = json.loads(told.stdout)
    assert found["points"] == list(swept.table.index) and swept.folder == folder / "run-sweep"
    assert found["exact"] and all(stage["to_do"] == 0 for stage in found["stages"])


def test_a_plan_is_the_commands(tmp_path: Path) -> None:
    shape = {"alpha": [0.5, 1], "history": [1, math.inf], "seeds": 2}
    made = ls.plan("quickstart", gpu="4090", workers=2, settings={"output.store": tmp_path}, **shape)
    words = [
        "--gpu",
        "4090",
        "--workers",
        2,
        "--set",
        f"output.store={tmp_path}",
        "--alpha",
        "0.5,1",
        "--history",
        "1,inf",
        "--seeds",
        2,
    ]
    told = json.loads(call("plan", "quickstart", *words, "--json").stdout)
    assert made.made.record() == told and len(told["points"]) == 8
    assert made.hours == pytest.approx(sum(line.seconds for line in made.made.lines) / 3600)
    assert told["total"]["seconds"] == round(3600 * made.hours, 1)
    assert made.hours_with_workers and made.longest_chain_hours
    assert made.longest_chain_hours < made.hours_with_workers < made.hours
    assert told["workers"]["seconds"] == round(3600 * made.hours_with_workers, 1)
    assert made.memory_gb == pytest.approx(max(stage["gpu_memory_bytes"] for stage in told["stages"]) / 1e9)
    assert "Rows of 8 games" in str(made) and made.notes == told["notes"]
    assert "<pre>" in made._repr_html_() and "8 games" in repr(made)


def test_recipes_are_given_in_any_form(tmp_path: Path, quickstart: Path) -> None:
    path = quickstart.parent / "quickstart.yaml"
    content = yaml.safe_load(path.read_text())
    for section, name in (("model", "name_or_path"), ("data", "path"), ("evaluation", "path")):
        content[section][name] = str(quickstart.parent / content[section][name])
    forms = ["quickstart", path, content, Recipe.model_validate(content)]
    stages = [ls.plan(form, settings={"output.store": tmp_path}).made.record()["stages"] for form in forms]
    assert stages[0] and all(one == stages[0] for one in stages)


def _anywhere(folder: Path) -> dict[str, Any]:
    return {"output.store": folder / "store", "output.dir": folder / "run"}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"alpah": 1}, "'alpah': no field of a recipe; did you mean alpha?"),
        (
            {"learning_rate": 1},
            "learning_rate: this is game.sampler.learning_rate or .*training.learning_rate.*; write settings=",
        ),
        ({"alpha": 1, "settings": {"game.alpha": 1}}, "alpha: game.alpha is set twice; leave one out"),
        ({"alpha": object()}, "game.alpha: <object .* cannot be used: give numbers, text, lists or dicts"),
        ({"alpha": 7}, ".*game.alpha: 7 cannot be used: write a number from 0 to 1"),
        ({"max_hours": 0}, "--max-hours 0: cannot be used"),
        ({"game.alhpa": 1}, ".*game.alhpa: unknown field; did you mean alpha?"),
    ],
)
def test_what_cannot_be_used_is_one_line(given: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(ls.InputError, match=f"^{line}") as refused:
        ls.run("quickstart", **_anywhere(tmp_path), **given)
    assert "\n" not in str(refused.value) and not any(tmp_path.iterdir())


def test_what_is_not_there_is_refused_in_one_line(run: ls.Run, tmp_path: Path) -> None:
    for wrong, line in (
        (lambda: ls.load(tmp_path), "has no run.json"),
        (lambda: ls.run("quickstrat"), "did you mean quickstart"),
        (lambda: ls.run({"model": {"name_or_path": "x"}}), "^the recipe: data: missing; add it"),
        (lambda: ls.sweep("quickstart", grid={"alpha": cast(Any, 0.5)}), "grid: game.alpha is to be a list of values"),
        (lambda: ls.plan("quickstart", gpu="9999"), "9999"),
        (lambda: ls.plan("quickstart", workers="auto", gpu="T4"), "--workers auto: it counts the GPUs here"),
        (lambda: run.iterate(7), "iterate '7': .* has no such policy; it has base, 0, 1"),
        (lambda: run.generate(["hi"], temperature=-1), "^temperature -1: cannot be used"),
        (lambda: run.generate(["hi"], max_new_tokens=0), "^max_new_tokens: 0 cannot be used"),
        (lambda: run.generate("hi"), "^prompts: give a list"),  # pyright: ignore[reportArgumentType]
        (lambda: run.generate(["long " * 5000]), "tokens and an answer may have .*; shorten it, or lower max_new_tokens$"),
    ):
        with pytest.raises(ls.InputError, match=line):
            wrong()


def test_code_of_a_stranger_needs_a_word_in_pythons_terms(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef prefer(*_): ...\n")
    game = {"game.algorithm": "sppo", "game.oracle": {"name": "function", "function": f"{tmp_path / 'judge.py'}:prefer"}}
    with pytest.raises(ls.InputError, match="would be run here; read it, then add trust=True, which is asked for again"):
        ls.run(settings={**settings(tmp_path), **game})
    assert not (tmp_path / "ran").exists()


def test_text_of_a_stranger_is_not_html(copy: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    folder = (copy / "run").rename(copy / evil.replace("/", ""))
    record, metrics = folder / "run.json", folder / "metrics.jsonl"
    record.write_text(unchecked(record.read_text().replace("iterate 1", evil)))
    metrics.write_text(metrics.read_text().replace("iterate 1", evil))
    found = ls.load(folder)
    assert isinstance(found, ls.Run) and evil in found.table.index
    for shown in (found._repr_html_(), found.table.to_html()):
        assert "&lt;img" in shown and "<img" not in shown
