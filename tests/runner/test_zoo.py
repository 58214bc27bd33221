"""The whole family as one small sweep: what is planned is what its files hold, it is reported, and nothing of it is unused."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from helpers.games import QUICKSTART, exact, judged, pairwise_rates, stored, tiny
from lowmem_spin.cli import play
from lowmem_spin.cli.results import show_sweep
from lowmem_spin.common.display import Display
from lowmem_spin.config.grid import SweepPoint, sweep_axes, sweep_folder, sweep_points
from lowmem_spin.config.load import load_recipe
from lowmem_spin.runner import gc
from lowmem_spin.runner import sweep as sweeps
from lowmem_spin.runner.open import SharedResources, open_game
from lowmem_spin.runner.planning import plan as planning

PAIRS, SAMPLES = 6, 4
SMALL = [
    "game.iterations=2",  # a sampler that gives a prompt up, which no plan knows beforehand, comes with the third
    f"game.pairs={PAIRS}",
    f"game.samples={SAMPLES}",
    f"training.per_device_train_batch_size={PAIRS}",
    "evaluation.health_prompts=3",
    "evaluation.metric=none",
    "evaluation.path=null",
    "evaluation.compare_sft=true",
]
KINDS = {"completions": "generate", "mixtures": "generate", "judgements": "judge", "logps": "score"}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SweepPoint], dict[str, Any]]:
    """(folder, points, plan before) of recipes/zoo.yaml played small."""
    folder = tmp_path_factory.mktemp("zoo")
    content = yaml.safe_load((QUICKSTART.parent / "zoo.yaml").read_text())
    content["variants"]["GFlowNet"]["game.sampler"] |= {"prompts": 8, "epochs": 1, "batch_size": 8}
    path = folder / "zoo.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    overrides = [value for value in tiny(folder) if not value.startswith(("game.", "evaluation="))] + SMALL
    asked = sweep_points(path, overrides, sweep_axes(path, None, None, []), 1)
    quiet = Display(Console(quiet=True))
    for name in ("SPIN", "RSPO"):  # prepares the rows, so that the plan is of these very ones
        open_game(next(point.recipe for point in asked if point.values["variant"] == name), folder, quiet, SharedResources())
    before = planning.plan(asked, folder).record()
    base = load_recipe(path, overrides, "SPIN")
    sweep = sweeps.SweepState(
        "zoo", sweep_folder(base), sweep_axes(path, None, None, []), [42], [sweeps.Entry(point) for point in asked]
    )
    play.sweep(sweep, folder, quiet)
    assert {entry.point.name: entry.error for entry in sweep.entries if entry.status != "finished"} == {}
    show_sweep(sweep, quiet)
    return folder, asked, before


def counted(store: Path) -> Counter[tuple[str, str]]:
    """Rows of each table and pairs of each training, in the files themselves."""
    counts: Counter[tuple[str, str]] = Counter()
    for kind in KINDS:
        for path in store.glob(f"{kind}/*/*.parquet"):
            counts[kind, path.parent.name] += pq.read_metadata(path).num_rows
    for path in store.glob("adapters/*/manifest.json"):
        counts["adapters", path.parent.name] += json.loads(path.read_text()).get("rows", 0)
    return +counts


def planned(record: dict[str, Any], what: str = "rows") -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for stage in record["stages"]:
        side = stage["side"]
        kind = side if side in KINDS else "adapters" if side == "pairs" else "logps"
        counts[kind, stage["table"]] += stage[what]
    return +counts


def test_what_was_planned_is_what_was_computed(zoo: tuple[Path, list[SweepPoint], dict[str, Any]]) -> None:
    """Table by table. Of the base's log-probs alone a plan may count a row twice: that of an answer that alpha-SPIN's pairs
    have and that a contest of the same answers turns out to choose as well."""
    folder, asked, before = zoo
    found = counted(folder / "store")
    first = json.loads((folder / "run-sweep" / "points" / "SPPO_seed-42" / "run.json").read_text())
    base = first["policies"]["base"]
    chosen = judged(folder / "store", base, exact, pairwise_rates, SAMPLES)
    twice = sum(side["sample"] == 0 for sides in chosen.values() for side in sides)
    (table,) = [key for key, (one, _) in stored(folder / "store", "logps").items() if one["policy"] == base]
    assert len(chosen) == PAIRS and before["exact"]
    assert planned(before) == found + Counter({("logps", table): twice})
    assert planned(before, "to_do") == planned(before)
    after = planning.plan(asked, folder).record()
    assert planned(after) == planned(before) == planned(after, "stored")
    kinds = {kind: sum(count for (one, _), count in found.items() if one == kind) for kind in (*KINDS, "adapters")}
    totals = before["totals"]
    assert totals["generate"]["shared"] < kinds["completions"] + kinds["mixtures"]  # the rest is for measuring
    assert totals["train"]["shared"] + totals["baseline"]["shared"] == kinds["adapters"]
    assert kinds["mixtures"] == (4 + SAMPLES) * PAIRS  # four samplers of opponents at t = 1, and Nash-MD's and IPO-MD's contest
    # At t = 0 one contest of the base's answers; at t = 1 SPPO and alpha-SPPO have one iterate, and so have INPO and the two.
    assert totals["judge"]["shared"] == PAIRS * (1 + 3 + 2)
    assert totals["judge"]["independent"] == PAIRS * 14


def test_a_plan_is_an_upper_bound_before_the_rows_are_prepared(tmp_path: Path) -> None:
    """Iterations that share the data out have no prompt in common, and so a split's rows are all generated."""
    path = QUICKSTART.parent / "quickstart.yaml"
    overrides = tiny(tmp_path, "data.resample=split", "game.iterations=3", "game.reference=ema")
    asked = sweep_points(path, overrides, sweep_axes(path, "0.7", None, []), 1)
    before = planning.plan(asked, tmp_path)
    open_game(asked[0].recipe, tmp_path, Display(Console(quiet=True)), SharedResources())
    after = planning.plan(asked, tmp_path)
    assert (before.exact, after.exact) == (False, True)
    for kind, rows in (("generate", 36), ("train", 36), ("score", 3 * 24)):  # one reference each time: the base, two averages
        assert before.totals()[kind]["shared"] == after.totals()[kind]["shared"] == rows, kind
    scored = [line.label for line in after.lines if line.unit.kind == "score" and line.unit.side == "chosen"]
    assert scored == ["base", "average 1", "average 2"]


def test_the_report_is_of_every_variant(zoo: tuple[Path, list[SweepPoint], dict[str, Any]]) -> None:
    folder, asked, _ = zoo
    page, table = ((folder / "run-sweep" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert len(asked) >= 23
    for point in asked:
        assert point.values["variant"] in page and f"| {point.values['variant']} |" in table
    lines = [json.loads(line) for point in asked for line in (Path(str(point.recipe.output.dir)) / "metrics.jsonl").open()]
    assert Counter(line["name"] for line in lines) == dict.fromkeys(["base", "iterate 0", "iterate 1", "plain SFT"], len(asked))
    assert sorted(line["sampler"]["sampler"] for line in lines if "sampler" in line) == [
        "rejection",
        "rejection",
        "rejection",
        "smc",
        "snis",
        "token_level",
    ]


def test_nothing_of_it_is_unused_and_without_a_point_what_it_alone_had_is(
    zoo: tuple[Path, list[SweepPoint], dict[str, Any]], tmp_path: Path
) -> None:
    """What a deleted point alone had: what names a policy that no other run has, and judgements of such answers."""
    folder, _, _ = zoo
    store, runs = folder / "store", tmp_path / "points"
    shutil.copytree(folder / "run-sweep" / "points", runs, symlinks=True)

    def unused() -> set[tuple[str, str]]:
        used = gc.used_by(gc.run_folders(runs, store))
        return {(item.kind, item.path.stem) for item in gc.unused(store, used)}

    assert unused() == set()
    gone: set[tuple[str, str]] = set()
    for name, helper in (
        ("GFlowNet", "amortise"),
        ("SMC", "smc"),
        ("moving_average", "average"),
        ("alpha-SPPO", ""),
        ("RSPO", ""),
    ):
        mine = policies(runs / f"{name}_seed-42")
        shutil.rmtree(runs / f"{name}_seed-42")
        mine -= set().union(*(policies(path) for path in runs.iterdir()))
        assert mine
        gone |= own(store, mine, helper)
        assert unused() == gone, name
    assert Counter(kind for kind, _ in gone).keys() == {"adapters", "completions", "mixtures", "logps", "judgements"}


def policies(run: Path) -> set[str]:
    return set(json.loads((run / "run.json").read_text())["policies"].values())


def own(store: Path, mine: set[str], helper: str) -> set[tuple[str, str]]:
    """These policies, what helped them (adapters or mixtures), what all these answered and scored, and judgements of it."""
    asked = {path.parent.name: json.loads(path.read_text())["asked"] for path in store.glob("*/*/manifest.json")}
    adapters = {key for key, one in asked.items() if key in mine or one["kind"] == helper}
    mixtures = {key for key, one in asked.items() if one.get("mixture", {}).get("sampler", {}).get("name") == helper}
    tables = mixtures | {key for key, one in asked.items() if one.get("policy") in adapters}
    judgements = {key for key, one in asked.items() if {name.split("/")[0] for name in one.get("answers", [])} & tables}
    return {(path.parent.name, path.name) for path in store.glob("*/*") if path.name in adapters | tables | judgements}
