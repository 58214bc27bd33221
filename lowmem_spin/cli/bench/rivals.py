"""The same work by other tools, each in a process of its own. One that is not here, or fails, gets a sentence."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.stages import Generate, Train
from lowmem_spin.cli.bench.measure import Card, Cost, Peak
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.registry import held_rank
from lowmem_spin.engines.worker import Worker
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.pairs import training_pairs

REMEDY = "the benchmark continues without it"


class Workload:
    """A played game, its base, and the machine: what a rival needs to do the same work.

    `recipe` is the game's as it was played here, with as many tokens at once as there was room for; the game's engines have
    been closed. `limit` is the bytes of the card that may be used, None for all of it; `logs` is the folder for the
    workers' output.
    """

    def __init__(
        self, game: OpenGame, recipe: Recipe, model: Source, machine: Machine, card: Card, limit: float | None, logs: Path
    ) -> None:
        self.game, self.recipe, self.model, self.machine = game, recipe, model, machine
        self.card, self.limit, self.logs = card, limit, logs

    def worker(self, name: str, target: str, arguments: tuple[Any, ...], environment: dict[str, str]) -> Worker:
        return Worker(name, target, arguments, environment, self.logs / f"rival-{name}.log", REMEDY)

    def cost(self, work: str, by: str, call: Callable[[], tuple[Any, ...]]) -> Cost:
        with self.card.watch(f"{by} {work}"):
            rows, tokens, seconds, *torch = call()
        device = self.card.peaks[f"{by} {work}"].device
        return Cost(work, by, rows, tokens, seconds, Peak(device, torch[0] if torch else None))


def trl(workload: Workload) -> list[Cost]:
    """TRL scores and trains on the pairs of the last iteration."""
    recipe = workload.recipe
    last = [stage for stage in workload.game.stages if isinstance(stage, Train)][-1]
    work = str(workload.game.store.root / "work" / "trl")
    sides = [[list(map(int, side)) for side in (p.prompt, p.chosen, p.rejected)] for p in training_pairs(workload.game, last)]
    arguments = (recipe, workload.model, workload.machine, sides, work, workload.limit)
    environment = {"TRITON_INTERPRET": "1"} if workload.machine.device == "cpu" else {}
    worker = workload.worker("trl", "lowmem_spin.cli.bench.rival_trl:TRLRival", arguments, environment)
    try:
        return [workload.cost(work, "trl", lambda work=work: worker.call(work)) for work in ("score", "train")]
    finally:
        worker.close()


def vllm(workload: Workload) -> list[Cost]:
    """vLLM answers what all opponents of the last iteration were asked."""
    from lowmem_spin.data.render import Renderer
    from lowmem_spin.engines.loading import end_tokens, load_tokenizer

    game, recipe, on_cpu = workload.game, workload.recipe, workload.machine.device == "cpu"
    pairs = [stage for stage in game.stages if isinstance(stage, Generate)][-1].pairs
    places = game.positions(pairs.draw)
    requests: list[tuple[str | None, list[int]]] = []
    for policy, share in pairs.assign():
        adapter = game.tables.adapter(policy)
        folder = None if adapter is None else str(adapter.resolve())
        requests += [(folder, game.rows.train.prompt(places[index]).tolist()) for index in share]
    loras = len({folder for folder, _ in requests} - {None})
    options: dict[str, Any] = {
        "model": str(_plain_base(workload)),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": workload.machine.dtype,
        "max_model_len": recipe.data.max_prompt_length + recipe.generation.max_new_tokens,
        "enable_lora": True,
        "max_lora_rank": held_rank(recipe.training.lora.r),
        "max_loras": max(1, loras),
        "disable_log_stats": True,
    }
    if on_cpu:
        options["enforce_eager"] = True
    elif workload.limit is not None:
        total = workload.card.total()
        options["gpu_memory_utilization"] = 0.9 * (1.0 if total is None else min(1.0, workload.limit / total))
    ends = end_tokens(workload.model, Renderer.of(load_tokenizer(workload.model, False), recipe))
    sampling = {
        **{"temperature": recipe.generation.temperature, "top_p": recipe.generation.top_p},
        **{"max_tokens": recipe.generation.max_new_tokens, "stop_token_ids": ends, "detokenize": False, "seed": None},
    }
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    worker = workload.worker("vllm", "lowmem_spin.cli.bench.rival_vllm:VLLMRival", (options,), environment)
    try:
        return [workload.cost("generate", "vllm", lambda: worker.call("generate", requests, sampling))]
    finally:
        worker.close()


def _plain_base(workload: Workload) -> Path:
    """The base as vLLM can serve it: unpacked from its 4 bits, if it has them."""
    quantization = workload.game.recipe.model.quantization
    if quantization == "none":
        return Path(workload.model.location)
    folder = workload.game.store.root / "work" / "plain base"
    arguments = (workload.model, quantization, workload.machine, False, folder)
    workload.worker("weights", "lowmem_spin.engines.dequantized:Writer", arguments, {}).close()
    return folder


RIVALS: dict[str, Callable[[Workload], list[Cost]]] = {"trl": trl, "vllm": vllm}


def check_rivals(names: list[str]) -> None:
    """Refuse a rival that is unknown, before anything is computed."""
    for name in names:
        if name not in RIVALS:
            raise InputError(f"--versus: {name!r} is unknown; known: {', '.join(RIVALS)}")


def run_rival(name: str, workload: Workload) -> list[Cost] | str:
    """What the rival's work cost, or why there is none."""
    if find_spec(name) is None:
        return f"{name}: not installed"
    try:
        return RIVALS[name](workload)
    except InputError as error:  # its worker failed or died
        return f"{name}: {error}"
