"""Conversations to token ids, through the one renderer that generation, scoring and training share."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jinja2

from lowmem_spin.common.errors import InputError
from lowmem_spin.data.chat_templates import TEMPLATES
from lowmem_spin.data.formats import Message


class Rendered(NamedTuple):
    """A question and its answer as token ids."""

    prompt: list[int]
    completion: list[int]  # with its end of turn
    text: str  # of the completion, without it
    notes: tuple[str, ...] = ()  # what was changed on the way, to be counted


class Renderer:
    """Turns a conversation into prompt ids and completion ids with the model's chat template."""

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        self.tokenizer = tokenizer
        if template is not None:
            text = TEMPLATES.get(template, template)
            if text == template and "{" not in text:
                raise InputError(f"model.chat_template: {template!r} is unknown; known: {', '.join(TEMPLATES)}, or Jinja text")
            tokenizer.chat_template = text
        if tokenizer.chat_template is None:
            raise InputError(f"model.chat_template: this tokenizer has none; choose one of {', '.join(TEMPLATES)}")
        self.end_text, self.end_token = self._end_of_turn()

    def _end_of_turn(self) -> tuple[str, int]:
        """What the template writes after an answer: its text, and the one token that ends a completion."""
        after = self._texts([{"role": "user", "content": "q"}], "\u2063answer\u2063")[1].split("\u2063answer\u2063")[-1]
        tokens = self.tokenizer(after.strip(), add_special_tokens=False)["input_ids"]
        if tokens and tokens[0] in set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder):
            return after, tokens[0]
        if self.tokenizer.eos_token_id is None:
            raise InputError("model.chat_template: neither it nor the tokenizer has a token that ends an answer")
        return after, self.tokenizer.eos_token_id

    def _texts(self, context: list[Message], answer: str) -> tuple[str, str]:
        """The prompt as the template writes it, and what it writes after the prompt for this answer."""
        render = self.tokenizer.apply_chat_template
        try:
            prompt = render(context, tokenize=False, add_generation_prompt=True)
            whole = render([*context, {"role": "assistant", "content": answer}], tokenize=False)
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in context)
            raise InputError(f"model.chat_template: it fails on a conversation of {roles}, assistant: {error}") from None
        if not whole.startswith(prompt):
            raise InputError(
                "model.chat_template: it writes an answer's conversation differently from its prompt; "
                f"choose another: {', '.join(TEMPLATES)}"
            )
        return prompt, whole[len(prompt) :]

    def __call__(self, conversations: Sequence[tuple[list[Message], str]]) -> Iterator[Rendered | str]:
        """Each (messages, answer) as token ids, or why it cannot be: a row that is left out and counted."""
        texts = [self._texts(context, answer) for context, answer in conversations]
        answers = [answer.removesuffix(self.end_text) for _, answer in texts]
        prompts = self.tokenizer([prompt for prompt, _ in texts], add_special_tokens=False)["input_ids"]
        completions = self.tokenizer(answers, add_special_tokens=False)["input_ids"]
        for prompt, completion, answer in zip(prompts, completions, answers, strict=True):
            yield Rendered(prompt, [*completion, self.end_token], answer)

    def prompt(self, conversation: list[Message]) -> list[int]:
        """Ids of a conversation that waits for its answer, as the rows have them."""
        (rendered,) = self([(conversation, "answer")])
        if isinstance(rendered, str):
            raise InputError(f"a conversation {rendered} cannot be answered")
        return rendered.prompt


def conversation_text(context: list[Message]) -> str:
    """A conversation as a person reads it; a single question is just its text."""
    if len(context) == 1:
        return context[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in context)
