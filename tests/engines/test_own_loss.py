"""Functions in files of somebody's own: how they are found and fail, and what a loss among them may do."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.games import SETTINGS, open_hf, some_pairs
from lowmem_spin.common.errors import InputError
from lowmem_spin.engines.own_function import OwnFunction
from lowmem_spin.engines.training.own_loss import opened, try_loss

BODY = "(sides.chosen - sides.ref_chosen) - (sides.rejected - sides.ref_rejected)"
DPO = f"import torch.nn.functional as F\n\ndef loss(sides, beta):\n    return -F.logsigmoid(beta * ({BODY}))\n"
FIELD = "game.loss.function"


def own(folder: Path, source: str, name: str = "loss") -> OwnFunction:
    (folder / "mine.py").write_text(source)
    return OwnFunction.find(FIELD, f"mine.py:{name}", folder)


def returning(folder: Path, expression: str) -> OwnFunction:
    return own(
        folder, f"import torch\nfrom torch.nn import functional as F\n\ndef loss(sides, beta=0.1):\n    return {expression}\n"
    )


def test_an_own_dpo_trains_the_adapter_of_the_built_in_one_bit_for_bit(quickstart: Path, tmp_path: Path) -> None:
    """The source goes as to another process; pairs have references of their own, and dropout is on."""
    engine, pairs = open_hf(quickstart / "base", dropout=0.1, per_device_train_batch_size=4), some_pairs(10)
    sent = pickle.loads(pickle.dumps({"name": "function", "function": own(tmp_path, DPO), "options": {"beta": 0.3}}))  # noqa: S301
    weights, metrics = [], []
    for name, loss in (("built_in", {"name": "dpo", "beta": 0.3}), ("own", sent)):
        folder, records = engine.train(None, pairs, loss, SETTINGS, tmp_path / name, lambda *told: None)
        weights.append(load_file(folder / "adapter_model.safetensors"))
        metrics.append([{name: value for name, value in record.items() if "/" in name or name == "loss"} for record in records])
    built_in, ours = weights
    assert built_in.keys() == ours.keys() and all(torch.equal(built_in[name], ours[name]) for name in built_in)
    assert max(value.abs().max() for name, value in ours.items() if "lora_B" in name) > 1e-4
    assert metrics[0] == metrics[1] and metrics[0][-1]["loss"] < metrics[0][0]["loss"]


@pytest.mark.parametrize(
    ("written", "source", "line"),
    [
        ("nowhere.py:loss", "", "no file 'nowhere.py', neither next to the recipe nor in the working directory"),
        ("mine.py", "", "no file 'mine.py', write it as file.py:function"),
        ("mine.py:los", DPO, "mine.py has no function 'los'"),
        ("mine.py:F", "F = 3\n", "mine.py has no function 'F'"),
        ("mine.py:loss", "def loss(:\n", "does not import: SyntaxError"),
        ("mine.py:loss", "import nothing_such\n\ndef loss(sides): ...\n", "does not import in line 1: ModuleNotFoundError"),
        ("mine.py:loss", "import sys\nsys.exit(0)\n\ndef loss(sides): ...\n", "does not import in line 2: SystemExit: 0"),
        ("mine.py:loss", "def loss(sides):\n    return 1 / 0\n", "mine.py:loss failed in line 2: ZeroDivisionError: division"),
        ("mine.py:loss", "def loss(sides):\n    raise ValueError('a\\nb')\n", "failed in line 2: ValueError: a\\nb"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(written: str, source: str, line: str, tmp_path: Path) -> None:
    if source:
        (tmp_path / "mine.py").write_text(source)
    with pytest.raises(InputError) as error:
        OwnFunction.find(FIELD, written, tmp_path).call(None)
    assert str(error.value).startswith(f"{FIELD}: ") and line in str(error.value) and "\n" not in str(error.value)


def test_what_runs_is_what_was_read(tmp_path: Path) -> None:
    found = own(tmp_path, "def loss(sides):\n    return 1\n")
    (tmp_path / "mine.py").write_text("def loss(sides):\n    return 2\n")
    assert found.changed() and found.call(None) == 1
    assert own(tmp_path, "def loss(sides):\n    return 2\n").call(None) == 2
    (tmp_path / "mine.py").unlink()
    assert found.call(None) == 1  # a file that is gone stops no game that is under way


def refused(folder: Path, expression: str, reads: tuple[str, ...] = ("reference",), normalised: bool = True) -> str:
    with pytest.raises(InputError) as error:
        try_loss(returning(folder, expression), {"beta": 0.1}, reads, normalised)
    line = str(error.value)
    assert line.startswith(f"{FIELD}: ") and "mine.py" in line and "\n" not in line
    return line


@pytest.mark.parametrize(
    ("expression", "line"),
    [
        ("(sides.chosen - sides.rejected).mean()", "gave a tensor () of torch.float32 for 3 pairs; return a float tensor (3,)"),
        ("(sides.chosen - sides.rejected)[:, None]", "gave a tensor (3, 1)"),
        ("(sides.chosen > sides.rejected)", "gave a tensor (3,) of torch.bool"),
        ("[1.0, 2.0, 3.0]", "gave a list for 3 pairs"),
        ("None", "gave a NoneType"),
        ("torch.log(sides.chosen)", "gave nan for a pair with chosen -12, rejected -20, ref_chosen -14"),
        ("1 / (sides.chosen + 60)", "gave inf for a pair with chosen -60"),
        ("sides.chosen.detach() - sides.rejected.detach()", "passes no gradient to the policy's log-probs"),
        ("sides.chosen * 0 + 1", "passes no gradient"),
        ("sides.ref_chosen * torch.ones(1, requires_grad=True)", "passes no gradient"),
        ("torch.sqrt((sides.chosen + 12) ** 2)", "passes a gradient that is not finite"),
        ("sides.chosen - sides.chosen.mean()", "gives a pair another loss beside other pairs"),
        ("(sides.chosen - sides.rejected) / len(sides.chosen)", "gives a pair another loss beside other pairs"),
        ("sides.chosen.cumsum(0)", "gives a pair another loss beside other pairs"),
        ("sides.chosen.flip(0)", "gives a pair another loss beside other pairs"),
        ("sides.chosen - sides.chosen_lengths.max()", "gives a pair another loss beside other pairs"),
        ("sides.chosenn", "failed in line 5: AttributeError: 'Sides' object has no attribute 'chosenn'"),
        ("sides.chosen - getattr(sides, 'base_' + 'chosen')", "reads base_chosen or _rejected unseen; write sides.base_chosen"),
    ],
)
def test_a_loss_that_cannot_be_trained_with_is_one_line(expression: str, line: str, tmp_path: Path) -> None:
    assert line in refused(tmp_path, expression)


def test_a_reference_that_is_read_behind_the_sources_back_is_said(tmp_path: Path) -> None:
    line = refused(tmp_path, "sides.chosen - getattr(sides, 'ref_' + 'chosen')", reads=())
    assert "reads ref_chosen or _rejected unseen; write sides.ref_chosen out" in line


def test_a_loss_that_no_constant_cancels_in_needs_a_normalised_reference(tmp_path: Path) -> None:
    squared = "(sides.chosen - sides.ref_chosen - 2) ** 2 + (sides.rejected - sides.ref_rejected + 2) ** 2"
    assert "needs a normalised reference" in refused(tmp_path, squared, normalised=False)
    try_loss(returning(tmp_path, squared), {}, ["reference"], normalised=True)
    try_loss(returning(tmp_path, f"({BODY} - 3) ** 2"), {}, ["reference"], normalised=False)


@pytest.mark.parametrize(
    "expression",
    [
        f"F.relu(1 - beta * ({BODY}))",
        "F.relu(1 - sides.chosen + sides.rejected) - 0.1 * sides.chosen",
        "-F.logsigmoid(beta * (sides.chosen / sides.chosen_lengths - sides.rejected / sides.rejected_lengths) - 0.5)",
        f"-sides.chosen_win_rates * F.logsigmoid({BODY})",
        "(sides.chosen - sides.ref_chosen).double() ** 2",
    ],
)
def test_losses_as_people_write_them_pass(expression: str, tmp_path: Path) -> None:
    try_loss(returning(tmp_path, expression), {}, ["reference"], normalised=True)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "takes (sides, beta), but is called with (sides): missing a required argument: 'beta'"),
        ({"beta": 1.0, "tau": 2.0}, "is called with (sides, beta=1.0, tau=2.0): got an unexpected keyword argument 'tau'"),
    ],
)
def test_options_that_a_loss_does_not_take_are_refused(options: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        try_loss(own(tmp_path, DPO), options, ["reference"], normalised=True)
    assert line in str(error.value)


def test_memory_that_runs_out_in_a_loss_is_no_fault_of_the_loss(tmp_path: Path) -> None:
    source = "import torch\n\ndef loss(sides):\n    raise torch.OutOfMemoryError('full')\n"
    with pytest.raises(torch.OutOfMemoryError):
        opened(own(tmp_path, source))(None)  # type: ignore[arg-type]


HELPER = "def margin(pairs):\n    return pairs.chosen - pairs.ref_chosen\n\n"


@pytest.mark.parametrize(
    ("source", "shown", "handed_on"),
    [
        (DPO, True, False),
        ("def loss(sides):\n    a, b, c, d = sides.logps\n", True, False),
        ("def loss(sides):\n    return sides.chosen\n", False, False),
        ("def loss(sides):\n    '''It reads no ref_chosen.'''\n    return sides.chosen\n", False, False),
        (f"{HELPER}def loss(sides):\n    return sides.chosen\n", False, False),  # another loss of the file may read it
        (f"{HELPER}def loss(sides):\n    return margin(sides)\n", True, True),
        ("def loss(sides):\n    return getattr(sides, 'ref_chosen')\n", True, True),
        ("from others import dpo\n\ndef loss(sides):\n    return dpo(sides)\n", False, True),
        ("from others import loss\n", False, True),
        ("loss = lambda sides: sides.chosen\n", False, True),
    ],
)
def test_what_a_source_shows_to_be_read(source: str, shown: bool, handed_on: bool, tmp_path: Path) -> None:
    found = own(tmp_path, source)
    assert found.shows("ref_chosen", "ref_rejected", "logps") is shown
    assert found.hands_on() is handed_on
    assert not found.shows("base_chosen")
