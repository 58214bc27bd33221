"""Optimisers and schedules: what transformers names is tried before a game, and a recipe's options are trained with."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from helpers.commands import assert_one_line, call
from helpers.games import SETTINGS, open_hf, opened, some_pairs, tiny
from lowmem_spin.algorithm.settings import training_settings
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.config.training_config import Training
from lowmem_spin.engines.loading import without_dropout
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.training.optimizer import check_names, try_optimizer
from lowmem_spin.engines.training.trial import SURE_OPTIMIZERS, SURE_SCHEDULES, check_optimizer, warmup_note

STEPS = 24
LOSS = {"name": "dpo", "beta": 0.1}


def tried(device: str = "cpu", **training: Any) -> str:
    """What is said against it; nothing if it can be used."""
    asked = Training(**training)
    try:
        check_names(asked)
        try_optimizer(training_settings(asked, 0), STEPS, device)
    except InputError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("training", "line"),
    [
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "training.lr_scheduler_type: 'cosine_with_min_lr' cannot be used: One of min_lr or min_lr_rate should be set "
            "through the `lr_scheduler_kwargs`; set training.lr_scheduler_kwargs, or use cosine",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "missing 1 required positional argument: 'num_decay_steps'; set"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "needs the loss on held-out rows, which is not computed"),
        ({"lr_scheduler_kwargs": {"min_lr": 1e-6}}, "an unexpected keyword argument 'min_lr'; correct training."),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2}},
            "training.lr_scheduler_kwargs: constant has no options; leave them out",
        ),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "two"}}, "'two'; correct"),  # after the warm-up
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": -1}}, "training.lr_scheduler_type: 'polynomial'"),
        ({"optim": "galore_adamw"}, "training.optim: 'galore_adamw' works on the gradients of whole weight matrices"),
        ({"optim": "adalomo"}, "changes the weights in every backward pass, and a step has several; use adamw_torch"),
        ({"optim": "schedule_free_adamw"}, "trains on other weights than those to be saved, which is not supported"),
        ({"optim": "adamw_apex_fused"}, "training.optim: 'adamw_apex_fused' is unknown to transformers; try adamw_"),
        ({"optim": "adamw_anyprecision"}, "Please install https://github.com/pytorch/torchdistx; use adamw_torch"),
        ({"optim": "sgd", "optim_args": {"momentm": 0.9}}, "training.optim_args: momentm has no effect on sgd; leave it out"),
        ({"optim_args": {"momentum": 0.9}}, "training.optim_args: momentum has no effect on adamw_torch; leave it out"),
        ({"optim": "sgd", "optim_args": {"momentum": "much"}}, "cannot be used: could not convert string to float: 'much'"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "training.adam_beta1: has no effect on sgd; leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line(training: dict[str, Any], line: str) -> None:
    assert line in tried(**training)


@pytest.mark.parametrize(
    "training",
    [
        {"optim": "sgd", "optim_args": {"momentum": 0.9, "nesterov": True}},
        {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "1e-6"}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 4, "decay_type": "linear"}},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1.5}},
    ],
)
def test_what_can_be_used_with_its_options_is(training: dict[str, Any]) -> None:
    assert tried(**training) == ""


@pytest.mark.parametrize("name", [*OptimizerNames, *SchedulerType], ids=lambda name: name.value)
def test_every_name_is_usable_or_refused_with_a_remedy(name: OptimizerNames | SchedulerType) -> None:
    field = "optim" if isinstance(name, OptimizerNames) else "lr_scheduler_type"
    for device in ("cpu", "cuda"):
        said = tried(device, **{field: name.value})
        assert not said or (said.startswith(f"training.{field}: '{name.value}' ") and "use " in said)
        assert not said or name.value not in (*SURE_OPTIMIZERS, *SURE_SCHEDULES)  # which are not tried


def test_it_is_refused_by_run_sweep_and_plan_before_anything_is_computed(tmp_path: Path) -> None:
    changes = [f"--set={change}" for change in tiny(tmp_path, "training.lr_scheduler_type=cosine_with_min_lr")]
    for command in (["run"], ["sweep", "--alpha", "0.5,1"], ["plan"]):
        result = call(command[0], "quickstart", *command[1:], *changes)
        assert result.returncode == 2 and "training.lr_scheduler_type: 'cosine_with_min_lr' cannot be used" in result.stderr
        if command != ["sweep", "--alpha", "0.5,1"]:  # which says it of each point
            assert_one_line(result)
    assert not (tmp_path / "store" / "data").exists()


def test_every_iteration_is_tried() -> None:
    """The polynomial schedule ends at 1e-7, which the last iteration's learning rate is below."""
    content = {"model": {"name_or_path": "m"}, "data": {"path": "d"}, "game": {"pairs": 640}}
    training = {"lr_scheduler_type": "polynomial", "learning_rate": [1e-5, 1e-6, 5e-8]}
    with pytest.raises(InputError, match=r"lr_end \(1e-07\) must be smaller than initial lr \(5e-08\)"):
        check_optimizer(Recipe.model_validate({**content, "training": training}), "cpu")
    training = {"lr_scheduler_type": "polynomial", "learning_rate": [1e-5, 1e-6, 5e-7]}
    check_optimizer(Recipe.model_validate({**content, "training": training}), "cpu")


def test_options_are_those_that_are_trained_with(quickstart: Path, tmp_path: Path) -> None:
    engine = open_hf(quickstart / "base")
    asked = {"adam_beta1": 0.8, "adam_epsilon": 1e-6, "lr_scheduler_type": "cosine_with_min_lr"}
    settings = {**SETTINGS, **asked, "lr_scheduler_kwargs": {"min_lr_rate": 0.25}, "warmup_ratio": 0.0}
    _, metrics = engine.train(None, some_pairs(8), LOSS, settings, tmp_path / "adam", lambda *told: None)
    rates = [1e-3 * (0.25 + 0.75 * (1 + math.cos(math.pi * step / 6)) / 2) for step in range(6)]
    assert [record["learning_rate"] for record in metrics] == pytest.approx(rates)
    state = torch.load(tmp_path / "adam" / "checkpoint-6" / "optimizer.pt", weights_only=True)
    assert {(group["betas"], group["eps"]) for group in state["param_groups"]} == {((0.8, 0.999), 1e-6)}
    plain = {**SETTINGS, "optim": "sgd", "optim_args": {"momentum": 0.9, "nesterov": True}}
    engine.train(None, some_pairs(8), LOSS, plain, tmp_path / "sgd", lambda *told: None)
    state = torch.load(tmp_path / "sgd" / "checkpoint-6" / "optimizer.pt", weights_only=True)
    assert {(group["momentum"], group["nesterov"]) for group in state["param_groups"]} == {(0.9, True)}


def test_a_schedule_without_a_warm_up_has_none_from_its_first_step_either(quickstart: Path, tmp_path: Path) -> None:
    asked = {"warmup_ratio": 0.5, "warmup_from": "first_step", "lr_scheduler_type": "constant"}
    engine, settings = open_hf(quickstart / "base"), {**SETTINGS, **asked}
    _, metrics = engine.train(None, some_pairs(8), LOSS, settings, tmp_path, lambda *told: None)
    assert [record["learning_rate"] for record in metrics] == [1e-3] * 6


@pytest.mark.parametrize(("begins", "rises"), [("zero", [0, 1 / 3, 2 / 3]), ("first_step", [1 / 4, 2 / 4, 3 / 4])])
def test_a_warm_up_begins_where_the_recipe_says(quickstart: Path, tmp_path: Path, begins: str, rises: list[float]) -> None:
    engine, settings = open_hf(quickstart / "base"), {**SETTINGS, "warmup_ratio": 0.5, "warmup_from": begins}
    _, metrics = engine.train(None, some_pairs(8), LOSS, settings, tmp_path, lambda *told: None)
    rates = [record["learning_rate"] / 1e-3 for record in metrics]
    assert rates == pytest.approx([*rises, 1, 3 / 4, 1 / 4])  # of the cosine, whose peak stays where it is


def test_a_first_step_that_is_wasted_is_told_and_the_default_is_in_no_key() -> None:
    def note(pairs: int, **training: Any) -> list[str]:
        content = {"model": {"name_or_path": "m"}, "data": {"path": "d"}, "game": {"pairs": pairs}, "training": training}
        return warmup_note(Recipe.model_validate(content))

    assert note(64 * 8) == [
        "training.warmup_from: zero, so the first of 8 optimiser steps has learning rate 0 and changes nothing; with "
        "first_step it learns"
    ]
    assert [note(64 * 32), note(64 * 4), note(64 * 8, warmup_from="first_step"), note(64 * 8, warmup_ratio=0)] == [[]] * 4
    assert "warmup_from" not in training_settings(Training(), 0)
    assert training_settings(Training(warmup_from="first_step"), 0)["warmup_from"] == "first_step"


SIZES: Any = {"vocab_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BASES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=32, n_layer=1, n_head=2, n_embd=16)),  # modules, 0.1 each
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, hidden_size=16, intermediate_size=16, attention_dropout=0.5)),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_base_without_dropout_has_nothing_random_left(name: str, attention: str) -> None:
    torch.manual_seed(0)
    base: Any = BASES[name]()
    base.set_attn_implementation(attention)
    ids = torch.arange(20)[None]
    still = base.eval()(ids).logits
    base.train()
    assert not torch.equal(base(ids).logits, still)
    without_dropout(base)
    torch.testing.assert_close(base(ids).logits, still)
    assert all(module.training for module in base.modules())  # gradient checkpointing asks for that


def test_dropout_of_the_base_is_a_choice_and_the_adapters_own_is_not_touched(tmp_path: Path) -> None:
    from lowmem_spin.engines.hf import HF

    for disabled in (False, True):
        engine = HF.__new__(HF)
        engine.machine = Machine("cpu", "float32")
        engine.recipe = Recipe.model_validate(
            {
                "model": {"name_or_path": "m"},
                "data": {"path": "d"},
                "training": {"disable_dropout": disabled, "lora": {"dropout": 0.2, "target_modules": ["c_attn"]}},
            }
        )
        model = engine._with_slot(engine._quiet(BASES["gpt2"]()))
        found = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
        assert {p for name, p in found.items() if "lora" in name} == {0.2}
        assert {p for name, p in found.items() if "lora" not in name} == {0.0 if disabled else 0.1}


def test_games_that_differ_in_it_do_not_share_an_engine(tmp_path: Path) -> None:
    assert len({opened(tmp_path, f"training.disable_dropout={value}").signature for value in ("true", "false")}) == 2
