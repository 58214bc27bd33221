"""Reports of a played game and of sweeps made from it: what they say, and that hostile text and torn files do no harm."""

import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from matplotlib.image import imread
from rich.console import Console
from scipy import stats

from helpers.commands import call
from helpers.page import Page, cells, check_offline
from lowmem_spin.algorithm.roles import Role, role_of_name
from lowmem_spin.cli.play import run
from lowmem_spin.common.checked import read_checked, write_checked
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import json_text, write_json, write_text
from lowmem_spin.common.keys import digest
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.report.intervals import Value, difference, is_yes_or_no, over, quantile, rows_of, within_noise
from lowmem_spin.report.load import read_results, read_run_results, read_sweep
from lowmem_spin.report.page import write_all, write_page, write_picture
from lowmem_spin.report.results import PolicyResults, RunResults, SweepResults
from lowmem_spin.report.summary import run_grid, terminal_table, verdict
from lowmem_spin.runner import run_folder
from lowmem_spin.runner.health import Estimate, Health

HOSTILE = (
    "<script>alert(1)</script> $x_1$ \x1b[31m\x00 &amp; |\u202eevil\u202c | שלום\n"
    "<img src=http://evil.example/x onerror=alert(2)>"
)


@pytest.fixture(scope="module")
def game(quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, its store beside it."""
    folder = tmp_path_factory.mktemp("game")
    rows = [json.loads(line) for line in (quickstart / "heldout.jsonl").read_text().splitlines()[:96]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content: dict[str, Any] = {
        "model": {"name_or_path": str(quickstart / "base")},
        "data": {"path": str(folder / "rows.jsonl")},
        "game": {"pairs": 16, "iterations": 2},
        "generation": {"max_new_tokens": 12},
        "training": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1e-3},
        "evaluation": {"path": str(folder / "rows.jsonl"), "metric": "exact_match", "health_prompts": 24, "compare_sft": True},
        "output": {"dir": str(folder / "run"), "store": str(folder / "store")},
    }
    run(Recipe.model_validate(content), folder, Display(Console(quiet=True)))
    return folder / "run"


@pytest.fixture
def played(game: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(game, tmp_path / "run", symlinks=False))


@pytest.fixture(scope="module")
def reported(game: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder with its page, its table and all pictures; only to be read."""
    folder = Path(shutil.copytree(game, tmp_path_factory.mktemp("reported") / "run", symlinks=True))
    write_all(read_results(folder))
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rewrite(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def sweep(folder: Path, game: Path, scores: dict[tuple[float, Any, int], float | str]) -> Path:
    """A sweep's folder over (alpha, history, seed): the last iterate's exact match, or a state without results."""
    points = []
    for (alpha, history, seed), score in scores.items():
        name = f"alpha-{alpha}_history-{history}_seed-{seed}"
        values = {"game.alpha": alpha, "game.history": history, "seed": seed}
        status = score if isinstance(score, str) else "finished"
        error = "out of memory <b>&" if status == "failed" else None
        points.append({"name": name, "values": values, "dir": f"points/{name}", "status": status, "error": error})
        if isinstance(score, float):
            shutil.copytree(game, folder / "points" / name, symlinks=False)
            lines = records(folder / "points" / name)
            lines[2] |= {"exact_match": score, "gain": score - lines[0]["exact_match"], "rows": {}}
            lines[2]["policy"] = digest(name)
            rewrite(folder / "points" / name, lines)
            record = read_checked(folder / "points" / name / "run.json")
            record["policies"]["iterate 1"] = digest(name)
            (folder / "points" / name / "run.json").write_text(json.dumps(record))
    axes = {"game.alpha": sorted({a for a, _, _ in scores}), "game.history": list(dict.fromkeys(h for _, h, _ in scores))}
    seeds = sorted({seed for _, _, seed in scores})
    (folder / "sweep.json").write_text(json.dumps({"recipe": "quickstart", "axes": axes, "seeds": seeds, "points": points}))
    return folder


def number(mean: float, half: float, digits: int, sign: str = "") -> str:
    return f"{round(mean, digits) + 0.0:{sign}.{digits}f} ±{half:.{digits}f}"


def arm(share: float, count: int) -> float:
    """The longer one of scipy's interval of a share."""
    interval = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    return max(share - interval.low, interval.high - share)


def test_the_table_of_a_run_has_the_numbers_of_metrics(reported: Path) -> None:
    text = (reported / "report.md").read_text()
    lines = records(reported)
    assert len(lines) == 4
    for line in lines:

        def shown(name: str, sign: str = "", share: bool = False, line: dict[str, Any] = line) -> str:
            scale, half = 100 if share else 1, 1.96 * line[f"{name}_se"]
            if name in ("exact_match", "truncated", "identical"):
                half = arm(line[name], line[f"{name}_n"])
            if share and not sign and not half <= line[name] <= 1 - half:
                ends = stats.binomtest(round(line[name] * line[f"{name}_n"]), line[f"{name}_n"]).proportion_ci(method="wilson")
                low, high = (f"{100 * end:.0f}" if end in (0, 1) else f"{100 * end:.1f}" for end in ends)
                return rf"{100 * line[name]:.1f} \[{low}..{high}\]"
            return number(scale * line[name], scale * half, 1 if share else 2, sign)

        drift = [shown(name) for name in ("kl_to_base", "kl_to_previous", "kl_from_base")]
        expected = [line["name"], shown("exact_match", share=True), shown("gain", "+", share=True)]
        expected += [shown("sampled_accuracy", share=True), shown("chosen_logp"), *drift, shown("length")]
        expected += [shown("truncated", share=True), shown("identical", share=True)]
        if line["name"] == "base":
            expected[2], expected[5:8] = "", [""] * 3
        assert cells(text, line["name"]) == expected


def terminal(results: RunResults | SweepResults, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(terminal_table(results))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_terminals_table_is_the_readmes() -> None:
    """Its numbers, rounded as they are, give the README's block again, character by character."""
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    begin, end = (
        next(place for place, line in enumerate(lines) if word in line) for word in ("Held-out results", ": start-up")
    )
    block, policies = lines[begin:end], []
    for line in block[4:]:
        found = [float(one) for one in re.findall(r"[+-]?[\d.]+", line[len("iterate 0") :])]
        if line.startswith("base"):
            found = [*found[:2], 0, 0, *found[2:4], 0, 0, *found[4:]]
        match, match_half, gain, gain_half, sampled, sampled_half, to_base, to_previous, length, cut, same = found
        scores = {"exact_match": (match, match_half), "gain": (gain, gain_half), "sampled_accuracy": (sampled, sampled_half)}
        values = {name: Value(mean / 100, half / 196) for name, (mean, half) in scores.items()}
        values |= {"kl_to_base": Value(to_base, 0.1), "kl_to_previous": Value(to_previous, 0.1), "kl_from_base": Value(1, 0.1)}
        values |= {"chosen_logp": Value(-1, 0.1), "length": Value(length, 0.1)}
        values |= {"truncated": Value(cut / 100, 0.1), "identical": Value(same / 100, 0.1)}
        name = line[:9].strip()
        policies.append(PolicyResults(name, "", role_of_name(name), values, {}, []))
    assert len(policies) == 5
    results = RunResults(
        folder=Path(),
        recipe={},
        recipe_text="",
        record={},
        policies=policies,
        trainings={},
        missing=[],
        benchmarks=[],
    )
    assert terminal(results) == block


def test_a_table_with_wins_fits_a_terminal(played: Path) -> None:
    lines = records(played)
    for line in lines[1:]:
        line |= {"win_rate_to_previous": 0.5181, "win_rate_to_previous_se": 0.0194}
    rewrite(played, lines)
    shown = terminal(read_run_results(played))
    assert max(map(len, shown)) <= 80
    assert "…" not in "".join(shown)
    assert sum("51.8" in line for line in shown) == sum("±3.8" in line for line in shown) == 3


@pytest.mark.parametrize(("categories", "panels"), [(8, 3), (2, 2)])
def test_the_picture_has_the_reports_panels_side_by_side(played: Path, categories: int, panels: int) -> None:
    """Scores, drift, and categories if there are enough for a radar; nothing of the user's is a formula."""
    lines = records(played)
    names = [name for name in lines[0] if name.startswith("exact_match/") and not name.endswith(("_se", "_n"))]
    for line in lines:
        for place, name in enumerate(names):
            value, error = line.pop(name), line.pop(f"{name}_se")
            if place < categories:
                line[f"{name} {HOSTILE}"], line[f"{name} {HOSTILE}_se"] = value, error
    rewrite(played, lines)
    write_picture(read_run_results(played), played / "iterates.png")
    height, width, _ = imread(played / "iterates.png").shape
    assert (width, height) == (pytest.approx(192 * panels * 4.7, abs=1), pytest.approx(192 * (4.4 + 0.19 * 6.2), abs=1))
    drawn = ElementTree.parse(played / "iterates.svg").getroot()  # noqa: S314 our own output
    assert float(drawn.attrib["viewBox"].split()[2]) == pytest.approx(72 * panels * 4.7)
    texts = ["".join(text.itertext()) for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"base", "iterate 0", "iterate 1", "plain SFT"} <= set(texts)


def test_the_gain_is_paired(played: Path) -> None:
    """On the same 96 rows: its error is not that of two independent scores, and the base gains nothing."""
    base, _, last, _ = records(played)
    assert (base["gain"], base["gain_se"]) == (0, 0)
    assert math.isclose(last["gain"], last["exact_match"] - base["exact_match"])
    p, q, rows = base["exact_match"], last["exact_match"], 96
    both = [shared / rows for shared in range(rows + 1)]  # P(both right): the variance has to be that of one of these
    possible = [(p + q - 2 * share - (q - p) ** 2) / (rows - 1) for share in both]
    assert min(abs(last["gain_se"] ** 2 - variance) for variance in possible) < 1e-12


def test_hostile_text_is_shown_and_is_no_markup(played: Path) -> None:
    lines = records(played)
    for line in lines:
        for sample in line["samples"]:
            sample |= {"prompt": HOSTILE, "data": HOSTILE, "answer": HOSTILE}
        for name in [name for name in line if name.startswith("exact_match/") and not name.endswith(("_se", "_n"))][:3]:
            line[name.replace("exact_match/", f"exact_match/{HOSTILE}")] = line[name]
            line[name.replace("exact_match/", f"exact_match/{HOSTILE}") + "_se"] = 0.0
    rewrite(played, lines)
    write_all(read_results(played))
    page = Page(played / "report.html")
    check_offline(page)
    source = (played / "report.html").read_text(encoding="utf-8")
    assert not re.findall("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", source)
    assert page.words.count("<script>alert(1)</script> $x_1$ \\x1b[31m\\x00 &amp; |\\u202eevil\\u202c | שלום") >= 2 * 8
    assert "\n<img src=http://evil.example/x onerror=alert(2)>" in page.words


def test_the_page_stands_alone_and_says_what_was_played(reported: Path) -> None:
    page = Page(reported / "report.html")
    check_offline(page)
    for sample in records(reported)[-1]["samples"]:
        assert sample["prompt"] in page.words  # kept with the data: sort: ..., max: ...
        assert sample["data"] in page.words
        assert sample["answer"] in page.words
    record = read_checked(reported / "run.json")
    assert all(key in page.words for key in record["policies"].values())
    assert (reported / "recipe.yaml").read_text() in page.words
    assert record["seconds"]["train"] > 0
    pictures = {path.name for path in reported.glob("report_*.png")}
    assert {"report_score.png", "report_radar.png", "report_kl.png", "report_training_margin.png"} <= pictures
    assert page.tags.count("svg") == len(pictures)


def test_the_prompts_shown_are_those_of_the_rows(played: Path, game: Path) -> None:
    rows = [json.loads(line) for line in (game.parent / "rows.jsonl").read_text().splitlines()]
    given = {row["prompt"]: row["completion"] for row in rows}
    samples = records(played)[0]["samples"]
    assert len({sample["prompt_id"] for sample in samples}) == 8
    assert all(given[sample["prompt"]] == sample["data"] for sample in samples)


def test_the_seconds_of_a_game_add_up_over_its_runs(game: Path) -> None:
    before = json.loads((game / "run.json").read_text())
    (game / "report.html").unlink()
    again = Recipe.model_validate(yaml.safe_load((game / "recipe.yaml").read_text()))
    run(again, game.parent, Display(Console(quiet=True)))
    after = json.loads((game / "run.json").read_text())
    assert after["policies"] == before["policies"]
    assert {kind: after["seconds"][kind] for kind in ("generate", "score", "train")} == {
        kind: before["seconds"][kind] for kind in ("generate", "score", "train")
    }
    assert after["seconds"]["report"] > before["seconds"]["report"] > 0
    assert (game / "report.html").is_file()


def test_a_run_without_roles_is_read_by_its_names(game: Path, reported: Path, tmp_path: Path) -> None:
    """A folder as earlier versions left it: the same page and policies; playing it again adds to its files, takes nothing."""
    expected = read_run_results(reported)
    old = Path(shutil.copytree(reported, tmp_path / "run", symlinks=True))
    record = read_checked(old / "run.json")
    del record["roles"]
    (old / "run.json").write_text(json.dumps(record))
    lines = records(old)
    rewrite(old, [{name: value for name, value in line.items() if name not in ("role", "iteration")} for line in lines])
    assert read_run_results(old).policies == expected.policies
    assert_same_bytes(write_all(read_run_results(old)), reported)
    assert [policy.name for policy in expected.played] == ["base", "iterate 0", "iterate 1"]
    assert [policy.name for policy in expected.baselines] == ["plain SFT"]
    assert run_folder.read_run_folder(old).parts == run_folder.read_run_folder(game).parts
    assert policies_found(old) == policies_found(game)
    asked = yaml.safe_load((old / "recipe.yaml").read_text())
    asked["output"]["dir"] = str(old)
    rewrite(old, [{name: value for name, value in line.items() if name not in ("held_out", "rows")} for line in records(old)])
    pages = [path for path in old.glob("report*") if path.suffix in (".html", ".png")]
    before = [path.stat().st_ino for path in pages]
    run(Recipe.model_validate(asked), old.parent, Display(Console(quiet=True)))
    assert records(old) == lines
    assert before and [path.stat().st_ino for path in pages] == before, "pictures of the same numbers were thrown away"
    assert json.loads((old / "run.json").read_text())["roles"] == json.loads((game / "run.json").read_text())["roles"]


def test_what_the_scores_are_of_each_row_is_kept(reported: Path) -> None:
    """So the difference of two policies is known as surely as the gain, which the game took row by row."""
    results = read_run_results(reported)
    for policy in results.policies[1:]:
        apart, gain = difference({0: policy.score}, {0: results.base.score}), policy.values["gain"]
        assert (apart.mean, apart.error) == pytest.approx((gain.mean, gain.error)) and gain.error > 0


def policies_found(folder: Path) -> list[Any]:
    """Whatever a command may ask a run folder for."""
    one = run_folder.read_run_folder(folder)
    store = run_folder.open_store(one, print)
    asked = [None, "base", "0", "1", "iterate 1", "SFT 1"]
    found = [(policy.name, policy.key, policy.adapter) for policy in (run_folder.find_policy(one, store, a) for a in asked)]
    names = [name for name, _, _ in found]
    assert names == ["iterate 1", "base", "iterate 0", "iterate 1", "iterate 1", "SFT 1"]
    return [*found, run_folder.trained_iterates(one, store)]


def test_names_mean_nothing_where_there_are_roles(played: Path) -> None:
    """Policies renamed in both files are still the base, the iterates and what they are compared with."""
    before = read_run_results(played)
    record = read_checked(played / "run.json")
    called = {"base": "start", "iterate 0": "SFT 7", "iterate 1": "iterate 5"}
    for part in ("policies", "roles"):
        record[part] = {called.get(name, name): value for name, value in record[part].items()}
    record["stopped"] = {"after": "SFT 7", "keep": "start", "why": "a test"}
    (played / "run.json").write_text(json.dumps(record))
    rewrite(
        played, [{**line, "name": called.get(line["name"], line["name"])} for line in records(played) if line["iteration"] != 1]
    )
    after = read_run_results(played)
    assert [policy.name for policy in after.played] == ["start", "SFT 7"]
    assert [policy.name for policy in after.baselines] == ["plain SFT"]
    assert after.trainings == {"SFT 7": before.trainings["iterate 0"]}
    one = run_folder.read_run_folder(played)
    store = run_folder.open_store(one, print)
    assert list(run_folder.trained_iterates(one, store)) == ["0"]
    assert run_folder.find_policy(one, store, "1").name == "iterate 5"
    assert run_folder.find_policy(one, store, None) == run_folder.StoredPolicy("start", one.inputs.base, None)


def assert_same_bytes(written: list[Path], folder: Path) -> None:
    assert {path.name: path.read_bytes() for path in written} == {
        path.name: (folder / path.name).read_bytes() for path in written
    }


def test_the_same_results_give_the_same_bytes(reported: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(reported, tmp_path / "run", symlinks=True))
    assert_same_bytes(write_all(read_results(again)), reported)


def test_nothing_is_written_through_a_link(played: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    written = ["report.html", "report.md", "report_score.png", "iterates.png", "metrics.jsonl", "run.json"]
    results = read_run_results(played)
    for name in written:
        (played / name).unlink(missing_ok=True)
        (played / name).symlink_to(mine)
    write_all(results)
    write_picture(results, played / "iterates.png")
    write_text(played / "metrics.jsonl", "")
    write_json(played / "run.json", {})
    assert mine.read_text() == "mine"
    assert not any((played / name).is_symlink() for name in written)
    assert not [path for path in played.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("unknown", [None, math.nan])  # as earlier versions wrote it
def test_a_number_that_is_not_known_is_read_and_never_shown_as_one(played: Path, unknown: float | None) -> None:
    kinds = ("gain_se", "kl_to_base_se", "engine_gap", "engine_gap_se", "win_rate_to_base", "win_rate_to_base_se")
    rewrite(played, [line | dict.fromkeys(kinds, unknown) for line in records(played)])
    results = read_run_results(played)
    shown = "\n".join([run_grid(results).markdown(), *terminal(results), *verdict(results)])
    assert not re.search(r"\b(nan|none|null)\b", shown, re.IGNORECASE) and "| ? |" in shown
    policy = next(one for one in results.policies if one.name == "iterate 1")
    assert math.isnan(policy.values["kl_to_base"].half) and math.isnan(policy.values["win_rate_to_base"].mean)


def test_a_number_that_is_none_is_null_in_what_is_written() -> None:
    """One held-out prompt has no spread."""
    one = Estimate(np.array([0.5]))
    health = Health("base", Role.BASE, None, "k", "rows", None, one, one, one, one, one, Estimate(np.array([np.nan])), None)

    def refuse(number: str) -> None:
        raise AssertionError(number)

    found = json.loads(json_text(health.record(health)), parse_constant=refuse)
    assert (found["length"], found["length_se"], found["engine_gap"], found["gain_se"]) == (0.5, None, None, None)
    assert json.loads(json_text([math.inf, {"a": (-math.inf, 1.5)}]), parse_constant=refuse) == [None, {"a": [None, 1.5]}]


def test_a_run_elsewhere_without_its_store_says_what_is_missing(played: Path) -> None:
    shutil.rmtree(played / "iterates")
    resolved = yaml.safe_load((played / "recipe.yaml").read_text())
    resolved["output"]["store"] = "gone"
    (played / "recipe.yaml").write_text(yaml.safe_dump(resolved))
    results = read_run_results(played)
    assert len(results.missing) == 1
    assert "no training curves of iterate 0, iterate 1" in results.missing[0]
    write_all(results)
    assert results.missing[0] in Page(played / "report.html").words
    assert not list(played.glob("report_training_*.png"))


def test_a_sweep_compares_configurations_over_their_seeds(game: Path, tmp_path: Path) -> None:
    scores = {(0.5, 1): [0.50, 0.60, 0.54], (1.0, 1): [0.62, 0.70, 0.65], (0.5, "inf"): [0.63, 0.66, 0.66]}
    points = {(*cell, seed): score for cell, values in scores.items() for seed, score in enumerate(values)}
    folder = sweep(tmp_path, game, points | {(1.0, "inf", 0): "failed", (1.0, "inf", 1): "waiting"})  # type: ignore[operator]
    results = read_sweep(folder)
    write_all(results)
    text = (folder / "report.md").read_text()
    page = Page(folder / "report.html")
    check_offline(page)
    best = np.array(scores[1.0, 1])
    for (alpha, history), values in scores.items():
        row = cells(text, f"{alpha} | {history} | 3")
        reach = float(stats.t.ppf(0.975, 2))
        assert row[3] == number(100 * float(np.mean(values)), 100 * reach * stats.sem(values), 1)
        if (alpha, history) != (1.0, 1):
            apart = np.array(values) - best
            noise = ", within noise" if stats.ttest_rel(values, best).pvalue > 0.05 else ""
            assert row[4] == number(100 * apart.mean(), 100 * reach * stats.sem(apart), 1, "+") + noise
    assert cells(text, "1.0 | 1 | 3")[4] == "the best"
    noisy = ["within noise" in cells(text, f"0.5 | {history} | 3")[4] for history in (1, "inf")]
    assert noisy == [False, True]
    assert cells(text, "1.0 | inf | 0 of 2, 1 failed, 1 waiting")[3:] == [""] * 9
    assert cells(text, "alpha-1.0\\_history-inf\\_seed-0")[1:] == ["failed", "out of memory &lt;b&gt;&amp;"]
    assert "out of memory <b>&" in page.words
    reach = float(stats.t.ppf(0.975, 2)) * stats.sem(best)
    for name, line in (("base", records(game)[0]), ("plain SFT", records(game)[3])):  # alike in all games, of one seed
        share, half = line["exact_match"], arm(line["exact_match"], line["exact_match_n"])
        apart, noise = share - best.mean(), reach if name == "base" else float(np.hypot(half, reach))  # it is that of each seed
        row = cells(text, f"{name} |  | 1")
        assert row[3] == number(100 * share, 100 * half, 1) and row[5] == ""
        assert row[4] == number(100 * apart, 100 * noise, 1, "+") + (", within noise" if abs(apart) <= noise else "")
        assert (row[7] == "") == (name == "base")  # the base is 0 from itself
    assert (folder / "report_heatmap.png").is_file()
    assert len([tag for tag, name, _ in page.attributes if (tag, name) == ("a", "href")]) == 9  # to the finished points' pages
    shown = terminal(results)
    assert max(map(len, shown)) <= 80
    assert any(re.match(r"1.0 +inf +0 of 2, 1", line) for line in shown)


def test_a_sweep_says_which_worker_did_what(game: Path, tmp_path: Path) -> None:
    folder = sweep(tmp_path, game, {(0.5, 1, 0): 0.5, (1.0, 1, 0): 0.6})
    write_page(read_results(folder))
    assert "computed steps of these games" not in Page(folder / "report.html").words
    shares = [
        {"worker": 1, "machine": "one", "device": "Tesla <T4>", "steps": {"generate": 2, "train": 1}, "seconds": 90.0},
        {"worker": 2, "machine": "", "device": "", "steps": {}, "seconds": 30.0},
    ]
    write_checked(folder / "workers.json", {"games": "x", "seconds": 120.0, "workers": shares})
    write_page(read_results(folder))
    page = Page(folder / "report.html")
    check_offline(page)
    assert "2 workers computed steps of these games in 2.0 min, waits included." in page.words
    found = re.findall(r"(1)\s*(one, Tesla <T4>)\s*(2 generate, 1 train)\s*(3)\s*(1.5 min)\s*(75%)", page.words)
    assert len(found) == 1 and re.search(r"2\s*not known\s*0\s*30.0 s\s*25%", page.words)
    write_json(folder / "workers.json", {"games": "x", "seconds": -1, "workers": shares})
    results = read_results(folder)
    line = f"nothing on which worker did what: {folder / 'workers.json'} is no account of workers; delete it"
    assert results.missing[-1] == line
    write_page(results)
    assert line in Page(folder / "report.html").words


def test_a_sweep_with_nothing_finished_is_a_page_too(game: Path, tmp_path: Path) -> None:
    folder = sweep(tmp_path, game, {(0.5, 1, 0): "failed", (1.0, 1, 0): "waiting"})
    write_all(read_results(folder))
    words = Page(folder / "report.html").words
    assert "No game is finished yet." in words
    assert "out of memory <b>&" in words


def test_intervals_against_scipy() -> None:
    assert all(abs(quantile(freedom) / stats.t.ppf(0.975, freedom) - 1) < 1e-3 for freedom in range(1, 300))
    means = [0.3, 0.5, 0.7, 0.35]
    low, high = stats.t.interval(0.95, 3, np.mean(means), stats.sem(means))
    found = over([Value(mean, 0.01) for mean in means])
    assert np.allclose([found.mean - found.half, found.mean + found.half], [low, high], atol=1e-3)
    one, other = {1: Value(0.5, 0.03)}, {1: Value(0.6, 0.04), 2: Value(0.9, 0.04)}
    apart = difference(one, other)  # on the one seed that both have, errors as if independent
    assert np.allclose([apart.mean, apart.error], [-0.1, 0.05])
    assert not within_noise(apart)
    assert within_noise(Value(0.0979, 0.05))


@pytest.mark.parametrize(("share", "count"), [(0.98, 50), (0.5, 50), (0.01, 100), (0.999, 500), (0.9, 20)])
def test_the_interval_of_a_share_holds_it_as_often_as_it_says(share: float, count: int) -> None:
    """What is printed is symmetrical and so holds it a little oftener; by standard errors it was 64% for 0.98 and 50."""
    drawn = np.random.default_rng(0).binomial(count, share, 4000)
    found = [Value.read(one, math.sqrt(one * (1 - one) / (count - 1)), count) for one in drawn / count]
    assert all(value.half > 0 for value in found)
    assert np.mean([abs(value.mean - share) <= value.half for value in found]) > 0.93
    assert found[0].half == pytest.approx(arm(drawn[0] / count, count), abs=1e-4)
    assert all(0 <= low <= value.mean <= high <= 1 for value in found for low, high in [value.interval])  # as it is drawn


def test_numbers_that_are_no_yes_or_no_keep_their_standard_error() -> None:
    graded = np.random.default_rng(0).uniform(size=50)
    assert Value.read(graded.mean(), stats.sem(graded), 50).half == pytest.approx(1.96 * stats.sem(graded))
    assert Value.read(0.98, 0.02).half == pytest.approx(1.96 * 0.02)  # a record of an earlier version has no counts


def test_a_number_that_is_no_share_has_no_shares_interval(played: Path) -> None:
    """A KL of exactly 0 has the standard error of a share that is 0."""
    rows = {
        name: rows_of({"kl_to_base_n": 9, "sampled_accuracy_n": 9, "exact_match/sort_n": 9, "truncated_n": 9}, name)
        for name in ("kl_to_base", "sampled_accuracy", "exact_match/sort", "truncated", "identical")
    }
    assert rows == {"kl_to_base": None, "sampled_accuracy": None, "exact_match/sort": 9, "truncated": 9, "identical": None}
    assert [is_yes_or_no(name) for name in ("acc_norm,none", "perplexity,none", "f1")] == [True, False, False]
    base = read_run_results(played).policies[0]
    assert base.values["kl_to_base"].half == 0 < base.values["truncated"].half


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (shutil.rmtree, "is no folder"),
        (lambda run: (run / "run.json").unlink(), "is neither a run nor a sweep"),
        (lambda run: (run / "run.json").write_text("{"), "run.json: is not valid JSON"),
        (
            lambda run: (run / "run.json").write_text('{"policies": {"base": "k"}, "roles": {"base": 1}}'),
            "its roles do not read back",
        ),
        (lambda run: rewrite(run, [{**r, "role": "king"} for r in records(run)]), "line 1 is not a whole record"),
        (lambda run: rewrite(run, [{**r, "iteration": "0"} for r in records(run)]), "line 1 is not a whole record"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl: missing; run the recipe again"),
        (lambda run: (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:-300]), "line 4 is not a whole"),
        (lambda run: rewrite(run, records(run)[:3]), "no record of plain SFT"),
        (lambda run: rewrite(run, [{**r, "policy": "other"} for r in records(run)]), "another game's results"),
        (lambda run: rewrite(run, [{**r, "length": None} for r in records(run)]), "line 1 is not a whole record"),
        (lambda run: rewrite(run, [{**r, "rows": 5} for r in records(run)]), "line 1 is not a whole record"),
        (
            lambda run: rewrite(run, [{**r, "rows": {"chosen_logp": [1.0]}} for r in records(run)]),
            "line 1 is not a whole record",
        ),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff"), "not UTF-8"),
        (lambda run: (run / "recipe.yaml").write_text("- 1"), "not a recipe"),
        (lambda run: (run / "sweep.json").write_text('{"recipe": "x"}'), "sweep.json: axes: Field required"),
    ],
)
def test_folders_that_do_not_read_back_are_one_line(played: Path, harm: Any, line: str) -> None:
    harm(played)
    with pytest.raises(InputError) as error:
        read_results(played)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_torn_results_end_the_command_with_2(played: Path) -> None:
    done = call("report", played)
    assert done.returncode == 0, done.stderr
    assert f"page     {played / 'report.html'}" in done.stdout
    (played / "metrics.jsonl").write_text('{"name": ')
    done = call("report", played)
    assert done.returncode == 2
    line = "line 1 is not a whole record of a policy; run the recipe again to finish the game"
    assert done.stderr == f"error: {played / 'metrics.jsonl'}: {line}\n"


def test_what_may_mislead_is_said_on_the_page_and_in_the_table(game: Path, tmp_path: Path) -> None:
    """Of a run of an earlier version too: from its numbers and its store's rows."""
    import pyarrow.parquet as pq

    folder = Path(shutil.copytree(game.parent, tmp_path / "game", symlinks=True)) / "run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    cut = [line | ({"truncated": 0.94} if line["name"] == "iterate 1" else {}) for line in lines]
    before = Page(write_all(read_run_results(folder))[0]).attributes.count(("p", "class", "caution"))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in cut))
    rows = pq.read_table(folder.parent / "store" / "data" / f"{read_run_results(folder).record['data'][0]}.parquet")
    tokens = math.ceil(np.percentile([len(answer) for answer in rows["chosen"].to_pylist()], 95))
    assert read_run_results(folder).answer_tokens == tokens
    write_all(read_run_results(folder))
    said = "Samples are truncated at generation.max_new_tokens 12 (94% of iterate 1's)"
    page = Page(folder / "report.html")
    assert page.attributes.count(("p", "class", "caution")) == before + 1
    assert said in page.words and f"up to {tokens} tokens" in page.words
    assert said.replace("_", "\\_") in (folder / "report.md").read_text()
    write_checked(folder / "run.json", read_checked(folder / "run.json") | {"data": []})  # as the first versions wrote it
    assert read_run_results(folder).answer_tokens is None
