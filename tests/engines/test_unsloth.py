"""The Unsloth engine against the transformers engine, both real; skipped where Unsloth is missing.

pip install torch==2.13.0 unsloth==2026.10.7 && pip uninstall torchvision torchaudio torchcodec && pip install -e '.[test]'

Here Unsloth's kernels, the fused ones of its LoRA layers among them, are interpreted on the CPU (see unsloth_on_cpu.py), in
float32, in the worker process that a GPU would have, so what is held against transformers is its forward, its backward and
its checkpointing.
"""

import inspect
import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.games import CPU, open_hf, save_slot, shake_slot
from lowmem_spin.common.errors import InputError
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.training.pair import Pair
from lowmem_spin.engines.unsloth import Unsloth
from lowmem_spin.engines.worker import Worker

pytestmark = pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed")
ROWS = [
    ([1, 3, 70, 5, 4], [10, 11, 12, 5]),
    ([1, 3, 70, 5, 4], [13, 5]),
    ([1, 3, 40, 41, 42, 43, 44, 5, 4], [30, 31, 5]),
    ([1, 3, 20, 5, 4], [21, 22, 23, 24, 5]),
]
PAIRS = [Pair(*ROWS[0], [20, 21, 5], (-30.0, -22.0)), Pair(*ROWS[2], [22, 23, 24, 5], (-35.0, -32.0))] * 2
SETTINGS = {
    **{"batch_size": 2, "num_train_epochs": 1, "learning_rate": 1e-2, "optim": "adamw_torch", "iteration": 0, "seed": 0},
    **{"lr_scheduler_type": "linear", "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0},
    "learner": {"dtype": "float32"},
}
DPO = {"name": "dpo", "beta": 0.1}
FUSED = ("LoRA_MLP", "LoRA_QKV", "LoRA_W")  # Unsloth's own backward of an MLP, of an attention's input, and of its output
LAYERS = 4


@pytest.fixture(scope="module")
def hf(quickstart: Path) -> HF:
    return open_hf(quickstart / "base", gradient_checkpointing=True)


@pytest.fixture(scope="module")
def adapters(hf: HF, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for seed in range(2):
        shake_slot(hf, seed)
        folders.append(save_slot(hf, tmp_path_factory.mktemp("adapters") / f"adapter{seed}"))
    return folders


def open_unsloth(hf: HF, base: Path, folder: Path, dropout: float, longest: int = 64, machine: Machine = CPU) -> Worker:
    environment = {"UNSLOTH_ALLOW_CPU": "1", "TRITON_INTERPRET": "1", "UNSLOTH_COMPILE_LOCATION": str(folder / "compiled")}
    data = hf.recipe.data.model_copy(update={"max_prompt_length": longest, "max_completion_length": longest})
    # So short that it keeps its checkpoints on the device: on a GPU and from 512 tokens on they go to RAM.
    generation = hf.recipe.generation.model_copy(update={"max_new_tokens": longest})
    lora = hf.recipe.training.lora.model_copy(update={"dropout": dropout})
    training = hf.recipe.training.model_copy(update={"lora": lora})
    recipe = hf.recipe.model_copy(update={"data": data, "generation": generation, "training": training})
    arguments = (recipe, Source(str(base), None, "test"), machine)
    return Worker("unsloth", "helpers.unsloth_on_cpu:Kernels", arguments, environment, folder / "log", "")


@pytest.fixture(scope="module")
def unsloth(hf: HF, quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = open_unsloth(hf, quickstart / "base", tmp_path_factory.mktemp("unsloth"), dropout=0.0)
    yield worker
    worker.close()


def test_its_log_probs_are_those_of_transformers(hf: HF, quickstart: Path, tmp_path: Path, adapters: list[Path]) -> None:
    """With dropout in the recipe: its forward is the training one, and nothing random may be left on in it."""
    worker, seen = open_unsloth(hf, quickstart / "base", tmp_path, dropout=0.3), []
    for adapter in (None, *adapters, None):
        scored = worker.call("score", adapter, ROWS)
        assert scored == pytest.approx(hf.score(adapter, ROWS), abs=1e-3)
        assert worker.call("score", adapter, ROWS) == scored
        seen.append(scored)
    ran, packs = worker.call("ran"), worker.call("packs")
    worker.close()
    assert packs
    assert all(ran[f"{name}.forward"] for name in FUSED)
    assert seen[0] == seen[3] and seen[0] != seen[1] != seen[2]


def test_the_first_row_that_is_longer_than_the_context_is_scored_as_the_next(
    hf: HF, quickstart: Path, tmp_path: Path, adapters: list[Path]
) -> None:
    """In half precision, as on a GPU; a packed row of several prompts with their answers may well be that long."""
    base = Path(shutil.copytree(quickstart / "base", tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    rows = [([1, 3, *range(20 + n, 30 + n), 5, 4], [*range(70 + n, 78 + n), 5]) for n in range(8)]
    worker = open_unsloth(hf, base, tmp_path, dropout=0.0, longest=32, machine=Machine("cpu", "bfloat16"))
    first = worker.call("score", adapters[0], rows)
    assert worker.call("score", adapters[0], rows) == first
    worker.close()


def test_its_fused_kernels_give_the_gradients_of_peft(hf: HF, unsloth: Worker, adapters: list[Path], tmp_path: Path) -> None:
    """A step of plain gradient descent moves every weight by its gradient: within 2e-5 of it, tensor by tensor."""
    step = {**SETTINGS, "batch_size": len(PAIRS), "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e6}
    before = unsloth.call("ran")
    mine, _ = unsloth.call("train", adapters[0], PAIRS, DPO, step, tmp_path / "mine", report=lambda *told: None)
    ran = unsloth.call("ran") - before
    theirs, _ = hf.train(adapters[0], PAIRS, DPO, step, tmp_path / "theirs", lambda *told: None)
    assert ran["LoRA_MLP.backward"] >= LAYERS
    assert {ran[f"{name}.backward"] for name in FUSED} == {ran["LoRA_MLP.backward"]}
    moved, wanted, start = (load_file(folder / "adapter_model.safetensors") for folder in (mine, theirs, adapters[0]))
    assert moved.keys() == wanted.keys()
    for name, weight in wanted.items():
        gradient = (weight - start[name]).norm()
        assert gradient > 1e-3  # and the weights are near 0.05: what float32 rounds off of them is far below
        assert (moved[name] - weight).norm() < 2e-5 * gradient


def test_it_trains_the_adapter_that_transformers_trains(hf: HF, unsloth: Worker, adapters: list[Path], tmp_path: Path) -> None:
    told: list[int] = []
    mine, metrics = unsloth.call(
        "train", adapters[0], PAIRS, DPO, SETTINGS, tmp_path / "mine", report=lambda rows, *_: told.append(rows)
    )
    theirs, expected = hf.train(adapters[0], PAIRS, DPO, SETTINGS, tmp_path / "theirs", lambda *told: None)
    assert sum(told) == len(PAIRS)
    assert [record["loss"] for record in metrics] == pytest.approx([record["loss"] for record in expected], abs=1e-3)
    trained, wanted = (load_file(folder / "adapter_model.safetensors") for folder in (mine, theirs))
    start = load_file(adapters[0] / "adapter_model.safetensors")
    assert trained.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert str(trained[name].dtype) == "torch.float32"
        moved = (weight - start[name]).norm()  # Adam's first steps turn the rounding of tiny gradients into full steps
        assert (trained[name] - weight).norm() < 0.02 * moved and moved > 0
    assert unsloth.call("score", mine, ROWS) == pytest.approx(hf.score(theirs, ROWS), abs=1e-2)


def test_fresh_weights_start_as_the_base(unsloth: Worker, tmp_path: Path) -> None:
    """After other adapters were in the slot; and plain fine-tuning, which has no rejected side, goes through it too."""
    pairs = [Pair(*row) for row in ROWS[:2]]
    still = {**SETTINGS, "learning_rate": 1e-12}
    folder, _ = unsloth.call("train", None, pairs, {"name": "sft"}, still, tmp_path / "still", report=lambda *told: None)
    assert unsloth.call("score", folder, ROWS) == pytest.approx(unsloth.call("score", None, ROWS), abs=1e-4)


def test_without_a_gpu_it_is_refused_in_one_line(hf: HF, quickstart: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^training\.engine: 'unsloth' needs an NVIDIA GPU"):
        Unsloth(hf.recipe, Source(str(quickstart / "base"), None, "test"), CPU, tmp_path / "weights", print)


def test_every_argument_is_known_to_this_version(unsloth: Worker) -> None:
    """What it does not know it would swallow, or pass on to transformers, without a word."""
    passed, known = unsloth.call("arguments")
    assert passed["from_pretrained"] - known["from_pretrained"] == {"use_safetensors"}  # meant for transformers
    assert passed["get_peft_model"] <= known["get_peft_model"]
    assert passed["for_training"] <= known["for_training"]


def test_the_signature_is_a_learners() -> None:
    assert inspect.signature(Unsloth.train).parameters.keys() == inspect.signature(HF.train).parameters.keys()
