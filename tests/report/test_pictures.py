"""What pictures show is what was measured: drawings are read back by their ticks, and compared with scipy and the tables."""

import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from helpers.drawn import Drawn
from lowmem_spin.algorithm.roles import role_of_name
from lowmem_spin.common.display import readable
from lowmem_spin.report import radars
from lowmem_spin.report.answers import before_after, on_one_line
from lowmem_spin.report.cautions import caution_lines
from lowmem_spin.report.grid import Grid
from lowmem_spin.report.heatmap import around, steps
from lowmem_spin.report.intervals import Value
from lowmem_spin.report.page import write_page
from lowmem_spin.report.panels import run_panels, sweep_panels
from lowmem_spin.report.pictures import main_picture, picture_title, played_on
from lowmem_spin.report.plots import BASELINE, COLORS, DRAWN, GREY, Panel
from lowmem_spin.report.results import PointStatus, PolicyResults, RunResults, SweepFile, SweepResults
from lowmem_spin.report.summary import run_grid, sweep_grid, sweep_verdict
from lowmem_spin.report.svg import drawing, inline, standalone, style
from lowmem_spin.report.training_curves import training_panels

RECIPE = {
    "model": {"name_or_path": "/models/org/tiny"},
    "data": {"path": "mine/rows.jsonl"},
    "game": {"algorithm": "alpha-spin"},
}
SAMPLES = [
    {"prompt_id": "a", "prompt": "one", "data": "1", "answer": "1"},
    {"prompt_id": "b", "prompt": "two", "data": "2", "answer": "<2>"},
]


def policy(name: str, score: float, key: str = "", categories: dict[str, Value] | None = None) -> PolicyResults:
    values = {
        "exact_match": Value(score, 0.01),
        "sampled_accuracy": Value(score / 2, 0.01),
        "chosen_logp": Value(-1 - score, 0.1),
    }
    values |= {n: Value(score, 0.1) for n in ("kl_to_base", "kl_to_previous", "kl_from_base", "length", "identical")}
    values |= {"truncated": Value(0.0, 0.0), "gain": Value(score - 0.2, 0.01)}
    answered = [{**sample, "answer": sample["answer"] if name == "base" else sample["data"]} for sample in SAMPLES]
    return PolicyResults(name, key or name, role_of_name(name), values, dict(categories or {}), answered)


def run(scores: list[float], seed: int = 0, sft: str = "sft", shape: dict[str, Value] | None = None) -> RunResults:
    names = ["base", *(f"iterate {place}" for place in range(len(scores) - 1))]
    policies = [policy(n, s, f"{n} {s} {seed}" if n != "base" else n, shape) for n, s in zip(names, scores, strict=True)]
    policies.append(policy("plain SFT", 0.95, f"{sft} {seed}", shape))
    return RunResults(
        folder=Path("mine"),
        recipe={**RECIPE, "seed": seed},
        recipe_text="",
        record={},
        policies=policies,
        trainings={},
        missing=[],
        benchmarks=[],
    )


def sweep(axes: dict[str, list[Any]], scores: dict[tuple[Any, ...], list[float]], **options: Any) -> SweepResults:
    """The last iterates' scores, one for each seed, by their places on the axes."""
    points, runs = [], {}
    for place, several in scores.items():
        for seed, score in enumerate(several):
            values = dict(zip(axes, place, strict=True))
            point = PointStatus(name=f"{place} {seed}", values={**values, "seed": seed}, dir="", status="finished")
            points.append(point)
            runs[point.name] = run([0.2, 0.5, score], seed, **options)
    return SweepResults(Path("mine-sweep"), SweepFile(recipe="mine", axes=axes, seeds=[0, 1, 2], points=points), runs)


def drawn(panel: Panel) -> Drawn:
    with style():
        return Drawn(drawing(panel.figure("of")))


def panel(results: RunResults | SweepResults, name: str) -> Panel:
    panels = run_panels(results) if isinstance(results, RunResults) else sweep_panels(results)
    return next(one for one in panels.panels if one.name == name)


ALPHAS, HISTORIES = [0.5, 0.9, 1.0], [1, "inf"]
SEEDS = {
    (alpha, history): [0.80 + 0.1 * alpha * (history == 1) + 0.01 * seed * (1 + alpha) for seed in range(3)]
    for alpha in ALPHAS
    for history in HISTORIES
}


def test_a_sweeps_main_picture_has_the_means_and_scipys_intervals_over_alpha() -> None:
    results = sweep({"game.alpha": ALPHAS, "game.history": HISTORIES}, SEEDS)
    picture = drawn(panel(results, "main_exact_match"))
    main, below = picture.axes  # the base is so far away that the axis is broken
    for history, color in zip(HISTORIES, COLORS, strict=False):
        found = [100 * np.array(SEEDS[alpha, history]) for alpha in ALPHAS]
        (line,) = [line for line in main.lines(color) if len(line) == 3]
        assert line == pytest.approx(np.array([ALPHAS, [seeds.mean() for seeds in found]]).T, abs=0.02)
        (band,) = main.areas(color)
        for alpha, seeds in zip(ALPHAS, found, strict=True):
            reach = stats.t.interval(0.95, 2, seeds.mean(), stats.sem(seeds))
            edge = band[np.abs(band[:, 0] - alpha) < 1e-3][:, 1]
            assert [edge.min(), edge.max()] == pytest.approx(reach, abs=0.03)
    assert picture.legend == ["history 1", "history inf"]  # in the order of the table
    assert main.tick_labels("x") == [] and below.tick_labels("x") == ["0.5", "0.9", "1.0"]
    assert "base 20.0" in below.texts and below.tick_labels("y") == ["20"]
    assert "plain SFT 95.0" in main.texts
    (sft,) = main.lines(BASELINE)
    assert sft[:, 1] == pytest.approx([95, 95], abs=0.02)
    assert {"exact match, %", "exact match against alpha"} <= set(picture.texts)


def test_games_that_no_number_orders_stand_by_name_as_in_the_table() -> None:
    names = ["plain", "a variant with a name that is longer than the others"]
    results = sweep({"variant": names}, {(name,): [0.7 + 0.1 * place] for place, name in enumerate(names)})
    picture = drawn(panel(results, "main"))
    assert picture.axes[0].tick_labels("y") == ["plain", "a variant with a name that is longer th…"]
    assert [row[0] for row in sweep_grid(results).rows] == [*names, "base", "plain SFT"]
    assert {"base 20.0", "plain SFT 95.0"} <= set(picture.legend)
    one, other = run([0.2, 0.7], sft="sft of 10"), run([0.2, 0.8], sft="sft of 20")
    other.policies[-1].values["exact_match"] = Value(0.5, 0.01)
    differing = SweepResults(Path(), results.file, dict(zip(results.runs, (one, other), strict=True)))
    assert [row[0] for row in sweep_grid(differing).rows] == [*names, "base"]
    legend = drawn(panel(differing, "main")).legend
    assert legend.count("plain SFT") == 2 and not any(
        re.fullmatch(r"plain SFT [\d.]+", name) for name in legend
    )  # no mean of two


def test_name_by_name_there_is_room_for_more_games_than_curves_can_show(tmp_path: Path) -> None:
    names = [f"variant {place}" for place in range(DRAWN + 3)]
    results = sweep({"variant": names}, {(name,): [0.3 + 0.02 * place] for place, name in enumerate(names)})
    assert drawn(panel(results, "main")).axes[0].tick_labels("y") == names
    runs = {name: replace(one, record={"policies": {}}) for name, one in results.runs.items()}
    many = replace(results, folder=tmp_path, runs=runs)
    words = write_page(many).read_text()
    assert words.count(f"Only the best {DRAWN} of {len(names)} configurations are drawn.") == 1  # where there are curves
    assert words.index("<h2>Scores</h2>") < words.index("Only the best")


def test_games_that_end_alike_are_not_said_to_lead() -> None:
    results = sweep({"variant": ["a", "b", "c"]}, {("a",): [0.7], ("b",): [0.8], ("c",): [0.8]})
    assert sweep_verdict(results)[0] == (
        "2 of the 3 configurations, b among them, end with the same highest exact match, in percent: 80.0 ±2.0."
    )
    alike = sweep({"variant": ["a", "b"]}, {("a",): [0.8], ("b",): [0.8]})
    assert sweep_verdict(alike)[0] == "Both configurations end with the same exact match, in percent: 80.0 ±2.0."


def test_a_best_game_that_fine_tuning_or_the_base_is_not_behind_is_said_to_be() -> None:
    ahead = sweep({"game.alpha": [0.5, 1]}, {(0.5,): [0.7], (1,): [0.8]})
    assert sweep_verdict(ahead)[1:] == ["The other is further from it than noise.", "plain SFT is above alpha 1 (+15.0 ±2.8)."]
    worse = sweep({"game.alpha": [0.5, 1]}, {(0.5,): [0.1], (1,): [0.15]})
    assert "base is above alpha 1 (+5.0 ±2.0)." in sweep_verdict(worse)
    level = sweep({"game.alpha": [0.5, 1]}, {(0.5,): [0.1], (1,): [0.21]})
    assert "base differs from alpha 1 by no more than noise (-1.0 ±2.0)." in sweep_verdict(level)


def test_what_the_games_of_a_sweep_began_with_has_a_row_and_is_compared() -> None:
    results = sweep({"variant": ["a", "b"]}, {("a",): [0.7], ("b",): [0.8]})
    for one in results.runs.values():
        one.policies.insert(1, policy("warm start", 0.9))
    assert [row[0] for row in sweep_grid(results).rows][2:] == ["base", "warm start", "plain SFT"]
    assert "warm start is above b (+10.0 ±2.8)." in sweep_verdict(results)
    assert {"warm start 90.0", "plain SFT 95.0"} <= set(drawn(panel(results, "main")).legend)


def test_the_base_is_as_far_behind_the_best_as_that_has_gained() -> None:
    """On the same rows, which a difference of two means would forget: 0.60 ± 0.02, not ± 0.03."""
    results = sweep({"game.alpha": [0.5, 1]}, {(0.5,): [0.7], (1,): [0.8]})
    rows = {row[0]: row for row in sweep_grid(results).rows}
    assert rows["base"][3] == "-60.0 ±2.0" and rows["plain SFT"][3] == "+15.0 ±2.8"


def test_where_there_is_one_seed_it_is_said_what_its_rows_do_not_tell() -> None:
    def said(scores: dict[tuple[Any, ...], list[float]]) -> bool:
        return any(
            "Another seed may change the order" in line for line in caution_lines(sweep({"game.alpha": [0.5, 1]}, scores))
        )

    assert said({(0.5,): [0.7], (1,): [0.8]}) and said({(0.5,): [0.7, 0.6], (1,): [0.8]})
    assert not said({(0.5,): [0.7, 0.6], (1,): [0.8, 0.9]}) and not said({(1,): [0.8]})


def test_a_runs_picture_has_the_policies_of_the_table_in_their_order() -> None:
    results = run([0.2, 0.6, 0.9])
    picture = drawn(panel(results, "score"))
    assert [*picture.axes[0].tick_labels("x"), "plain SFT"] == [row[0] for row in run_grid(results).rows]
    assert picture.texts.count("plain SFT") == 2  # beside a dotted line for each of the two scores
    with style():
        whole = Drawn(drawing(main_picture(results, run_panels(results).panels, picture_title(results))))
    said = "the first of 2 kept prompts that iterate 1 answers as the data does and the base otherwise"
    place = whole.texts.index(f"Before and after: {said}")
    assert whole.texts[place + 1 : place + 9] == ["prompt", "two", "base", "<2>", "iterate 1", "2", "the data", "2"]
    assert any("org/tiny · mine/rows.jsonl · lowmem-spin" in text for text in whole.texts)


def test_a_picture_as_a_file_is_readable_on_light_and_dark_and_says_what_it_is_of() -> None:
    results = run([0.2, 0.6, 0.9])
    with style():
        raw = drawing(panel(results, "kl").figure(played_on(results)))
    root = ElementTree.fromstring(standalone(raw, "a <title>"))  # noqa: S314 our own output
    said = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "org/tiny · mine/rows.jsonl · lowmem-spin" in said
    assert "prefers-color-scheme: dark" in "".join(root.find("{http://www.w3.org/2000/svg}style").itertext())  # type: ignore[union-attr]
    assert root.find("{http://www.w3.org/2000/svg}title").text == "a <title>"  # type: ignore[union-attr]
    page = inline(raw, "kl-", "title")
    assert "lowmem-spin" not in page and "<style" not in page  # a page says so once, and has its own
    assert "currentColor" in page


def shape(**means: float) -> dict[str, Value]:
    return {name: Value(mean, 0.02) for name, mean in means.items()}


def test_shapes_that_are_equal_within_noise_are_drawn_once_or_not_at_all() -> None:
    near = run([0.2, 0.5, 0.6], shape=shape(a=0.9, b=0.92, c=0.95))
    panels, said = radars.of_run(near)
    assert panels == [] and said == ["No radar: in every category all policies are within noise of the base."]
    twelve = sweep(
        {"game.alpha": list(range(12))}, {(alpha,): [0.9] for alpha in range(12)}, shape=shape(a=0.9, b=0.92, c=0.95)
    )
    pictures = sweep_panels(twelve)
    names = [one.name for one in pictures.panels if one.name.startswith("radar")]
    assert names == ["radar_0"]
    assert "No radar of the last iterates" in pictures.notes["Scores"][0]
    caption = panel(twelve, "radar_0").caption
    assert all(f"alpha {alpha}" in caption for alpha in range(12)) and "Centre 90%, rim 100%." in caption
    twelve.runs["(3,) 0"].last.categories["b"] = Value(0.3, 0.02)
    apart = sweep_panels(twelve)
    assert [one.name for one in apart.panels if one.name.startswith("radar")] == ["radar", "radar_0", "radar_3"]
    assert apart.notes["Scores"] == []


def test_another_metric_is_drawn_under_its_own_name_and_in_its_own_unit() -> None:
    def measured_by(metric: str) -> RunResults:
        found = run([0.2, 0.5, 0.6], shape=shape(a=0.2, b=0.3, c=0.4))
        for one in found.policies:
            one.values[metric] = one.values.pop("exact_match")
            del one.values["sampled_accuracy"]
        found.last.categories["a"] = Value(0.8, 0.02)
        return found

    within = measured_by("contains")
    caption = panel(within, "radar").caption
    assert caption.startswith("Contains by category, policy by policy.") and "Exact" not in caption
    share, nats = drawn(panel(within, "score")), drawn(panel(within, "logprob"))
    assert ["%" in share.texts, "nats" in share.texts] == [True, False] == ["nats" in nats.texts, "%" in nats.texts]
    assert radars.of_run(measured_by("function")) == ([], []), "numbers that are no shares have no rim of 100%"
    mixed: dict[str, RunResults] = dict(
        zip(("one", "other"), (within, run([0.2, 0.5, 0.6], shape=shape(a=0.2, b=0.3, c=0.4))), strict=True)
    )
    points = [PointStatus(name=name, values={"run": name, "seed": 0}, dir="", status="finished") for name in mixed]
    both = SweepResults(Path(), SweepFile(recipe="comparison", axes={"run": []}, seeds=[], points=points), mixed)
    assert not [one for one in sweep_panels(both).panels if one.name.startswith("radar")], "two metrics share no shape"
    assert [heading for heading in sweep_grid(both).headings if heading.startswith("gain")] == [], (
        "nor are their gains of one thing"
    )


def test_a_radar_is_zoomed_to_its_numbers() -> None:
    drawn_from = [
        radars.Series("one", shape(a=0.93, b=0.97, c=0.99), GREY),
        radars.Series("two", shape(a=0.6, b=0.97, c=1.0), GREY),
    ]
    assert radars.radar("Scores", "radar", "Said.", drawn_from).caption == "Said. Centre 60%, rim 100%."
    assert radars.radar("Scores", "radar", "Said.", [radars.Series("low", shape(a=0.02, b=0.31), GREY)]).caption.endswith(
        "rim 40%."
    )


@pytest.mark.parametrize("seed", range(20))
def test_steps_of_colour_are_as_wide_as_the_noise(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values, noise = generator.normal(90, 3, (2, 6)), float(generator.uniform(0.05, 6))
    edges = steps(values, noise)
    widths = np.diff(edges)
    assert widths == pytest.approx(np.full(len(widths), max(noise, np.ptp(values) / 9)))
    assert edges[0] <= values.min() <= values.max() <= edges[-1] and len(widths) <= 10
    places = np.digitize(values, edges)
    for one, place in zip(values.flat, places.flat, strict=True):
        assert all(abs(one - other) <= widths[0] for other in values[places == place])  # one colour: within noise


def test_what_is_within_noise_of_each_other_has_one_colour_where_the_rest_is_further_away() -> None:
    edges = steps(np.array([[98.3, 99.0], [98.1, 97.9], [np.nan, 95.0]]), 0.7)
    near, best, worst = np.digitize([98.3, 98.1, 97.9], edges), np.digitize(99.0, edges), np.digitize(95.0, edges)
    assert len(set(near)) == 1 and worst < near[0] < best
    assert len(steps(np.array([[0.5, 0.6]]), 12.7)) == 2  # two seeds bound little: all cells look the same
    middle = around(50.0, (0.0, 100.0), 8.0)
    assert len({*np.digitize([42.5, 50, 57.5], middle)}) == 1  # no colour says who wins
    assert np.digitize(41, middle) < np.digitize(50, middle) < np.digitize(59, middle)
    assert (middle[0], middle[-1]) == (0, 100)


HEADINGS = ["policy", "exact\nmatch", "gain", "sampled\naccuracy", "KL to\nbase", "against the best"]


@pytest.mark.parametrize("width", [40, 52, 60, 80, 120])
@pytest.mark.parametrize("name", ["iterate 0", "a-run-with-a-name-of-sixty-letters-and-not-one-space-in-it-ok"])
def test_a_table_in_a_terminal_loses_no_number(width: int, name: str) -> None:
    rows = [[name, "96.9 ±0.7", "+74.5 ±1.8", "35.0 ±0.2", "-0.03", "-0.6 ±0.7, within noise"], [f"{name}b", *["1.25"] * 5]]
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(Grid(HEADINGS, rows).table("A title"))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for cell in rows[0][1:]:
        assert all(word in words for word in cell.split())
    assert words.count("1.25") == 5
    assert "…" not in "".join(lines)
    first = "".join(line.split("  ")[0].strip() for line in lines)  # a name may be broken, but all of it is there
    assert name in first


def test_the_answer_before_and_after_is_one_that_changed_and_is_cut_where_it_is_long() -> None:
    found = before_after(run([0.2, 0.6, 0.5]))
    assert found is not None and found.prompt == "two"
    assert found.answers == [("base", "<2>"), ("iterate 0", "2"), ("the data", "2")]  # iterate 0 is the best
    long = run([0.2, 0.6])
    long.base.samples[1]["answer"] = "word " * 200
    answer = before_after(long).answers[0][1]  # type: ignore[union-attr]
    assert 590 < len(answer) <= 600 and answer.endswith("word…")
    assert on_one_line("two\n lines\x1b[31m", 40) == "two lines\\x1b[31m"
    assert on_one_line("字" * 30, 11) == "字" * 5 + "…"
    assert on_one_line("", 9) == "(nothing)"


def test_large_losses_are_readable_and_have_a_unit() -> None:
    record = {"step": 1, "loss": 249_800.0, "rewards/margins": 1.0, "logps/chosen": -5.0, "logps/rejected": -6.0}
    manifest = {"asked": {"loss": {"name": "sppo", "eta": 1000}}, "metrics": [record, {**record, "step": 2, "loss": 250_100.0}]}
    results = run([0.2, 0.6])
    results.trainings["iterate 0"] = manifest
    picture = drawn(training_panels({"": [results]}, {"": (COLORS[0], "-")})[0])
    assert "thousands of nats²" in picture.texts
    (curve,) = [line for line in picture.axes[0].lines(COLORS[0]) if len(line) == 2]
    assert curve[:, 1] == pytest.approx([249.8, 250.1], abs=0.01)
    assert [readable(number) for number in (0.6931, 249_800.0, 3.2e6, math.nan)] == ["0.693", "249.80k", "3.20M", "nan"]


def test_shapes_are_unlike_where_a_category_is_beyond_noise_and_two_points() -> None:
    def unlike(one: float, other: float, error: float) -> bool:
        return not radars.alike(
            {"a": Value(0.5, 0.1), "b": Value(one, error)}, {"a": Value(0.5, 0.1), "b": Value(other, error)}
        )

    assert unlike(0.90, 0.98, 0.01) and not unlike(0.90, 0.98, 0.05) and not unlike(0.97, 0.98, 0.0001)
    seeds = [policy("iterate 0", 0.9, categories=shape(a=0.9)) for _ in range(2)]  # two seeds that agree by chance
    assert radars.shapes(seeds)["a"].half == pytest.approx(1.96 * 0.02 / math.sqrt(2))
