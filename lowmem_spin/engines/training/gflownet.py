"""GFlowNet fine-tuning: an adapter that samples the geometric mixture of another policy and the base by itself.

"Amortizing intractable inference in large language models" (arXiv 2310.04363), with the mixture as its reward as in
alpha-SPIN (arXiv 2404.04291, appendix A). The reward is R(y) = p(y)^alpha b(y)^(1 - alpha), p the previous iterate and b the
base, over the sequences that sampling/ defines. The policy starts as p and is rewarded at every prefix of what it draws.

The loop is our own and not transformers' trainer: every step trains on what the weights of that step draw.
"""

import json
import random
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.subtb import StepLogps, subtb_loss, weighted_count
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import Tokens
from lowmem_spin.common.keys import number
from lowmem_spin.engines.base import Advance, MixtureSampler
from lowmem_spin.engines.peft_learner import PeftLearner
from lowmem_spin.engines.training.checkpoints import finish_checkpoint, last_checkpoint
from lowmem_spin.engines.training.guards import finite, naming_memory
from lowmem_spin.engines.training.logps import autocast, collate, step_logps
from lowmem_spin.engines.training.trainer import LengthGrouped

RECORDS = 50  # of metrics, about


@dataclass(frozen=True)
class GFlowNetRow:
    """A sequence to balance."""

    prompt: Tokens
    tokens: list[int]  # its end token included, if it has one
    own: bool  # drawn in this step from the policy itself, untempered


class GFlowNetTrainer:
    """Trains an engine's slot; p and b take their turns in the same slot when the reward is computed.

    Nothing is swapped between a forward and its backward, and there is never a second adapter beside the base.

    Args:
        engine: whose base, slot and sampling are used; it is a PeftLearner too.
        previous: adapter folder of p.
        base: adapter folder of b; None is the frozen base.
        prompts: token ids.
        alpha: weight of p in the mixture, in [0, 1]; the base has the rest.
        max_new_tokens: the cap.
        settings: epochs, batch_size (sequences per step), learning_rate, warmup_ratio, max_grad_norm (0 is no limit) and seed
            as in training; samples, the sequences of each prompt in a step, which divides batch_size (1 if left out); lam,
            see subtb.py; buffer, the sequences of each prompt that are kept to train on again, and replay, the probability
            of it; explore, the probability that a step draws at a temperature from the range temperatures, [low, high];
            reward_temperature, where log R is divided by a number that falls to 1 during the first part, anneal, of the steps.
        work: folder for checkpoints; training goes on from the last finished one.
    """

    def __init__(
        self,
        engine: MixtureSampler,
        previous: Path,
        base: Path | None,
        prompts: Sequence[Tokens],
        alpha: float,
        max_new_tokens: int,
        settings: dict[str, Any],
        work: Path,
    ) -> None:
        if not isinstance(engine, PeftLearner):
            raise TypeError(f"{type(engine).__name__} has no slot to train")
        self.engine, self.prompts, self.alpha, self.cap = engine, prompts, alpha, max_new_tokens
        self.settings, self.work = settings, work
        self.base = None if base is None else self._read(base)
        self.previous = self._read(previous)
        self.weights = self._slot()
        self.samples, epochs = settings.get("samples", 1), settings["epochs"]
        self.size = settings["batch_size"] // self.samples  # prompts in a step
        self.order = LengthGrouped([len(prompt) for prompt in prompts], self.size, settings["seed"])
        self.per_epoch = -(-len(prompts) // self.size)
        self.steps = epochs * self.per_epoch
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=settings["learning_rate"], weight_decay=0.0)
        warmup = round(self.steps * settings["warmup_ratio"])
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, warmup, self.steps)
        half = engine.machine.device == "cuda" and engine.machine.dtype == "float16"
        self.scaler = torch.amp.GradScaler(engine.machine.device, enabled=half)
        self.buffer = [deque[list[int]](maxlen=settings["buffer"]) for _ in prompts]
        self.history: list[dict[str, float]] = []
        self.recent: list[dict[str, float]] = []  # steps since the last record

    def run(self, advance: Advance) -> tuple[Path, list[dict[str, float]]]:
        """The folder of the new adapter, and the metrics of its steps, as means over stretches of them.

        `loss` can be small where the policy is wrong on what it seldom draws. `log_ratio` is the mean of log pi(y) - log R(y)
        over what the policy draws by itself: its divergence from the mixture, KL(pi || R / Z), less log Z.
        `advance` is told as in Learner.train.

        Raises:
            InputError: a batch does not fit in memory, or the loss is no number any more.
        """
        model = self.engine.model.get_base_model()
        every, keep = max(1, self.steps // RECORDS), self.engine.recipe.runtime.checkpoint_steps
        first = self._resume()
        if first:
            epochs, steps = divmod(first, self.per_epoch)
            advance((epochs * len(self.prompts) + steps * self.size) * self.samples, None, True)
        if self.engine.recipe.training.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        try:
            for step in range(first, self.steps):
                rows = self._draw(step)
                self.recent.append(self._learn(step, rows))
                if (step + 1) % every == 0 or step + 1 == self.steps:
                    self._record(step)
                saves = (step + 1) % keep == 0
                if saves:
                    self._save(step + 1)
                advance(len(rows), self.history[-1]["loss"] if self.history else None)
                if saves:
                    advance(0)
            return self.engine.save_slot(self.work), self.history
        finally:
            model.gradient_checkpointing_disable()  # type: ignore[operator]
            self._mode(learning=False)
            self.engine.model.zero_grad(set_to_none=True)

    def _draw(self, step: int) -> list[GFlowNetRow]:
        """The sequences of a step: each prompt's own draws, or some that were drawn for it before."""
        settings = self.settings
        epoch, batch = divmod(step, self.per_epoch)
        self.order.set_epoch(epoch)
        places = list(self.order)[batch * self.size : (batch + 1) * self.size]
        draws = [(place, sample) for place in places for sample in range(self.samples)]
        chance = random.Random(number(settings["seed"], "gflownet", step))
        explores = chance.random() < settings["explore"]
        temperature = chance.uniform(*settings["temperatures"]) if explores else 1.0
        rows: dict[tuple[int, int], GFlowNetRow] = {}
        for place, sample in draws:
            if self.buffer[place] and chance.random() < settings["replay"]:
                rows[place, sample] = GFlowNetRow(self.prompts[place], chance.choice(self.buffer[place]), own=False)
        fresh = [draw for draw in draws if draw not in rows]
        seeds = [number(settings["seed"], "gflownet", epoch, place, *([sample] if sample else [])) for place, sample in fresh]
        drawn = self._sample([(self.prompts[place], seed) for (place, _), seed in zip(fresh, seeds, strict=True)], temperature)
        for (place, sample), tokens in zip(fresh, drawn, strict=True):
            rows[place, sample] = GFlowNetRow(self.prompts[place], tokens, own=not explores)
            if tokens not in self.buffer[place]:
                self.buffer[place].append(tokens)
        return [rows[draw] for draw in draws]

    def _sample(self, draws: Sequence[tuple[Tokens, int]], temperature: float) -> list[list[int]]:
        self._mode(learning=False)
        sampling = Sampling(temperature, 1.0, None, self.cap, 0, {})
        size, drawn = self.engine.recipe.runtime.generation_batch_size, []
        for start in range(0, len(draws), size):
            drawn += self.engine.sample(self.engine.model.get_base_model(), draws[start : start + size], sampling)
        return [completion.tokens for completion in drawn]

    def _heat(self, step: int) -> float:
        """What log R is divided by."""
        left = 1 - step / max(1.0, self.settings["anneal"] * self.steps)
        return 1 + (self.settings["reward_temperature"] - 1) * max(0.0, left)

    def _learn(self, step: int, rows: Sequence[GFlowNetRow]) -> dict[str, float]:
        """One optimiser step on the mean over all sub-trajectories of these rows."""
        lam, heat = self.settings["lam"], self._heat(step)
        lengths, capped = self._shape(rows)
        count = weighted_count(lengths, capped, lam).sum().clamp(min=1)  # an empty answer has no sub-trajectory
        device_rows = 2 * self.engine.recipe.training.per_device_train_batch_size  # as many as its pairs have
        loss, log_ratios = 0.0, []
        for start in range(0, len(rows), device_rows):
            part = rows[start : start + device_rows]
            with naming_memory("training.per_device_train_batch_size", device_rows // 2):
                reward = self._reward(part)
                self._mode(learning=True)
                policy = self._steps(part)
                cooled = StepLogps(reward.tokens / heat, reward.ends / heat)
                mean = subtb_loss(policy, cooled, *self._shape(part), lam).sum() / count
                self.scaler.scale(mean).backward()
            loss += mean.item()
            log_ratio = (policy.tokens - reward.tokens).detach().sum(1).tolist()
            log_ratios += [value for value, row in zip(log_ratio, part, strict=True) if row.own]
        if not loss < float("inf"):
            rate = self.settings["learning_rate"]
            raise InputError(f"game.sampler.learning_rate: {rate} made the loss {loss} at step {step + 1}; lower it")
        rate = self.schedule.get_last_lr()[0]
        made = {"loss": loss, "grad_norm": self._update(), "learning_rate": rate, "reward_temperature": heat}
        made["length"] = lengths.float().mean().item()
        return made | ({"log_ratio": fmean(log_ratios)} if log_ratios else {})

    def _update(self) -> float:
        """Take the step; the length of the gradient before it was shortened."""
        self.scaler.unscale_(self.optimizer)
        limit = self.settings["max_grad_norm"] or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), limit).item()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _shape(self, rows: Sequence[GFlowNetRow]) -> tuple[Tensor, Tensor]:
        """Of each row its tokens, and whether it was cut."""
        device = self.engine.device
        lengths = torch.tensor([len(row.tokens) for row in rows], device=device)
        return lengths, torch.tensor([row.tokens[-1] not in self.engine.ends for row in rows], device=device)

    @torch.no_grad()
    def _reward(self, rows: Sequence[GFlowNetRow]) -> StepLogps:
        """The log-factors of R; both policies score as they do elsewhere."""
        with self._in_slot(self.previous):
            p = self._steps(rows)
        with self.engine.playing(None) if self.base is None else self._in_slot(self.base):
            b = self._steps(rows)
        for values in (p.tokens, p.ends, b.tokens, b.ends):
            finite(values, self.engine.machine)
        parts = [self.alpha * x + (1 - self.alpha) * y for x, y in ((p.tokens, b.tokens), (p.ends, b.ends))]
        return StepLogps(*parts)

    def _steps(self, rows: Sequence[GFlowNetRow]) -> StepLogps:
        """What the model as it stands says of every step of these rows."""
        engine = self.engine
        batch = collate([(row.prompt, row.tokens) for row in rows], engine.pad).to(engine.device)
        with autocast(engine.device, engine.machine.dtype):
            return StepLogps(*step_logps(engine.model.get_base_model(), batch, engine.ends, engine.states))

    def _mode(self, learning: bool) -> None:
        """Dropout sleeps in both: the policy that samples is the one to balance, and noise inside a square adds to its mean."""
        self.engine._mode(learning)
        for module in self.engine.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()

    def _slot(self) -> dict[str, Tensor]:
        return {name: weight for name, weight in self.engine.model.named_parameters() if weight.requires_grad}

    def _read(self, adapter: Path) -> list[Tensor]:
        """The weights of an adapter, which the slot is left with."""
        with self.engine.playing(adapter):
            self.engine.slot.holds = None  # what is done to the slot from here on is in no folder
            return [weight.detach().clone() for weight in self._slot().values()]

    @contextmanager
    def _in_slot(self, weights: Sequence[Tensor]) -> Iterator[None]:
        self._mode(learning=False)
        trained = [weight.clone() for weight in self.weights.values()]
        self._fill(weights)
        try:
            yield
        finally:
            self._fill(trained)

    @torch.no_grad()
    def _fill(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.weights.values(), values, strict=True):
            weight.copy_(value)

    def _record(self, step: int) -> None:
        """The means over the steps since the last record."""
        names = dict.fromkeys(name for made in self.recent for name in made)
        means = {name: fmean(made[name] for made in self.recent if name in made) for name in names}
        self.history.append({"step": step + 1, "epoch": (step + 1) / self.per_epoch, **means})
        self.recent = []

    def _save(self, step: int) -> None:
        """A checkpoint."""
        folder = self.work / f"checkpoint-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_file({name: weight.detach().contiguous() for name, weight in self.weights.items()}, folder / "slot.safetensors")
        state = {"optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}
        torch.save({name: part.state_dict() for name, part in state.items()}, folder / "optimizer.pt")
        kept = [list(kept) for kept in self.buffer]
        told = {"global_step": step, "log_history": self.history, "recent": self.recent, "buffer": kept}
        (folder / "trainer_state.json").write_text(json.dumps(told))
        finish_checkpoint(folder)

    def _resume(self) -> int:
        """The steps that are done, with everything as it was after them."""
        folder = last_checkpoint(self.work)
        if folder is None:
            return 0
        saved = load_file(folder / "slot.safetensors")
        self._fill([saved[name].to(self.engine.device) for name in self.weights])
        state = torch.load(folder / "optimizer.pt", weights_only=True, map_location=self.engine.device)
        for name, part in (("optimizer", self.optimizer), ("schedule", self.schedule), ("scaler", self.scaler)):
            part.load_state_dict(state[name])
        told = json.loads((folder / "trainer_state.json").read_text())
        self.history, self.recent = told["log_history"], told["recent"]
        for kept, rows in zip(self.buffer, told["buffer"], strict=True):
            kept.extend(rows)
        return told["global_step"]
