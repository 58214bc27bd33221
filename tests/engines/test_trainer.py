"""The trainer: the loss against TRL's, the order against its definition, a resumed training against a whole one."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from helpers.damages import harm
from helpers.games import SETTINGS, open_hf, shake_slot, some_pairs
from lowmem_spin.algorithm.losses import dpo
from lowmem_spin.common.display import Display, StageMeter
from lowmem_spin.engines import peft_learner
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.training import trainer
from lowmem_spin.engines.training.checkpoints import checkpoints, damaged_checkpoints, finish_checkpoint, last_checkpoint
from lowmem_spin.engines.training.logps import Batch, collate, completion_logps, decoder_states
from lowmem_spin.engines.training.pair import Pair
from lowmem_spin.engines.training.trainer import LengthGrouped
from lowmem_spin.store.adapters import told_of, training_folder
from lowmem_spin.store.store import Store

LOSS = {"name": "dpo", "beta": 0.3}


class TRL(DPOTrainer):
    """TRL's trainer, made to take token ids and reference log-probs as they are."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="TRL's Triton head runs on a CPU only interpreted")
def test_loss_and_gradients_equal_trl(quickstart: Path, tmp_path: Path) -> None:
    pairs = some_pairs(5)
    columns = {
        "prompt_ids": [pair.prompt for pair in pairs],
        "chosen_ids": [pair.chosen for pair in pairs],
        "rejected_ids": [pair.rejected for pair in pairs],
        "ref_chosen_logps": [pair.ref_logps[0] for pair in pairs],
        "ref_rejected_logps": [pair.ref_logps[1] for pair in pairs],
    }
    base = AutoModelForCausalLM.from_pretrained(quickstart / "base", dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(2)
    set_peft_model_state_dict(model, {k: 0.05 * torch.randn_like(v) for k, v in get_peft_model_state_dict(model).items()})
    arguments = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, precompute_ref_log_probs=True, use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, per_device_train_batch_size=5, remove_unused_columns=False, disable_dropout=True,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(quickstart / "base", padding_side="left")
    theirs = TRL(model=model, args=arguments, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer)
    batch = theirs.data_collator([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    trl_loss = theirs.compute_loss(model, batch)
    trl_loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    rows = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs if p.rejected is not None]
    logps = completion_logps(model.get_base_model(), collate(rows, 0))
    loss = dpo(logps[:5], logps[5:], torch.full((5,), -9.0), torch.full((5,), -8.0), beta=0.3).mean()
    loss.backward()
    assert loss.item() == pytest.approx(trl_loss.item(), abs=1e-5)
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == expected.keys()
    assert len(ours) == 2 * 4 * 7
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_the_order_is_a_pure_function_that_groups_by_length() -> None:
    lengths = torch.randint(1, 500, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    order = LengthGrouped(lengths, 32, seed=1)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == sorted(second) == list(range(1003))
    assert first != second
    order.set_epoch(0)
    assert list(order) == first != list(LengthGrouped(lengths, 32, seed=2))
    spreads = [max(batch) - min(batch) for batch in ([lengths[row] for row in first[i : i + 32]] for i in range(0, 992, 32))]
    assert sum(spreads) / len(spreads) < 60  # of 500: unsorted batches of 32 spread over 470


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def train(engine: HF, work: Path, pairs: list[Pair], **changes: Any) -> dict[str, torch.Tensor]:
    return weights_of(engine.train(None, pairs, LOSS, {**SETTINGS, **changes}, work, lambda *told: None)[0])


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) <= tolerance


def test_the_split_over_device_batches_does_not_matter(quickstart: Path, tmp_path: Path) -> None:
    pairs = some_pairs(14)  # not a multiple of the effective batch: the last step of an epoch is short
    whole = open_hf(quickstart / "base", per_device_train_batch_size=4, gradient_accumulation_steps=1)
    split = open_hf(quickstart / "base", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    plain = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.05}  # Adam and clipping would hide a wrong scale
    one, other = train(whole, tmp_path / "whole", pairs, **plain), train(split, tmp_path / "split", pairs, **plain)
    assert_equal(one, other, 2e-5)
    assert max(weights.abs().max() for name, weights in one.items() if "lora_B" in name) > 1e-3  # they have moved


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_layers_that_are_computed_again_give_the_same_adapter_bit_for_bit(
    dropout: float, quickstart: Path, tmp_path: Path
) -> None:
    """The same gradients, dropout's draws included; of a frozen base, whose embedding needs none."""
    pairs = some_pairs(6)
    kept = open_hf(quickstart / "base", dropout=dropout)
    again = open_hf(quickstart / "base", dropout=dropout, gradient_checkpointing=True)
    calls = []
    base: Any = again.model.get_base_model()
    base.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    one, other = train(kept, tmp_path / "kept", pairs), train(again, tmp_path / "again", pairs)
    assert_equal(one, other, 0.0)
    assert calls.count(True) == calls.count(False) > 0  # a forward that keeps nothing, and one more for the backward
    assert max(weights.abs().max() for name, weights in one.items() if "lora_B" in name) > 1e-3


def _flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes([content[-40] ^ 2]) + content[-39:])


DAMAGES: list[tuple[str, Callable[[Path], Any]]] = [
    ("optimizer.pt", lambda path: path.write_bytes(b"")),
    ("optimizer.pt", Path.unlink),
    ("scheduler.pt", Path.unlink),
    ("rng_state.pth", Path.unlink),
    ("adapter_model.safetensors", _flip),
    ("trainer_state.json", _flip),
    ("trainer_state.json", lambda path: (path.unlink(), path.mkdir())),
    ("manifest.json", Path.unlink),
    ("manifest.json", _flip),
]


def test_a_resumed_training_ends_in_the_same_adapter(quickstart: Path, tmp_path: Path) -> None:
    pairs = some_pairs(14)  # 12 steps in 3 epochs, dropout on
    recipe = {"dropout": 0.1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    engine = open_hf(quickstart / "base", **recipe)
    engine.recipe = engine.recipe.model_copy(
        update={"runtime": engine.recipe.runtime.model_copy(update={"checkpoint_steps": 3})}
    )
    whole = train(engine, tmp_path / "whole", pairs)
    for steps in (3, 9):
        work = tmp_path / f"stopped at {steps}"
        stop_at(engine, work, pairs, steps)
        shake_slot(engine)  # nothing may be left over from what the slot held
        meter = StageMeter(Display(Console(quiet=True)), "train", "iterate 0", 42)
        made, _ = engine.train(None, pairs, LOSS, SETTINGS, work, told_of(meter, 10.0))
        assert_equal(weights_of(made), whole, 0.0)
        learned = {3: 12, 9: 2 * 14 + 4}[steps]  # of 42 rows, before: they are no measure of this run's speed
        assert (meter.done, meter.computed, meter.tokens) == (42, 42 - learned, 10 * (42 - learned))
    said: list[str] = []
    store = Store(tmp_path / "store", said.append)
    work = store.work("key")
    for number, (name, damage) in enumerate(DAMAGES):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", work, ignore=shutil.ignore_patterns("adapter"))
        damage(work / "checkpoint-12" / name)
        assert [path.name for path in checkpoints(training_folder(store, "key"))] == ["checkpoint-9"], name
        assert len(said) == number + 1 and name in said[-1] and said[-1].endswith("goes on from checkpoint-9")
    assert_equal(train(engine, work, pairs), whole, 0.0)
    newest, r = checkpoints(work)[0], random.Random(0)
    for _ in range(100):
        assert damaged_checkpoints(work) == []
        victim = r.choice(sorted(newest.iterdir()))
        content = victim.read_bytes()
        how = harm(r, victim)
        assert [folder for folder, _ in damaged_checkpoints(work)] == [newest] or victim.read_bytes() == content, (victim, how)
        if victim.is_dir():
            victim.rmdir()
        victim.write_bytes(content)
    for folder in checkpoints(work):
        (folder / "manifest.json").unlink()  # as earlier versions wrote them
    assert checkpoints(training_folder(store, "key")) == []
    assert len(said) == len(DAMAGES) + 2 and all(line.endswith("and training starts again") for line in said[-2:])
    assert_equal(train(engine, work, pairs), whole, 0.0)


def test_there_is_always_a_checkpoint_to_go_back_to(tmp_path: Path) -> None:
    before = None
    for step in (9, 10, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"state")
        assert last_checkpoint(tmp_path) == before  # while the new one is written
        finish_checkpoint(folder)
        before = folder
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10"]


class StoppedError(Exception):
    pass


def stop_at(engine: HF, work: Path, pairs: list[Pair], steps: int) -> None:
    """Train until the checkpoint after `steps` is written, then break off."""

    def advance(rows: int, *told: object) -> None:
        if rows == 0 and not any(told) and (work / f"checkpoint-{steps}").exists():
            raise StoppedError

    with pytest.raises(StoppedError):
        engine.train(None, pairs, LOSS, SETTINGS, work, advance)


def test_metrics_have_trls_names(quickstart: Path, tmp_path: Path) -> None:
    engine = open_hf(quickstart / "base")
    _, metrics = engine.train(None, some_pairs(8), LOSS, SETTINGS, tmp_path, lambda *told: None)
    names = {"loss", "learning_rate", "grad_norm", "logps/chosen", "logps/rejected"}
    names |= {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    assert names <= metrics[0].keys()
    assert metrics[0]["rewards/margins"] == pytest.approx(
        metrics[0]["rewards/chosen"] - metrics[0]["rewards/rejected"], abs=1e-4
    )


def test_the_last_tokens_log_probs_are_recorded_apart(quickstart: Path, tmp_path: Path) -> None:
    """A rejected answer that is the chosen one without its last token is that token's log-prob likelier."""
    whole = [pair for pair in some_pairs(8) if len(pair.chosen) > 2]
    engine, settings = open_hf(quickstart / "base"), {**SETTINGS, "batch_size": len(whole)}

    def first(name: str, without: int) -> dict[str, float]:
        """Of a training on answers without so many tokens of their end, against such without one more."""
        cut = [(pair.prompt, pair.chosen[: len(pair.chosen) - without]) for pair in whole]
        pairs = [Pair(prompt, chosen, chosen[:-1]) for prompt, chosen in cut]
        return engine.train(None, pairs, LOSS, settings, tmp_path / name, lambda *told: None)[1][0]

    one, other = first("one", 0), first("other", 1)
    assert one["logps/chosen"] - one["logps/rejected"] == pytest.approx(one["logps/chosen_last"], abs=1e-4)
    assert one["logps/rejected_last"] == pytest.approx(other["logps/chosen_last"], abs=1e-4)
    assert one["logps/chosen_last"] != pytest.approx(one["logps/rejected_last"], abs=0.1)


def test_training_computes_in_the_precision_that_scoring_does(
    quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 has its autocast on a GPU; here both get a CPU's, and the forward of each tells whether it is on."""
    engine, pairs, seen = open_hf(quickstart / "base"), some_pairs(4), []

    def telling(model: Any, batch: Batch) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return decoder_states(model, batch)

    monkeypatch.setattr(engine, "states", telling)
    for module in (peft_learner, trainer):
        monkeypatch.setattr(module, "autocast", lambda device, dtype: torch.autocast("cpu", torch.bfloat16))
    engine.score(None, [(pair.prompt, pair.chosen) for pair in pairs])
    engine.train(None, pairs, LOSS, SETTINGS, tmp_path, lambda *told: None)
    assert len(seen) == 1 + 3 and all(seen)


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends a GPU")
def test_the_trainer_is_where_the_engine_is(quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that wait in RAM, as these do, are no reason to train on the CPU. Without a GPU, transformers takes it anyway."""
    engine, asked, arguments = open_hf(quickstart / "base"), [], trainer.TrainingArguments

    def asking(**options: Any) -> Any:
        asked.append(options["use_cpu"])
        return arguments(**options)

    monkeypatch.setattr(trainer, "TrainingArguments", asking)
    for device in ("cpu", "cuda"):
        engine.device = torch.device(device)
        engine.train(None, some_pairs(4), LOSS, SETTINGS, tmp_path / device, lambda *told: None)
    assert asked == [True, False]


def test_rows_shown_add_up_to_rows_trained(quickstart: Path, tmp_path: Path) -> None:
    shown: list[tuple[int, float | None, bool]] = []
    logged: list[Any] = []

    def advance(rows: int, loss: float | None = None, resumed: bool = False, record: Any = None) -> None:
        logged.extend([] if record is None else [record])
        shown.append((rows, loss, resumed))

    engine = open_hf(quickstart / "base")
    _, metrics = engine.train(None, some_pairs(14), LOSS, SETTINGS, tmp_path, advance)
    assert sum(rows for rows, _, _ in shown) == 14 * 3
    assert not any(resumed for _, _, resumed in shown)
    assert [loss for rows, loss, _ in shown if rows][-1] in [record["loss"] for record in metrics]  # the last that was logged
    assert logged == metrics
