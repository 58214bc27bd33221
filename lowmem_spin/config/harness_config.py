"""How tasks of lm-evaluation-harness are asked, by the names that its own command has for it."""

from typing import Any, Self

from pydantic import Field, model_validator

from lowmem_spin.config.bounds import SINGLE, TOKENS
from lowmem_spin.config.section import Section

OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


class GenKwargs(Section):
    """How tasks that are answered in words generate; what is null is the task's own."""

    until: str | list[str] | None = None
    """Texts at which an answer is cut, besides the end of a turn."""
    max_gen_toks: int | None = Field(default=None, ge=1, le=TOKENS)
    """Longest answer in tokens. Raise it if answers break off before they say what is asked."""
    do_sample: bool | None = None
    """Whether to sample; false is greedy."""
    temperature: float | None = Field(default=None, gt=0, le=100)
    """Sampling temperature; it needs do_sample: true."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Only the likeliest tokens with this total probability are sampled; it needs do_sample: true."""
    top_k: int | None = Field(default=None, ge=1, le=TOKENS)
    """Number of likeliest tokens among which the next one is sampled; it needs do_sample: true."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Tokens less likely than this share of the likeliest are not sampled; it needs do_sample: true."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=SINGLE)
    """Above 1, what was written before becomes less likely; 1 changes nothing."""
    num_beams: int | None = Field(default=None, ge=1, le=64)
    """Beams of a beam search; 1 is none."""

    @model_validator(mode="after")
    def _heard(self) -> Self:
        unheard = [name for name in OF_SAMPLING if getattr(self, name) is not None]
        if unheard and self.do_sample is not True:
            raise ValueError(f"{unheard[0]} has no effect unless do_sample is true: most tasks answer greedily by themselves")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """What is not the task's own."""
        return self.model_dump(exclude_none=True)


class Harness(Section):
    """How tasks of lm-evaluation-harness are asked. The leaderboard is always asked as it was: in plain text, greedily."""

    apply_chat_template: bool = True
    """Whether questions are written with the chat template that the game's policies are trained on. Set false for the task's
    text as it is, as for a base model."""
    fewshot_as_multiturn: bool | None = None
    """Whether the examples before a question are turns of the conversation, or stand in one turn with it. null: they are turns
    where the chat template is applied, as in the harness."""
    gen_kwargs: GenKwargs = GenKwargs()
    """How answers are generated, where it is not to be the task's own way: {do_sample: true, temperature: 0.7}."""
    log_samples: bool = False
    """Whether to write each document with its prompt and answers to samples/ in the run's folder. Turn it on to read them."""

    @model_validator(mode="after")
    def _turns(self) -> Self:
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn needs apply_chat_template: without it there are no turns")
        return self

    @property
    def multiturn(self) -> bool:
        """Whether examples are turns."""
        return self.apply_chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn
