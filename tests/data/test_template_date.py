"""Templates that write today's date write one date for good, whoever renders with them and whenever."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from helpers.games import recipe_on
from helpers.tokenizers_built import ZEPHYR, byte_level
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.data_config import Data
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.data.prepare import prepared_key
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.sources import Source, base_key
from lowmem_spin.data.template_date import dated, notes

LLAMA = (  # as Llama 3.2's template begins
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}'
    "{{- 'Today Date: ' + date_string + '\n' }}" + ZEPHYR
)
GPT_OSS = (  # which writes it inside a macro of its own
    "{%- macro build(x) -%}{{ 'Current date: ' + strftime_now('%Y-%m-%d') + '\n' }}{%- endmacro -%}{{ build(1) }}" + ZEPHYR
)
CHAT = [{"role": "user", "content": "stone"}]


class _Tomorrow(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "_Tomorrow":
        return cls(2031, 5, 17)


@pytest.mark.parametrize(
    ("template", "written", "other"),
    [
        (LLAMA, "Today Date: 26 Jul 2024\n", "Today Date: 02 Jan 2030\n"),
        (GPT_OSS, "Current date: 2024-07-26\n", "2030-01-02\n"),
    ],
)
def test_a_prompt_is_the_same_tomorrow(
    template: str, written: str, other: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", _Tomorrow)
    plain = byte_level(template)
    assert "2031" in plain.apply_chat_template(CHAT, tokenize=False), "the template does write today's date"
    tokenizer = byte_level(template)
    renderer = Renderer(tokenizer, None)
    text = tokenizer.decode(renderer.prompt(CHAT))
    assert text.startswith(written) and "2031" not in text
    tokenizer.save_pretrained(tmp_path)  # as it is exported and served
    again = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert again == text
    assert Renderer(tokenizer, None).prompt(CHAT) == renderer.prompt(CHAT), "twice is once"
    assert other in byte_level(template).decode(Renderer(byte_level(template), None, None, "2030-01-02").prompt(CHAT))


def test_templates_without_a_date_stay_as_they_are() -> None:
    assert dated(ZEPHYR, "2024-07-26") == ZEPHYR and notes(ZEPHYR, "2024-07-26") == []
    assert notes(LLAMA, "2024-07-26") == [
        "the chat template writes today's date; here it always writes that of data.template_date, 2024-07-26"
    ]


def test_a_date_that_was_fixed_before_is_the_one_that_is_said() -> None:
    before = dated(LLAMA, "2025-01-01")
    assert dated(before, "2024-07-26") == before
    assert notes(before, "2025-01-01") == notes(LLAMA, "2025-01-01")
    (line,) = notes(before, "2024-07-26")
    assert line.endswith("2025-01-01; data.template_date has no effect") and "2024" not in line


def test_another_date_is_another_game_and_the_default_is_in_no_key() -> None:
    source, model = Source("d.jsonl", None, "d"), Source("m", None, "m")

    def keys(**options: Any) -> tuple[str, str]:
        data = Data(path="d.jsonl", **options)
        recipe = recipe_on(Path("m")).model_copy(update={"data": data})
        return prepared_key(source, model, data, None, "train"), base_key(recipe, model, None)

    same, other = keys(), keys(template_date="2030-01-02")
    assert keys(template_date="2024-07-26") == same
    assert same[0] != other[0] and same[1] != other[1]


def test_what_is_no_date_is_one_line() -> None:
    with pytest.raises(InputError, match=r"data.template_date: 'today' cannot be used: it is no date; write it as YYYY-MM-DD"):
        load_recipe(find_recipe("quickstart"), ["data.template_date=today"])
