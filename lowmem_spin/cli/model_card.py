"""The model card of an exported policy: what it is, how it was made, and how it measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from lowmem_spin import __version__
from lowmem_spin.common.errors import InputError, printable
from lowmem_spin.common.files import read_text, write_text
from lowmem_spin.config.game_config import rules_in_words
from lowmem_spin.config.loss_choices import in_words
from lowmem_spin.config.yaml_text import write_yaml
from lowmem_spin.data.sources import Source
from lowmem_spin.report.grid import escape_markdown
from lowmem_spin.report.intervals import Value, rows_of
from lowmem_spin.report.measures import MEASURES, TASKS
from lowmem_spin.runner.run_folder import RunFolder, StoredPolicy

SHOWN = (*TASKS, "sampled_accuracy", "chosen_logp", "kl_to_base", "kl_to_previous", "length", "truncated")
PLACES = ("base_url", "api_key_env")  # of a judge
TEXTS = ("system_prompt", "chat_template")  # no paths, whatever they begin with


def text(run: RunFolder, policy: StoredPolicy, base: Source, dtype: str | None, ends: Sequence[int]) -> str:
    """README.md with its front matter.

    Args:
        run: the game.
        policy: what is exported.
        base: what it was played on.
        dtype: of a merged model; None is an adapter.
        ends: tokens that end an answer.
    """
    front = ModelCardData(
        base_model=None if base.local else base.location,
        license=_license(base),
        library_name="peft" if dtype is None else "transformers",
        pipeline_tag="text-generation",
        tags=["lowmem-spin", "self-play", run.recipe.game.algorithm, *(["lora"] if dtype is None else [])],
    )
    parts = [
        f"# {escape_markdown(run.folder.resolve().name)}, {escape_markdown(policy.name)}",
        _what(run, policy, base, dtype),
        _use_merged() if dtype is not None else _use_adapter(run, base, ends),
        "## Results\n\n" + _results(run.folder / "metrics.jsonl", policy.name),
        "## Recipe\n\n" + _recipe(run),
    ]
    return f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def add_gguf(card: Path, file: str, kind: str, name: str) -> None:
    """Have a merged model's card tell of the GGUF file beside it, of llama.cpp's type `kind`; `name` is for Ollama."""
    told = (
        f"`{_plain(file)}` is this model as llama.cpp has made it, in {kind}: `ollama create {_plain(name)} -f Modelfile`, or "
    )
    told += f"`llama-cli -m {_plain(file)}`. The table above was measured before that."
    write_text(card, f"{read_text(card)}\n## GGUF\n\n{told}\n")


def _what(run: RunFolder, policy: StoredPolicy, base: Source, dtype: str | None) -> str:
    game, model = run.recipe.game, run.recipe.model
    where = f"the local model `{_plain(Path(base.location).name)}`" if base.local else f"`{base.location}` at `{base.revision}`"
    bits = "in 4 bits (NF4)" if model.quantization == "nf4" else f"in {model.dtype}"
    made = f"{escape_markdown(policy.name)} of a game of {game.algorithm} on {where}, frozen {bits}: "
    rules = ", ".join([*rules_in_words(game.model_dump()), in_words(game.loss.model_dump())])
    made += f"{escape_markdown(rules)}. Played with lowmem-spin {__version__}, policy key `{_plain(policy.key)}`."
    if dtype is None:
        return made + " This is the LoRA adapter alone; it was trained on the 4-bit base." * (model.quantization == "nf4")
    merged = "the base" if policy.adapter is None else "the adapter merged into the base"
    unpacked = ", after its 4-bit weights were unpacked" if model.quantization == "nf4" else ""
    return f"{made} This is {merged}{unpacked}; the sum was made in float32 and rounded once, to {dtype}."


TOKENIZER = "the tokenizer beside it has the chat template that it was trained with"


def _use_merged() -> str:
    return f"`AutoModelForCausalLM.from_pretrained(folder)` loads it; {TOKENIZER}."


def _use_adapter(run: RunFolder, base: Source, ends: Sequence[int]) -> str:
    """Code that answers as the game did; PEFT reads no generation_config.json, and the base's may not know the ends."""
    model = run.recipe.model
    imports, named, options = "AutoModelForCausalLM, AutoTokenizer", _plain(base.location), [f'dtype="{model.dtype}"']
    if base.local:
        named = "path/to/" + _plain(Path(base.location).name)
    elif base.revision is not None:
        options.append(f'revision="{base.revision}"')
    if model.trust_remote_code:
        options.append("trust_remote_code=True")
    quantized = ""
    if model.quantization == "nf4":
        imports += ", BitsAndBytesConfig"
        four_bit = 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True'
        quantized = f'four_bit = BitsAndBytesConfig({four_bit}, bnb_4bit_compute_dtype="{model.dtype}")\n'
        options.append("quantization_config=four_bit")
    return f"""```python
from peft import PeftModel
from transformers import {imports}

base, folder = {json.dumps(named)}, "path/to/this/folder"
{quantized}model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, {", ".join(options)}), folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
chat = [{{"role": "user", "content": "Hello"}}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt, max_new_tokens={run.recipe.generation.max_new_tokens}, eos_token_id={list(ends)})
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```

Give `eos_token_id` as here: these tokens end an answer, and the base's own settings need not name all of them
(`generation_config.json` beside the adapter does). This code loads the adapter on its base; {TOKENIZER}."""


def _results(metrics: Path, mine: str) -> str:
    """Every policy of the game as a Markdown table, this one in bold."""
    if not metrics.is_file():
        return "The game was not finished when this was exported: nothing was measured yet."
    try:
        records: list[dict[str, Any]] = [json.loads(line) for line in read_text(metrics).splitlines()]
    except ValueError:
        raise InputError(f"{metrics}: does not read back; run the recipe again to write it") from None
    columns = {name: MEASURES[name] for name in SHOWN if name in records[0]}
    lines = ["| policy | " + " | ".join(one.heading for one in columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    for record in records:
        cells = [
            one.text(Value.read(record[name], record[f"{name}_se"], rows_of(record, name))) if name in record else ""
            for name, one in columns.items()  # not all are measured of the unquantized base
        ]
        name = escape_markdown(record["name"])
        name = f"**{name}**" if record["name"] == mine else name
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return (
        "\n".join(lines)
        + "\n\nOn held-out rows, ± the half-width of the 95% interval, or [a..b] its ends; KL in nats per completion."
    )


def _recipe(run: RunFolder) -> str:
    """The recipe without where things were, as indented code, which no text in it can end."""
    content = _shown(run.recipe.model_dump(mode="json", exclude={"output", "runtime"}))
    return "\n".join("    " + line for line in write_yaml(content, sort_keys=False).splitlines())


def _shown(value: Any) -> Any:
    """Without addresses, and of each path from the root only the name."""
    if isinstance(value, dict):
        told = {name: one for name, one in value.items() if name not in PLACES}
        return {name: one if name in TEXTS else _shown(one) for name, one in told.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.count("/") > 1 and Path(value).is_absolute() else value


def _license(base: Source) -> str | None:
    """The base's, if its own card is here and says so."""
    found = Path(base.location) / "README.md"
    if not base.local:
        cached = try_to_load_from_cache(base.location, "README.md", revision=base.revision)
        found = Path(cached) if isinstance(cached, str) else found
    if not found.is_file():
        return None
    said = ModelCard(found.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).data.get("license")
    return said if isinstance(said, str) else None


def _plain(name: str) -> str:
    """A name as Markdown's code."""
    return printable(name).replace("`", "'")
