"""Edited code is never taken for what made old results; edited comments are."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.source_hashes import PINNED, ROOT, all_hashes, source_hash
from lowmem_spin.algorithm.stages import Inputs, Train
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.engines.oracles.function import Function

LOSSES = {name for name in PINNED if name.startswith("loss ")}
BOTH = {*LOSSES, "trainer"}
MIXTURES = {name for name in PINNED if name.startswith("sampler ")} - {"sampler gflownet"}
INPUTS = Inputs("b", "data", {"engine": "hf", "dtype": "float32"}, {"engine": "hf", "dtype": "float32"})


def test_the_pinned_hashes_are_those_of_the_code() -> None:
    found = all_hashes(ROOT)
    other = sorted(name for name in found.keys() | PINNED.keys() if found.get(name) != PINNED.get(name))
    assert not other, (
        f"the source of {', '.join(other)} has changed. Run `python -m lowmem_spin.algorithm.source_hashes` if it computes "
        "what it did, so that stored results stay valid. If it computes something else, raise the number of its kind of stage "
        "in algorithm/stages.py, VERSIONS, as well."
    )


def replaced(*changes: tuple[str, str]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return text

    return edit


def rewritten(text: str) -> str:
    """The same code without a comment, a docstring of its own or its layout."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body[0] = ast.Expr(ast.Constant("Something else."))
    return ast.unparse(tree)


FILES = {
    "losses": "algorithm/losses.py",
    "references": "algorithm/references.py",
    "preferences": "algorithm/preferences.py",
    "noise": "algorithm/samplers/noise.py",
    "smc": "algorithm/samplers/smc.py",
    "subtb": "algorithm/subtb.py",
    "function": "engines/oracles/function.py",
    "average": "engines/training/average.py",
    "gflownet": "engines/training/gflownet.py",
    "trainer": "engines/training/trainer.py",
}
ADDED = "\n\ndef _twice(f):\n    return lambda *a: 2 * f(*a)\n"


def copied(folder: Path) -> Path:
    """The package in the folder, as far as hashes read it."""
    for name in ("algorithm", "engines/training", "engines/oracles"):
        shutil.copytree(ROOT / "lowmem_spin" / name, folder / "lowmem_spin" / name)
    return folder / "lowmem_spin"


def test_other_comments_docstrings_and_layout_change_nothing(tmp_path: Path) -> None:
    package = copied(tmp_path)
    for path in package.rglob("*.py"):
        path.write_text(rewritten(path.read_text()))
    assert (package / FILES["losses"]).read_text() != (ROOT / "lowmem_spin" / FILES["losses"]).read_text()
    assert all_hashes(tmp_path) == PINNED


@pytest.mark.parametrize("line", ["from lowmem_spin.algorithm import mine", "from . import mine", "from .mine import scale"])
def test_what_a_loss_takes_from_a_module_of_ones_own_counts(line: str, tmp_path: Path) -> None:
    """An edit there as well as one in losses.py."""
    package, name = copied(tmp_path), "scale" if line.endswith("scale") else "mine.scale"
    losses = package / FILES["losses"]
    losses.write_text(f"{line}\n{losses.read_text()}".replace("-F.logsigmoid(beta *", f"-F.logsigmoid({name} * beta *"))
    found = []
    for number in (2, 3):
        (package / "algorithm" / "mine.py").write_text(f"scale = {number}\n")
        later = tmp_path / str(number)
        shutil.copytree(package, later / "lowmem_spin")
        found.append(source_hash("loss dpo", later))
    assert len({*found, PINNED["loss dpo"]}) == 3


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        ("losses", replaced(("-F.logsigmoid(beta *", "-F.logsigmoid(2 * beta *")), {"loss dpo"}),
        ("losses", replaced(("hinge(*sides.logps, beta)", "2 * hinge(*sides.logps, beta)")), {"loss hinge"}),
        ("losses", replaced(("CLAMP = 10.0", "CLAMP = 9.0")), {"loss sppo"}),  # through two helpers
        ("losses", replaced(('"entropy": lambda logps, base, clamp: logps**2', '"entropy": lambda *_: 0')), {"loss sppo"}),
        ("losses", lambda text: text + "\nPENALTIES.update(entropy=PENALTIES['chi2'])\n", {"loss sppo"}),
        ("losses", lambda text: text + ADDED, set()),
        ("losses", lambda text: text + ADDED + "\nLOSSES['ipo'] = _twice(LOSSES['ipo'])\n", LOSSES),  # it says not which
        ("losses", replaced(("import torch.nn.functional as F", "import mine as F")), {"loss dpo", "loss hinge", "loss slic"}),
        ("losses", replaced(("return self.chosen, self.rejected,", "return self.rejected, self.rejected,")), BOTH),
        ("references", replaced(("+ weight * values\n", "+ 2 * weight * values\n")), {"reference geometric"}),
        ("noise", replaced((".log_().neg_().log_().neg_()", ".log_().neg_().log_()")), MIXTURES),
        ("smc", replaced(("RESAMPLE = ", "RESAMPLE = 2 * ")), {"sampler smc"}),
        ("subtb", replaced(("return lengths + capped", "return lengths")), {"sampler gflownet"}),
        ("gflownet", replaced(("weight_decay=0.0", "weight_decay=0.1")), {"sampler gflownet"}),
        ("average", replaced(("np.sqrt(values[:kept] / scale)", "np.sqrt(values[:kept])")), {"reference ema"}),
        ("preferences", replaced(("(preferences, how).mean(1)", "(preferences, how).min(1)")), {"win rates"}),
        ("function", replaced(("float(answer == reference)", "float(answer != reference)")), {"oracle exact_match"}),
        ("trainer", replaced(("losses = -logps", "losses = -2 * logps")), {"trainer"}),
        ("trainer", replaced(("POOL = 16", "POOL = 8")), {"row order"}),
        ("trainer", replaced(("losses.sum() / num_items_in_batch", "losses.mean()")), {"trainer"}),
    ],
)  # fmt: skip
def test_an_edit_changes_the_hashes_of_what_it_concerns(
    file: str, edit: Callable[[str], str], expected: set[str], tmp_path: Path
) -> None:
    path = copied(tmp_path) / FILES[file]
    before = path.read_text()
    path.write_text(edit(before))
    assert path.read_text() != before
    assert {name for name in PINNED if source_hash(name, tmp_path) != PINNED[name]} == expected


def test_a_python_whose_trees_have_more_fields_gives_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From 3.12 on functions and classes have type_params, which are empty here."""
    shutil.copytree(ROOT / "lowmem_spin" / "algorithm", tmp_path / "lowmem_spin" / "algorithm")
    for kind in (ast.FunctionDef, ast.ClassDef):
        monkeypatch.setattr(kind, "_fields", (*kind._fields, "type_params"))
        monkeypatch.setattr(kind, "type_params", [], raising=False)
    assert source_hash("loss sppo", tmp_path) == PINNED["loss sppo"]


SCRIPT = """
import json
from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.stages import Inputs, Train
from lowmem_spin.config.recipe import Recipe
content = {"model": {"name_or_path": "m"}, "data": {"path": "d.jsonl", "resample": True}}
games = {"dpo": {"name": "dpo"}, "slic": {"name": "slic"}}
inputs = Inputs("b", "data", {"engine": "hf", "dtype": "float32"}, {"engine": "hf", "dtype": "float32"})
found = {}
for name, loss in games.items():
    recipe = Recipe.model_validate({**content, "game": {"alpha": 0.95, "history": 2, "pairs": 1000, "loss": loss}})
    found[name] = [stage.policy for stage in play(recipe, inputs) if isinstance(stage, Train)]
print(json.dumps(found))
"""
KNOWN = {  # of tests/algorithm/test_game.py, EARLIER
    "dpo": ["5788b86f20ef0c28b306", "1464484e0fa752fd1197", "5cf3171ca640c5c27b51"],
    "slic": ["e1e7ceabdef4a5936815", "c09b564cf0610e30af57", "8d87772aafabb6827994"],
}


def test_in_a_copied_package_an_edited_loss_has_keys_of_its_own_and_an_edited_comment_has_not(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "lowmem_spin", tmp_path / "lowmem_spin", ignore=shutil.ignore_patterns("__pycache__"))
    losses = tmp_path / "lowmem_spin" / FILES["losses"]

    def keys() -> dict[str, list[str]]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", SCRIPT]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return json.loads(result.stdout)

    losses.write_text(rewritten(losses.read_text()))
    assert keys() == KNOWN
    losses.write_text(losses.read_text().replace("-F.logsigmoid(beta *", "-F.logsigmoid(2 * beta *"))
    edited = keys()
    assert edited["slic"] == KNOWN["slic"]
    assert not set(edited["dpo"]) & set(KNOWN["dpo"])


@pytest.mark.parametrize(
    ("source", "overrides", "expected"),
    [
        ("loss dpo", [], [True, True, True]),
        ("loss ipo", [], [False, False, False]),
        ("reference geometric", [], [True, True, True]),
        ("reference geometric", ["game.loss=slic"], [False, False, False]),  # it has none
        ("reference ema", ["game.reference=ema"], [False, True, True]),  # the first reference is the base
        ("sampler smc", ["game.sampler=smc"], [False, True, True]),  # the first opponent is the base
        ("sampler gflownet", ["game.sampler=gflownet"], [False, True, True]),
        ("win rates", ["game.algorithm=sppo", "game.oracle=function", "game.history=1"], [True, True, True]),
        ("trainer", [], [True, True, True]),
        ("row order", ["game.algorithm=offline"], [True, True, True]),
    ],
)
def test_what_is_edited_is_in_the_keys_of_what_it_makes(
    source: str, overrides: list[str], expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(find_recipe("quickstart"), ["game.alpha=0.5", "evaluation.compare_sft=false", *overrides])

    def keys() -> list[str]:
        return [stage.policy for stage in play(recipe, INPUTS) if isinstance(stage, Train)]

    before = keys()
    monkeypatch.setitem(PINNED, source, "another")
    assert [one != other for one, other in zip(before, keys(), strict=True)] == expected


def test_an_edited_built_in_oracle_is_another_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the user's has the bytes of its file in its identity; see tests/engines/test_oracles.py."""
    assert Function("exact_match", Path()).spec() == {"oracle": "function", "name": "exact_match", "content": "built in"}
    monkeypatch.setitem(PINNED, "oracle exact_match", "another")
    assert list(Function("exact_match", Path()).spec()["source"]) == ["oracle exact_match"]
