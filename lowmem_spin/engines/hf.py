"""The transformers + PEFT engine: generates, scores and trains on any device, on one frozen base."""

import gc
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from lowmem_spin.data import Renderer
from lowmem_spin.engines import Completion, Machine, Request
from lowmem_spin.engines.noise import RowNoise
from lowmem_spin.game import Sampling
from lowmem_spin.logps import collate, completion_logps
from lowmem_spin.recipe import InputError, Recipe
from lowmem_spin.sources import Source
from lowmem_spin.store import Tokens
from lowmem_spin.training import Pair, check_names, train

SLOT = "default"  # the one adapter that is ever in memory; policies are copied into it


transformers.utils.logging.disable_progress_bar()  # one display is enough
transformers.utils.logging.set_verbosity_error()


def load_tokenizer(model: Source, trust_remote_code: bool) -> Any:
    """The tokenizer of a model, from the hub or a folder."""
    with _naming_the_model(model):
        return AutoTokenizer.from_pretrained(model.location, revision=model.revision, trust_remote_code=trust_remote_code)


def end_tokens(model: Source, tokenizer: Any, template: str | None) -> list[int]:
    """Tokens at which a completion ends: the template's end of turn, the tokenizer's end, and the model's own."""
    try:
        own = GenerationConfig.from_pretrained(model.location, revision=model.revision or "main").eos_token_id
    except OSError:  # a model without generation_config.json
        own = AutoConfig.from_pretrained(model.location, revision=model.revision or "main").eos_token_id
    ends = {Renderer(tokenizer, template).end_token, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return sorted(end for end in ends if end is not None)


@contextmanager
def _naming_the_model(model: Source) -> Iterator[None]:
    """What transformers says of a folder that is no model, in one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(f"model.name_or_path: {model.location!r} does not load as a model: {why}") from error


def load_base(model: Source, quantization: str, where: Machine, trust_remote_code: bool = False) -> Any:
    """The frozen base, in 4 bits or in the compute type."""
    dtype = getattr(torch, where.dtype)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    if where.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "runtime.device: the driver sees a GPU but this torch build does not; install a CUDA build, or use cpu"
        )
    with _naming_the_model(model):
        base = AutoModelForCausalLM.from_pretrained(
            model.location,
            revision=model.revision,
            dtype=dtype,
            device_map={"": where.device},
            quantization_config=four_bit if quantization == "nf4" else None,
            use_safetensors=True,  # a pickle can run code
            trust_remote_code=trust_remote_code,
        )
    for module in base.modules():
        # On AVX512-BF16 processors bitsandbytes repacks these weights at the first no-grad forward, in place, for
        # a kernel without backward: every later gradient would be silently wrong.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    # Its own penalties and suppressed tokens would change what is sampled: opponents are the policy itself.
    base.generation_config = GenerationConfig()
    base.requires_grad_(False)
    return base.eval()


def _finite(logps: torch.Tensor, where: Machine) -> list[float]:
    """Refuse to keep what is not a number, as an overflow in half precision gives."""
    if not torch.isfinite(logps).all():
        raise InputError(f"model.dtype: {where.dtype} gives log-probs that are not finite on this model; use another dtype")
    return logps.tolist()


@contextmanager
def _naming_memory(field: str, value: int) -> Iterator[None]:
    """A GPU that is too small for a batch, in one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise InputError(
            f"{field}: a batch of {value} does not fit in this GPU's memory; lower it and run again to go on"
        ) from None


class HF:
    """One base and one adapter slot; every policy is the base alone or with its weights copied into the slot.

    A batch has one policy: on a CPU, PEFT's mixed-adapter batches took 1.14 times as long for the same rows.
    """

    def __init__(self, recipe: Recipe, model: Source, where: Machine, shelf: Path | None = None) -> None:
        self.recipe, self.where = recipe, where
        check_names(recipe.training)
        self.device = torch.device(where.device)
        self.tokenizer = load_tokenizer(model, recipe.model.trust_remote_code)
        self.ends = end_tokens(model, self.tokenizer, recipe.model.chat_template)
        base = load_base(model, recipe.model.quantization, where, recipe.model.trust_remote_code)
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.ends[0]
        self.model = self._with_slot(base)
        self.in_slot: Path | None = None
        self._check_head()

    def _with_slot(self, base: Any) -> PeftModel:
        lora = self.recipe.training.lora
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
            bias="none",
            task_type="CAUSAL_LM",
        )
        try:
            model = get_peft_model(base, config, adapter_name=SLOT)
        except ValueError as error:
            raise InputError(f"training.lora.target_modules: {lora.target_modules!r}: {str(error).splitlines()[0]}") from None
        wrong = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} - {torch.float32}
        if wrong:
            raise TypeError(f"adapters must be float32, small updates vanish in {wrong}")
        return model

    def _check_head(self) -> None:
        """Refuse a model that does more to its logits than logps.py knows of: every score would be wrong."""
        row = ([self.pad, *self.ends[:1]], list(range(min(4, self.tokenizer.vocab_size))))
        with torch.no_grad(), self._playing(None) as policy:
            batch = collate([row], self.pad).to(self.device)
            ours = completion_logps(policy, batch)[0]
            logits = policy(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[0].float()
        wanted = batch.input_ids[0, 2:, None]
        theirs = logits[1:-1].log_softmax(-1).gather(-1, wanted).sum()
        if not torch.isclose(ours, theirs, rtol=1e-2, atol=1e-2):
            name = type(policy).__name__
            raise InputError(
                f"model.name_or_path: {name} changes its logits after the head in a way that is not supported "
                f"(log-prob {ours.item():.3f} without, {theirs.item():.3f} with); use another architecture"
            )

    @contextmanager
    def _playing(self, adapter: Path | None) -> Iterator[Any]:
        """The base model acting as a policy, in eval mode."""
        self.model.eval()
        if adapter is None:
            with self.model.disable_adapter():
                yield self.model.get_base_model()
            return
        if self.in_slot != adapter:
            self._fill_slot(adapter)
        yield self.model.get_base_model()

    def _fill_slot(self, adapter: Path) -> None:
        self.in_slot = None
        weights = load_peft_weights(str(adapter), device="cpu")
        self._check_fit(adapter, weights)
        set_peft_model_state_dict(self.model, weights, adapter_name=SLOT)
        self.in_slot = adapter

    def _check_fit(self, adapter: Path, weights: dict[str, torch.Tensor]) -> None:
        """Refuse an adapter of another shape or base; PEFT would load the part that fits and leave the rest."""
        slot = {name: tuple(weight.shape) for name, weight in get_peft_model_state_dict(self.model).items()}
        given = {name: tuple(weight.shape) for name, weight in weights.items()}
        for name in sorted(slot.keys() | given.keys()):
            if slot.get(name) != given.get(name):
                raise InputError(
                    f"model.adapter: {str(adapter)!r} was made for another base or other layers: {name} has shape "
                    f"{given.get(name, 'none')} there and {slot.get(name, 'none')} here; check training.lora and model"
                )
        config = PeftConfig.from_pretrained(str(adapter)).to_dict()
        special = [name for name in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if config.get(name)]
        if special:
            raise InputError(f"model.adapter: {str(adapter)!r} uses {special[0]}; only plain LoRA can be played")
        scale = config.get("lora_alpha")
        if scale != self.recipe.training.lora.lora_alpha:
            raise InputError(
                f"training.lora.lora_alpha: {self.recipe.training.lora.lora_alpha}, but {str(adapter)!r} has {scale}; use that"
            )

    mixes_policies = False

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One batch of completions of one policy; see engines.Generator."""
        (adapter,) = {request.adapter for request in requests}
        width = max(len(request.prompt) for request in requests)
        ids = torch.full((len(requests), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt) :] = torch.tensor(np.asarray(request.prompt))
            mask[row, width - len(request.prompt) :] = 1
        seeds = torch.tensor([request.seed for request in requests], device=self.device)
        ends = torch.tensor(self.ends, device=self.device)
        noise = RowNoise(seeds, ends, sampling.temperature, sampling.top_p, sampling.top_k, width)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.ends,
            pad_token_id=self.pad,
            use_cache=True,
        )
        small = _naming_memory("runtime.generation_batch_size", len(requests))
        with small, self._playing(adapter) as policy, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = policy.generate(
                ids.to(self.device), attention_mask=mask.to(self.device), generation_config=settings, logits_processor=[noise]
            )
        drawn, logps = output[:, width:].tolist(), _finite(noise.logps, self.where)
        return [self._completion(tokens, logp) for tokens, logp in zip(drawn, logps, strict=True)]

    def _completion(self, tokens: list[int], logp: float) -> Completion:
        stop = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        kept = tokens if stop is None else tokens[: stop + 1]
        text = self.tokenizer.decode(kept if stop is None else kept[:-1], skip_special_tokens=False)
        return Completion(kept, text, "length" if stop is None else "stop", logp)

    @torch.no_grad()
    def score(self, adapter: Path | None, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """Summed log-probs of one batch of rows; see engines.Learner."""
        with _naming_memory("runtime.scoring_batch_size", len(rows)), self._playing(adapter) as policy:
            logps = completion_logps(policy, collate(rows, self.pad).to(self.device))
        return _finite(logps, self.where)

    def train(
        self,
        init: Path | None,
        pairs: Sequence[Pair],
        loss: dict[str, Any],
        settings: dict[str, Any],
        work: Path,
        advance: Callable[[int], None],
    ) -> tuple[Path, list[dict[str, float]]]:
        """Train the slot from `init`, or from fresh weights on the base; see engines.Learner."""
        if init is None:
            torch.manual_seed(settings["seed"])
            self._reset_slot()
        else:
            self._fill_slot(init)
        self.in_slot = None
        self.model.train()
        device_batch = self.recipe.training.per_device_train_batch_size
        try:
            with _naming_memory("training.per_device_train_batch_size", device_batch):
                metrics = train(
                    self.model,
                    pairs,
                    loss,
                    settings,
                    work,
                    pad=self.pad,
                    device_batch=device_batch,
                    checkpoint_steps=self.recipe.runtime.checkpoint_steps,
                    gradient_checkpointing=self.recipe.training.gradient_checkpointing,
                    advance=advance,
                )
        finally:
            self.model.eval()
            self.model.zero_grad(set_to_none=True)
        folder = work / "adapter"
        shutil.rmtree(folder, ignore_errors=True)
        self.model.save_pretrained(str(folder), selected_adapters=[SLOT])
        (folder / "README.md").unlink(missing_ok=True)
        return folder, metrics

    def rest(self) -> None:
        """Give cached memory back, for whoever works next."""
        if self.where.device == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Let go of the base and the memory it took."""
        del self.model
        gc.collect()  # PEFT's wrappers refer to each other
        self.rest()

    def _reset_slot(self) -> None:
        """Fresh LoRA weights: A random, B zero, so the slot starts as the base."""
        for module in self.model.modules():
            if hasattr(module, "reset_lora_parameters"):
                module.reset_lora_parameters(SLOT, init_lora_weights=True)  # type: ignore[operator]
