"""A Modelfile: how Ollama asks a model in a GGUF file, so that it hears and ends as it did in its game."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from lowmem_spin.common.files import write_text
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.chat_templates import TEMPLATES
from lowmem_spin.data.sources import Source

SHIPPED = (  # of the quickstart's base
    "{{ bos_token }}{% for message in messages %}{{ '<model>' if message['role'] == 'assistant' else '<user>' }}"
    "{{ message['content'] | trim }}<end_of_turn>{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
# The same texts in the language of Go's text/template, as Ollama executes it; EOS stands for the token's text. What begins a
# text is put there by whoever tokenizes it.
GO = {
    "gemma": (
        '{{ range $place, $message := .Messages }}{{ if eq $message.Role "user" }}<start_of_turn>user\n'
        "{{ if and $.System (eq $place 1) }}{{ $.System }}\n\n{{ end }}{{ $message.Content }}<end_of_turn>\n"
        '{{ else if eq $message.Role "assistant" }}<start_of_turn>model\n{{ $message.Content }}<end_of_turn>\n'
        "{{ end }}{{ end }}<start_of_turn>model\n"
    ),
    "chatml": ("{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"),
    "zephyr": "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}EOS\n{{ end }}<|assistant|>\n",
    "alpaca": (
        '{{ range .Messages }}{{ if eq .Role "user" }}### Instruction:\n{{ .Content }}\n\n'
        '{{ else if eq .Role "assistant" }}### Response:\n{{ .Content }}EOS\n\n'
        "{{ else }}{{ .Content }}\n\n{{ end }}{{ end }}### Response:\n"
    ),
    "shipped": (
        '{{ range .Messages }}{{ if eq .Role "assistant" }}<model>{{ else }}<user>{{ end }}{{ .Content }}<end_of_turn>'
        "{{ end }}<model>"
    ),
}
JINJA = {**TEMPLATES, "shipped": SHIPPED}
_TALK = [("user", "one"), ("assistant", "two"), ("user", "three")]
PROBES = [
    [{"role": role, "content": content} for role, content in turns]
    for turns in (_TALK[:1], _TALK, [("system", "zero"), *_TALK[:1]], [("system", "zero"), *_TALK])
]


def write_modelfile(folder: Path, file: str, recipe: Recipe) -> list[str]:
    """Write a Modelfile beside a GGUF file.

    Args:
        folder: a merged model, with tokenizer and generation_config.json.
        file: name of the GGUF file in it.
        recipe: of the game.

    Returns:
        Lines on what Ollama will do otherwise than the game did.
    """
    from transformers import AutoTokenizer, GenerationConfig

    from lowmem_spin.engines.model_files import ModelFiles

    ends, context = GenerationConfig.from_pretrained(folder).eos_token_id, ModelFiles(Source(str(folder), None, "")).context
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=recipe.model.trust_remote_code)
    text, notes = modelfile(file, tokenizer, recipe, ends, context)
    write_text(folder / "Modelfile", text)
    return notes


def modelfile(file: str, tokenizer: Any, recipe: Recipe, ends: Sequence[int], context: int | None) -> tuple[str, list[str]]:
    """(text of a Modelfile, lines on what Ollama will do otherwise than the game did).

    Args:
        file: name of the GGUF file beside it.
        tokenizer: with the game's chat template.
        recipe: of the game.
        ends: tokens that end an answer.
        context: tokens that the model takes, None if it does not say.
    """
    notes, lines = [], [f"FROM ./{file}"]
    template = _template(tokenizer)
    if template is None:
        known = ", ".join(TEMPLATES)
        notes.append(
            f"Modelfile: no TEMPLATE, since this chat template is none of {known}; Ollama takes the likest to the GGUF's "
            "of those that it has: compare with `ollama show --template`"
        )
    else:
        lines.append(f"TEMPLATE {_quoted(template)}")
        asked = _written(tokenizer, None, PROBES[0])
        if asked is not None and _begins_texts(tokenizer) and not asked.startswith(tokenizer.bos_token):
            notes.append(f"Modelfile: Ollama puts {tokenizer.bos_token!r} before a conversation, which the game did not")
    system = recipe.data.system_prompt
    if system is not None and '"""' in system:
        notes.append('Modelfile: no SYSTEM, since data.system_prompt has """ in it, which a Modelfile cannot say')
    elif system is not None:
        lines.append(f"SYSTEM {_quoted(system)}")
    stops = dict.fromkeys(tokenizer.decode([end]) for end in ends)
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stops if text.strip() and '"' not in text]
    drawn = recipe.generation
    lines += [f"PARAMETER temperature {drawn.temperature:g}", f"PARAMETER top_p {drawn.top_p:g}"]
    lines += [f"PARAMETER top_k {drawn.top_k or 0}", "PARAMETER repeat_penalty 1"]
    lines += ["# less takes less memory", f"PARAMETER num_ctx {context}"] if context else []
    return "\n".join(lines) + "\n", notes


def _quoted(text: str) -> str:
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'


def _template(tokenizer: Any) -> str | None:
    """The tokenizer's chat template for Ollama, if it writes what one of the known ones writes."""
    own = [_written(tokenizer, None, probe) for probe in PROBES]
    name = next((name for name, text in JINJA.items() if _alike(own, [_written(tokenizer, text, p) for p in PROBES])), None)
    if name is None or own[0] is None:
        return None
    begin, end = tokenizer.bos_token or "", tokenizer.eos_token or ""
    if "{{" in begin + end or '"""' in begin + end:
        return None
    begun = bool(begin) and own[0].startswith(begin) and not _begins_texts(tokenizer)
    return (begin if begun else "") + GO[name].replace("EOS", end)


def _begins_texts(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its first token before a text by itself, as llama.cpp will."""
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _written(tokenizer: Any, template: str | None, conversation: list[dict[str, str]]) -> str | None:
    """A conversation that waits for an answer; None where the template refuses it."""
    try:
        return tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError:
        return None


def _alike(own: Sequence[str | None], known: Sequence[str | None]) -> bool:
    """Whether two templates write the same wherever the first of them writes something: some have no system turn."""
    return all(mine is None or mine == theirs for mine, theirs in zip(own, known, strict=True))
