"""The data section of a recipe: where prompts and answers come from, what they are called, and which of them are used."""

from datetime import date
from typing import Literal

from pydantic import Field, field_validator

from lowmem_spin.config.bounds import GAMES_LONG, TOKENS
from lowmem_spin.config.paths import PathText
from lowmem_spin.config.section import Section

OWN_ARGUMENTS = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")  # set when rendering


class Columns(Section):
    """What a file's columns are called, where they have none of the usual names; the others of it are then not read."""

    prompt: str | None = None
    """Name of the column with what is asked: a text or a list of messages. null: there is none, or the usual one."""
    completion: str | None = None
    """Name of the column with the answer: a text or a list of messages. null: there is none, or the usual one."""
    messages: str | None = None
    """Name of the column with whole conversations, as lists of {role, content} or {from, value}; instead of prompt and
    completion."""
    chosen: str | None = None
    """Name of the column with the better answer, for game.algorithm offline."""
    rejected: str | None = None
    """Name of the column with the worse answer, for game.algorithm offline."""
    system: str | None = None
    """Name of the column with the system message of each row; use it with any of the others."""


class Data(Section):
    """The prompts and answers that the iterates learn from."""

    path: PathText
    """Hub data set, or a file: .jsonl, .ndjson, .json (by lines or one array), .csv, .tsv, each also .gz, or .parquet; a
    relative path is looked up next to the recipe, then in the working directory. Columns: `messages`; `prompt` and
    `completion` or `response`; SPIN's `real`; `chosen`, and `rejected` for an offline game; ShareGPT's `conversations`;
    Alpaca's `instruction`, `input` and `output`; `question` and `answer` or `response`; `query` and `response`; `input` and
    `output`; for others see data.columns. For game.algorithm sppo the prompts suffice."""
    name: str | None = None
    """Configuration of a hub data set that has several, for instance main for openai/gsm8k; null is its only one."""
    columns: Columns = Columns()
    """Names of the columns to read where they are none of the usual ones, for instance {prompt: Frage, completion: Antwort}.
    They hold for evaluation.path as well."""
    system_prompt: str | None = None
    """System message that is put before every conversation without one, of held-out rows as well; null puts none. Set it to
    train for the system prompt that the model will be used with."""

    @field_validator("system_prompt")
    @classmethod
    def _says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it says nothing; use null for no system message")
        return value

    revision: str | None = None
    """Branch, tag or commit of a hub data set; null is its main branch. Set a commit to pin it."""
    split: str = "train"
    """Split of a hub data set to learn from, for instance train_sft; local files have none."""
    turns: Literal["first", "all"] = "first"
    """Which answers of a conversation become rows. first: only the first, as in SPIN. all: every one, for
    multi-turn data."""
    resample: bool | Literal["split"] = True
    """Which prompts an iteration draws. true: a new draw each time. false: the same ones every time. split: the iterations
    share the data out, so that no two of them learn from the same prompt, unless data.prompt_sets says so."""
    prompt_sets: int | None = Field(default=None, ge=1, le=GAMES_LONG)
    """For data.resample split: how many sets the prompts are shared out in. When an iteration has had the last one, the next
    takes the first again. null is one set per iteration. Set it for more iterations than there are prompts for; RSPO's
    launchers have 3."""
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Arguments of the chat template, such as enable_thinking: false for a model whose prompts otherwise open a thought. Chats,
    benchmarks, served and exported policies keep them. The template's text says which it knows."""
    template_date: str = "2024-07-26"
    """Date, as YYYY-MM-DD, that chat templates write which write today's, as Llama 3.2's and gpt-oss's: prompts stay the same
    from day to day. The default is the one that Llama's own writes where it is told none. Change it if the date matters."""
    max_prompt_length: int = Field(default=512, ge=1, le=TOKENS)
    """Longest prompt in tokens; data.long_prompts says what becomes of longer ones. Raise it if there are too many and memory
    allows."""
    long_prompts: Literal["drop", "truncate_left"] = "drop"
    """What becomes of rows whose prompt is over data.max_prompt_length; they are counted either way. drop: they are left out.
    truncate_left: the prompt's last tokens are kept, and the turn's opening is lost, as in SPPO's code and TRL's keep_end."""
    max_completion_length: int = Field(default=512, ge=1, le=TOKENS)
    """Longest answer of the data in tokens; longer ones are counted and cut, without an end of turn. Raise it if too many are
    cut and memory allows."""

    @property
    def changed_date(self) -> str | None:
        """The date if it is not the default, as keys have it."""
        return None if self.template_date == type(self).model_fields["template_date"].default else self.template_date

    @field_validator("template_date")
    @classmethod
    def _is_a_date(cls, value: str) -> str:
        try:
            return date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError("it is no date; write it as YYYY-MM-DD, in quotes") from None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _of_the_template(cls, value: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        for name in value:
            if not name.isidentifier() or name in OWN_ARGUMENTS:
                raise ValueError(f"{name!r} is not an argument that a recipe can set; give others, or none")
        return value
