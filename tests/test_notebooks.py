"""The notebooks of recipes/notebooks, executed whole: on the quickstart, tiny, on a CPU."""

import html
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
import pytest
from nbclient import NotebookClient

import lowmem_spin as ls
from helpers.faults import ROWS
from helpers.forked import Command

NOTEBOOKS = Path(__file__).parent.parent / "recipes" / "notebooks"
SMALL = {
    "data.path": str(ROWS),
    "game.pairs": 32,
    "game.iterations": 2,
    "data.resample": False,
    "evaluation.health_prompts": 8,
    "generation.max_new_tokens": 8,
    "evaluation.compare_sft": False,
    "evaluation.metric": "none",
    "evaluation.path": None,
}
TINY = {"RECIPE": "quickstart", "ALPHAS": [0.5, 1], "HISTORIES": [1], "MAX_HOURS": 1, "SETTINGS": SMALL}


def code(notebook: Any) -> dict[str, Any]:
    """Code cells by id."""
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


@dataclass
class Session:
    """A notebook that was run, and the folder that it kept everything in."""

    cells: dict[str, Any]
    store: Path

    def printed(self, cell: str) -> str:
        return "".join(output.get("text", "") for output in self.cells[cell].outputs)

    def written(self) -> dict[str, int]:
        """When each file of the tables and adapters was written, in ns."""
        files = (path for kind in ("completions", "logps", "adapters") for path in (self.store / "store" / kind).rglob("*"))
        return {str(path.relative_to(self.store)): path.stat().st_mtime_ns for path in files if path.is_file()}

    def statuses(self) -> list[tuple[float, str]]:
        found = json.loads((self.store / "quickstart-sweep" / "sweep.json").read_text())["points"]
        return [(point["values"]["game.alpha"], point["status"]) for point in found]


class Kernel(Command):
    """A notebook's kernel, as ipykernel starts it, in a process that is forked from one which has imported torch."""

    stdin = stdout = stderr = None

    def __init__(self, command: list[str], env: dict[str, str], cwd: str, **_: Any) -> None:
        with patch.dict(os.environ, env, clear=True), chdir(cwd):
            super().__init__(*command[command.index("-f") :], module="ipykernel.kernelapp")
        while os.getpgid(self.pid) != self.pid:  # jupyter_client signals the whole group
            time.sleep(0.01)

    def wait(self) -> int | None:
        self.communicate()
        return self.returncode


def execute(name: str, store: Path, left_out: str = "", **parameters: Any) -> Session:
    """Run all cells but one, with other parameters in a cell after the tagged one, as papermill does it."""
    store.parent.mkdir(exist_ok=True)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id != left_out]
    tagged = [place for place, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    given = "\n".join(f"{key} = {value!r}" for key, value in ({"STORE": str(store)} | TINY | parameters).items())
    notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(given))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(store.parent)}})
    installed = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with patch("jupyter_client.provisioning.local_provisioner.launch_kernel", Kernel):
        client.execute(env={**os.environ, "PATH": installed, "IPYTHONDIR": str(store.parent / "ipython")})
    return Session(code(notebook), store)


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return execute("colab", tmp_path_factory.mktemp("my drive") / "lowmem-spin")


def test_a_notebook_plays_the_sweep_and_shows_its_report(colab: Session) -> None:
    assert all(cell.execution_count for cell in colab.cells.values())
    assert "hf self-test        works" in colab.printed("doctor")
    assert "Rows of 2 games" in colab.printed("plan")
    assert colab.statuses() == [(0.5, "finished"), (1, "finished")]
    assert sum(name.endswith(".safetensors") for name in colab.written()) == 3  # iterate 0 is shared
    shown = shown_as_html(colab, "report").partition('srcdoc="')[2].partition('"')[0]
    assert html.unescape(shown) == (colab.store / "quickstart-sweep" / "report.html").read_text() != ""


def test_a_notebook_shows_numbers_and_answers(colab: Session) -> None:
    shown, answers = (shown_as_html(colab, cell) for cell in ("table", "answers"))
    points = sorted((colab.store / "quickstart-sweep" / "points").iterdir())
    for point in points:
        last = json.loads((point / "metrics.jsonl").read_text().splitlines()[-1])
        assert all(text in shown for text in (f">{point.name}<", f">{last['name']}<", f">{last['chosen_logp']:.6f}<"))
    base = json.loads((points[0] / "metrics.jsonl").read_text().splitlines()[0])
    assert len(points) == 2 and all(f">{html.escape(sample['prompt'])}<" in answers for sample in base["samples"][:3])


def shown_as_html(session: Session, cell: str) -> str:
    return session.cells[cell].outputs[-1].data["text/html"]


def test_kaggle_goes_on_from_the_output_of_an_earlier_session(colab: Session, tmp_path: Path) -> None:
    store, earlier = tmp_path / "working" / "lowmem-spin", str(colab.store.parent)
    session = execute("kaggle", store, left_out="doctor", EARLIER=earlier)  # which is colab's, and was run there
    assert all(cell.execution_count for cell in session.cells.values())
    assert session.written() == colab.written()  # copies keep the time at which they were written
    assert session.statuses() == [(0.5, "finished"), (1, "finished")]
    assert (session.store / "quickstart-sweep" / "report.html").is_file()


def test_the_notebooks_differ_only_in_where_they_keep_things() -> None:
    colab, kaggle = (code(nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)) for name in ("colab", "kaggle"))
    assert list(colab) == list(kaggle)
    assert {name for name in colab if colab[name].source != kaggle[name].source} == {"parameters", "store"}


@pytest.mark.parametrize("name", ["colab", "kaggle"])
def test_a_notebook_is_clean_and_its_own_parameters_are_a_sweep(name: str) -> None:
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    nbformat.validate(notebook)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = {cell["id"]: cell for cell in notebook["cells"] if cell["cell_type"] == "code"}
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells.values())
    given: dict[str, Any] = {}
    exec("".join(cells["parameters"]["source"]), given)  # noqa: S102
    assert given["SETTINGS"] == {} and given["MAX_HOURS"] < 12  # when a free session ends
    made = ls.plan(given["RECIPE"], alpha=given["ALPHAS"], history=given["HISTORIES"], seeds=given["SEEDS"])
    assert len(made.made.points) == 8


AS_INSTALLED = """
import json, sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell

cell, source, target = json.loads(sys.argv[1])

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, found=None):  # where pip has been told to install, not where this environment has it
        return PathFinder.find_spec(name, [target] if name == "lowmem_spin" else path, found)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
assert find_spec("lowmem_spin") is None
shell = InteractiveShell.instance()
shell.user_ns.update(SOURCE=source, Path=Path)
assert shell.run_cell(cell).success
import lowmem_spin
from lowmem_spin.config.load import find_recipe
print(lowmem_spin.__file__, find_recipe("quickstart"))
"""


@pytest.mark.parametrize("form", ["unpacked", "zip"])
def test_the_install_cell_installs_a_clone_or_its_archive(form: str, tmp_path: Path) -> None:
    """The cell as it is written; pip is only kept from the network, so what the project depends on is not installed."""
    pytest.importorskip("hatchling", reason="in the test extra")
    root, target = NOTEBOOKS.parents[1], tmp_path / "installed"
    unpacked = tmp_path / "in put" / "lowmem-spin-main"
    skipped = shutil.ignore_patterns("__pycache__", "runs")
    for part in ("lowmem_spin", "recipes"):
        shutil.copytree(root / part, unpacked / part, ignore=skipped)
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / part, unpacked)
    zipped = str(tmp_path / "archive"), "zip", unpacked.parent, unpacked.name
    source = shutil.make_archive(*zipped) if form == "zip" else str(unpacked.parent)
    cell = code(nbformat.read(NOTEBOOKS / "colab.ipynb", as_version=4))["install"].source
    target.mkdir()  # Python remembers that a folder is not there
    # No isolation is a switch that pip turns on by a 0.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_TARGET": str(target)}
    environment = {**os.environ, **offline, "PYTHONPATH": "", "IPYTHONDIR": str(tmp_path / "ipython")}
    command = [sys.executable, "-c", AS_INSTALLED, json.dumps([cell, source, str(target)])]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    package = target / "lowmem_spin"
    assert answer.stdout.splitlines()[-1] == f"{package / '__init__.py'} {package / 'recipes' / 'quickstart.yaml'}"
