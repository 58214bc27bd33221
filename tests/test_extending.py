"""What the README says of adding a loss, a reference, a sampler, an oracle, a data layout and a suite, done to a copy of the
package by a stranger who touches the files named there and no others, and then played from recipes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.forked import Command
from helpers.games import stored, tiny

ROOT = Path(__file__).parent.parent
# {file: (a line that is there, the lines that follow it from now on)}; a file without such a line is new.
EDITS: dict[str, list[tuple[str, str]]] = {
    "algorithm/losses.py": [("LOSSES: dict[", '    "toy": lambda sides, gain: -gain * (sides.chosen - sides.rejected),')],
    "algorithm/references.py": [("REFERENCES: dict[", '    "toy": lambda weights, logps: 0.0 * logps[0] - 7.0,')],
    "algorithm/samplers/mixture.py": [("SAMPLERS = {", '    "toy": "lowmem_spin.algorithm.samplers.toy:toy",')],
    "algorithm/samplers/toy.py": [
        (
            "",
            """from lowmem_spin.algorithm.samplers.mixture import MixtureSample

def toy(logps, prompts, seeds, target, length=1, batch=64):
    return [MixtureSample([11] * length + [min(target.ends)], "stop", [0.0], 1, 1.0, 0.0) for _ in prompts]
""",
        )
    ],
    "engines/oracles/base.py": [("ORACLES = {", '    "toy": "lowmem_spin.engines.oracles.toy:Toy",')],
    "engines/oracles/toy.py": [
        (
            "",
            """import numpy as np

from lowmem_spin.algorithm.preferences import of_scores
from lowmem_spin.engines.oracles.base import NoWeights

class Toy(NoWeights):
    def __init__(self, sign):
        self.sign = sign

    @classmethod
    def from_recipe(cls, section, context):
        return cls(section.sign)

    def spec(self):
        return {"oracle": "toy", "sign": self.sign}

    def located(self):
        return {}

    def prefer(self, questions):
        return [of_scores([self.sign * len(answer) for answer in question.answers]) for question in questions]
""",
        )
    ],
    "evaluation/toy.py": [
        (
            "",
            """def measure_toy(game, request, display):
    def spec(policy):
        return {"kind": "evaluate", "version": 1, "task": "toy", "policy": policy}

    for number, name in enumerate(game.wanted):
        numbers = {"score": {"value": float(number), "stderr": None}}
        rest = {"count": 1, "fewshot": None, "own": False, "recorded": {"versions": {"toy": "1"}}}
        game.ensure(spec(game.policies[name]), lambda: {"numbers": numbers, **rest})
    game.keep("toy", "toy", None, spec)
""",
        )
    ],
    "evaluation/suites.py": [
        ("from lowmem_spin.evaluation.target import", "from lowmem_spin.evaluation.toy import measure_toy"),
        ("SUITES: dict[", '    "toy": Suite(measure_toy),'),
    ],
    "data/column_layouts.py": [("ANSWERED = [", '    _pair("asked", "said"),')],
    "config/loss_choices.py": [
        (
            "from lowmem_spin.config.section import Section",
            """

class ToyLoss(Section):
    name: Literal["toy"] = "toy"
    gain: float = 2.0

""",
        ),
    ],
    "config/choices.py": [
        (
            "from lowmem_spin.config.section import Section",
            """

class ToySampler(Section):
    name: Literal["toy"] = "toy"
    length: int = 1


class ToyOracle(Section):
    name: Literal["toy"] = "toy"
    sign: int = 1

""",
        ),
    ],
}
CHANGED = {
    "config/loss_choices.py": [("Loss = DPO |", "Loss = ToyLoss | DPO |")],
    "config/choices.py": [
        ("Sampler = No", "Sampler = ToySampler | No"),
        ("OracleChoice = Fu", "OracleChoice = ToyOracle | Fu"),
    ],
    "config/game_config.py": [('reference: Literal["geometric",', 'reference: Literal["toy", "geometric",')],
}  # fmt: skip


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and the additions."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "lowmem_spin", root / "lowmem_spin", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", root / "recipes")
    for name, insertions in EDITS.items():
        path = root / "lowmem_spin" / name
        for after, text in insertions:
            lines = path.read_text().splitlines() if after else []
            (at,) = [n for n, line in enumerate(lines) if line.startswith(after)] if after else [-1]
            path.write_text("\n".join([*lines[: at + 1], text, *lines[at + 1 :]]) + "\n")
    for name, replacements in CHANGED.items():
        path = root / "lowmem_spin" / name
        for old, new in replacements:
            assert path.read_text().count(old) == 1
            path.write_text(path.read_text().replace(old, new))
    return root


@pytest.fixture(scope="module")
def played(extended: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Games of seconds that the extended package has played, on data in the new layout."""
    games = {
        "toys": [
            *("game.loss={name: toy, gain: 3}", "game.reference=toy", "game.sampler={name: toy, length: 2}"),
            *("game.history=1", "game.alpha=0.5"),
        ],
        "judged": [
            *("game.algorithm=sppo", "game.oracle={name: toy, sign: -1}", "game.samples=3"),
            *("game.alpha=1", "game.history=1", "game.iterations=1"),
        ],
    }
    folders, commands = {}, []
    for name, overrides in games.items():
        folder = folders[name] = tmp_path_factory.mktemp(name)
        changes = [f"--set={change}" for change in tiny(folder, *overrides)]
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        lines = [json.dumps({"asked": row["prompt"], "said": row["completion"]}) + "\n" for row in rows]
        (folder / "train.jsonl").write_text("".join(lines))
        commands.append(["run", "quickstart", *changes])
    commands.append(["evaluate", str(folders["toys"] / "run"), "--suite", "toy"])
    for words in commands:
        command = Command(*words, package=extended, together=True)
        said, _ = command.communicate()
        assert command.returncode == 0, said
    return folders


def trainings(folder: Path) -> list[dict[str, Any]]:
    """The manifests of all adapters that were trained, oldest first."""
    found = [json.loads(path.read_text()) for path in (folder / "store" / "adapters").glob("*/manifest.json")]
    return sorted(found, key=lambda manifest: manifest["name"])


def test_a_loss_a_reference_a_sampler_and_a_layout(played: dict[str, Path]) -> None:
    folder = played["toys"]
    first, second = trainings(folder)
    assert first["asked"]["loss"] == second["asked"]["loss"] == {"name": "toy", "gain": 3.0}
    assert second["asked"]["combine"] == "toy"
    ((_, rows),) = stored(folder / "store", "mixtures").values()
    assert len(rows) == 12 and all(len(row["tokens"]) == 3 and row["tokens"][:2] == [11, 11] for row in rows)
    step = second["metrics"][0]  # with one reference for both sides, rewards/margins is the difference of the log-probs
    assert step["loss"] == pytest.approx(-3 * step["rewards/margins"], rel=1e-4) and abs(step["loss"]) > 0.1


def test_an_oracle(played: dict[str, Path]) -> None:
    folder = played["judged"]
    texts = {
        (row["prompt_id"], row["sample"]): row["text"]
        for _, rows in stored(folder / "store", "completions").values()
        for row in rows
    }
    contests = [rows for asked, rows in stored(folder / "store", "judgements").values() if len(asked["answers"]) == 3]
    assert contests
    for row in contests[0]:
        lengths = [len(texts[row["prompt_id"], sample]) for sample in range(3)]
        expected = [0.5 if a == b else float(a < b) for a in lengths for b in lengths]
        assert row["preferences"] == expected


def test_a_suite(played: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (played["toys"] / "run" / "benchmarks.jsonl").read_text().splitlines()]
    values = {line["name"]: line["numbers"]["score"]["value"] for line in lines if line["suite"] == "toy"}
    assert values == {"base": 0.0, "iterate 0": 1.0, "iterate 1": 2.0}
    assert len(list((played["toys"] / "store" / "results").rglob("*.json"))) == 3
