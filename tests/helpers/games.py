"""What several tests play with: the shipped base behind an engine, a base so small that it can be enumerated, games of
seconds and what they leave in their files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from lowmem_spin.cli.play import run
from lowmem_spin.common.display import Display
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.training.pair import Pair
from lowmem_spin.runner.open import OpenGame, SharedResources, open_game
from lowmem_spin.runner.run import Player
from lowmem_spin.store.committed import CONFIG, WEIGHTS

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"  # conftest.py is another file in tests/gpu
CPU = Machine("cpu", "float32")
PAIRS = 12
TINY = [
    f"model.name_or_path={QUICKSTART / 'base'}",
    "model.quantization=none",
    f"game.pairs={PAIRS}",
    "game.iterations=2",
    "generation.max_new_tokens=8",
    f"training.per_device_train_batch_size={PAIRS}",  # one step an epoch: its loss can be computed by hand
    "training.lora={r: 4, lora_alpha: 8, dropout: 0}",
    "training.learning_rate=5e-2",
    "evaluation={health_prompts: 4}",
]


def recipe_on(folder: Path, quantization: str = "nf4", dropout: float = 0.0, **training: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name_or_path": str(folder), "quantization": quantization},
            "data": {"path": "unused.jsonl"},
            "training": {"lora": {"r": 8, "lora_alpha": 16, "dropout": dropout}, **training},
        }
    )


def open_hf(folder: Path, quantization: str = "nf4", dropout: float = 0.0, **training: Any) -> HF:
    return HF(recipe_on(folder, quantization, dropout, **training), Source(str(folder), None, "test"), CPU)


def shake_slot(engine: HF, seed: int = 0, scale: float = 0.05) -> None:
    """Give the slot weights that make a difference: fresh LoRA weights are the base."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in engine.model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=scale)


def save_slot(engine: HF, folder: Path) -> Path:
    engine.model.save_pretrained(str(folder), selected_adapters=["default"])
    return folder


def make_micro_base(folder: Path) -> Path:
    """A random model with five letters, an end of turn and a start: few enough sequences to list them all."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<end>": 2, "a": 3, "b": 4, "c": 5, "d": 6}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(["<pad>", "<bos>", "<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
    torch.manual_seed(1)
    config = GemmaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    GemmaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny(folder: Path, *overrides: str) -> list[str]:
    """Overrides that make the quickstart a game of seconds, whose store and results are in `folder`."""
    data = folder / "train.jsonl"
    if not data.exists():
        data.write_text("".join((QUICKSTART / "train.jsonl").read_text().splitlines(keepends=True)[:200]))
    return [*TINY, f"data.path={data}", f"output.store={folder / 'store'}", f"output.dir={folder / 'run'}", *overrides]


def opened(folder: Path, *overrides: str) -> OpenGame:
    path = find_recipe("quickstart")
    shared = SharedResources(trust=Trust(given=True))  # in the tests' own oracles
    return open_game(load_recipe(path, tiny(folder, *overrides)), folder, Display(Console(quiet=True)), shared)


def played(folder: Path, *overrides: str) -> OpenGame:
    """A game played in this process, without its pictures. Another one in the same folder shares its store."""
    game = opened(folder, *overrides)
    player = Player(game, Display(Console(quiet=True)), {})
    for stage in game.stages:
        player.play(stage)
    player.finish()
    game.engines.pool.close()
    return game


def commit_adapters(game: OpenGame, *policies: str) -> None:
    """Have the store an adapter of each; what is in it does not matter."""
    for policy in policies:
        folder = game.store.work(policy) / "adapter"
        folder.mkdir(parents=True)
        for name in (WEIGHTS, CONFIG):
            (folder / name).write_text("{}")
        game.store.commit_adapter(policy, folder, {})


def unchecked(text: str) -> str:
    """A JSON object that was edited by hand, without the checksum that is wrong now; other text as it is."""
    try:
        record = json.loads(text)
    except ValueError:
        return text
    return json.dumps({name: value for name, value in record.items() if name != "checksum"})


Row = dict[str, Any]


def stored(store: Path, kind: str) -> dict[str, tuple[dict[str, Any], list[Row]]]:
    """{key: (what was asked, rows)} of all tables of a kind, from their files."""
    found = {}
    for folder in (store / kind).iterdir():
        files = sorted(folder.glob("[!.]*.parquet"))
        rows = pa.concat_tables([pq.read_table(file).replace_schema_metadata() for file in files]).to_pylist()
        found[folder.name] = (json.loads((folder / "manifest.json").read_text())["asked"], rows)
    return found


def of_policy(store: Path, kind: str, policy: str) -> list[Row]:
    """The rows of one policy's tables of a kind, each with its table's key."""
    tables = stored(store, kind).items()
    return [{**row, "table": key} for key, (asked, rows) in tables if asked["policy"] == policy for row in rows]


def data_rows(store: Path) -> dict[str, Row]:
    """The prepared rows by id."""
    (file,) = (store / "data").glob("*.parquet")
    return {row["id"]: row for row in pq.read_table(file).to_pylist()}


class Plain:
    """transformers alone, on a base to whose weights `updates` have been added by hand."""

    def __init__(self, base: Path, updates: dict[str, Any] | None = None) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, update in (updates or {}).items():
                weight = self.model.get_parameter(f"{name.removeprefix('base_model.model.')}.weight")
                weight += torch.as_tensor(update, dtype=torch.float32)

    @torch.no_grad()
    def logp(self, prompt: Sequence[int], completion: Sequence[int]) -> float:
        """Summed log-prob of a completion."""
        ids = torch.tensor([[*map(int, prompt), *map(int, completion)]])
        logps = self.model(input_ids=ids).logits[0].double().log_softmax(-1)
        return sum(logps[len(prompt) - 1 + place, token].item() for place, token in enumerate(ids[0, len(prompt) :].tolist()))


SETTINGS = {
    "batch_size": 4,
    "num_train_epochs": 3,
    "learning_rate": 1e-3,
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "seed": 1,
    "iteration": 0,
    "learner": {"engine": "hf", "dtype": "float32"},
}


def some_pairs(count: int) -> list[Pair]:
    torch.manual_seed(0)

    def tokens(low: int, high: int) -> list[int]:
        return torch.randint(40, 120, (int(torch.randint(low, high, ())),)).tolist()

    return [Pair([1, 3, *tokens(2, 6), 5, 4], [*tokens(1, 7), 5], [*tokens(1, 7), 5], (-9.0, -8.0)) for _ in range(count)]


GOOD = {"prompt": "sort: cab", "completion": "abc"}


def play(tmp_path: Path, base: Path, rows: Path, console: Console | None = None, **sections: dict[str, Any]) -> None:
    content: dict[str, Any] = {
        "model": {"name_or_path": str(base)},
        "data": {"path": str(rows)},
        "game": {"pairs": 8, "iterations": 1},
        "generation": {"max_new_tokens": 4},
        "training": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
        "output": {"dir": str(tmp_path / "run"), "store": str(tmp_path / "store")},
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    run(Recipe.model_validate(content), tmp_path, Display(console or Console(quiet=True)))


Preference = Callable[[Row, Row, str], float]


def exact(mine: Row, other: Row, reference: str) -> float:
    """The data's own answer beats any other."""
    return 0.5 if (mine["text"] == reference) == (other["text"] == reference) else float(mine["text"] == reference)


def pairwise_rates(matrix: list[list[float]]) -> list[float]:
    return [sum(row) / len(row) for row in matrix]


def contests(store: Path, policy: str, samples: int = 4) -> dict[str, list[Row]]:
    """The answers of a policy to each prompt that it has answered so many times, in order; each row with its `side`'s name."""
    found: dict[str, list[Row]] = {}
    for row in of_policy(store, "completions", policy):
        found.setdefault(row["prompt_id"], []).append({**row, "side": f"{row['table']}/{row['sample']}"})
    return {prompt: sorted(rows, key=lambda row: row["sample"]) for prompt, rows in found.items() if len(rows) == samples}


def judged(
    store: Path, policy: str, prefer: Preference, rates: Callable[..., list[float]], samples: int = 4
) -> dict[str, tuple[Row, Row]]:
    """{prompt id: (best, worst)}, each with its `rate`; of equal ones the first is best and the last is worst."""
    rows, found = data_rows(store), {}
    for prompt, answers in contests(store, policy, samples).items():
        reference = rows[prompt]["completion"]
        wins = rates([[prefer(one, two, reference) for two in answers] for one in answers])
        best = min(k for k in range(samples) if wins[k] > max(wins) - 1e-9)  # rounding makes no difference
        worst = max(k for k in range(samples) if wins[k] < min(wins) + 1e-9)
        found[prompt] = ({**answers[best], "rate": wins[best]}, {**answers[worst], "rate": wins[worst]})
    return found
