"""Conversations to token ids, through the one renderer that generation, scoring and training share."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import jinja2

from lowmem_spin.common.errors import InputError, quoted
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.chat_templates import TEMPLATES
from lowmem_spin.data.deadline import within
from lowmem_spin.data.formats import Message
from lowmem_spin.data.spelling import MARK, Spelled, Spelling
from lowmem_spin.data.template_date import dated
from lowmem_spin.data.template_trial import CHARACTERS, excess

FIELD = "model.chat_template"
QUESTION, ANSWER = "\u2063question\u2063", "\u2063answer\u2063"  # contents that no template writes by itself
OPENED = re.compile(r"<think(?:ing)?>\s*$")  # a thought that the policy is to go on with
SILENCERS = ("enable_thinking", "thinking")  # template arguments by which thoughts are turned off
OWN = "copy the template to a file, correct that and set model.chat_template to FILE.jinja"

END = "answers that carried their end token, which is taken as the end"
TEXT = "conversations with control tokens in their texts, taken as plain text"
APART = "answers that the tokenizer would merge with their prompts, tokenised apart"
INEXACT = "answers that the tokenizer does not spell to the letter"
FOLDED = "system texts put before the first user turn"
ANOTHER_END = ", with which the chat template ends them, is no token of this tokenizer"
SECONDS = 10  # of computing for one conversation, which takes milliseconds
CHANGED = "conversations whose earlier messages the chat template changes or shortens"


class Rendered(NamedTuple):
    """A question and its answer as token ids."""

    prompt: list[int]
    completion: list[int]  # with its end of turn
    text: str  # what a policy says that answers with the same tokens; without the end, and what the template puts before it
    notes: tuple[str, ...] = ()  # what was changed on the way, to be counted


class _Written(NamedTuple):
    """A question and its answer as the template writes them, control tokens of the messages hidden."""

    prompt: str
    answer: str  # without the end of turn
    notes: tuple[str, ...]


class Renderer:
    """Turns a conversation into prompt ids and completion ids with the model's chat template.

    The tokenizer gets the template, `arguments` set in it, so that whoever renders with that tokenizer, also once it is
    exported or served, writes the same. Of what a conversation says nothing is lost, and nothing becomes a control token:
    see spelling.Spelling. No BOS is added but the template's own.

    Raises:
        InputError: the template cannot be used; one line that says why.
    """

    def __init__(
        self, tokenizer: Any, template: str | None, arguments: Mapping[str, Any] | None = None, day: str = "2024-07-26"
    ) -> None:
        self.tokenizer = tokenizer
        if template is not None:
            text = TEMPLATES.get(template, template)
            if text == template and "{" not in text:
                known = ", ".join(TEMPLATES)
                raise InputError(f"{FIELD}: {quoted(template)} is unknown; known: {known}, a .jinja file, or Jinja text")
            tokenizer.chat_template = text
        if tokenizer.chat_template is None:
            raise InputError(f"{FIELD}: this tokenizer has none; choose one of {', '.join(TEMPLATES)}")
        question = [{"role": "user", "content": QUESTION}]
        try:
            self._set(arguments or {}, day)
            check_template(tokenizer, FIELD, OWN)
            prompt, whole = self._texts(question, ANSWER)
            if not whole.startswith(prompt):
                raise InputError(self._what_differs(prompt, whole))
        except jinja2.TemplateError as error:
            raise InputError(f"{FIELD}: it fails on a conversation of user, assistant: {_short(error)}") from None
        if ANSWER not in whole[len(prompt) :] or QUESTION not in prompt:
            raise InputError(f"{FIELD}: it does not write what a question or an answer says; {OWN}")
        self.lead, _, self.end_text = whole[len(prompt) :].partition(ANSWER)
        self.end_token = self._end_of_turn()
        end = tokenizer.convert_ids_to_tokens(self.end_token)
        written = self.end_text.strip()
        self._ended = (
            [] if not written or written.startswith(end) else [f"answers ended by {end!r}: {written[:30]!r}{ANOTHER_END}"]
        )
        self.spelling = Spelling(tokenizer, self._control())
        ends = {tokenizer.eos_token, tokenizer.pad_token, tokenizer.convert_ids_to_tokens(self.end_token)} - {None}
        self._ends = re.compile(f"(?:(?:{'|'.join(map(re.escape, ends))})\\s*)+$")
        self._treatments: dict[tuple[str, ...], tuple[str | None, bool]] = {}  # by the roles of a conversation

    @classmethod
    def of(cls, tokenizer: Any, recipe: Recipe) -> Self:
        """As a recipe asks for it."""
        return cls(tokenizer, recipe.model.chat_template, recipe.data.chat_template_kwargs, recipe.data.template_date)

    def _set(self, arguments: Mapping[str, Any], day: str) -> None:
        """Set the template's arguments, and the date that it writes, in its own text."""
        text = _of_template(self.tokenizer.get_chat_template)
        if (fixed := dated(text, day)) != text:
            self.tokenizer.chat_template = fixed
        for name in arguments:
            if name not in _of_template(self.tokenizer.get_chat_template):
                raise InputError(f"data.chat_template_kwargs: the chat template knows no {name!r}; leave it out")
        setting = "".join(f"{{% set {name} = {value!r} %}}" for name, value in sorted(arguments.items()))
        if setting and not self.tokenizer.get_chat_template().startswith(setting):
            self.tokenizer.chat_template = setting + self.tokenizer.get_chat_template()

    def _texts(self, context: list[Message], answer: str, **arguments: Any) -> tuple[str, str]:
        """The prompt as the template writes it, and the whole conversation with its answer."""
        whole: list[Message] = [*context, {"role": "assistant", "content": answer}]
        return self._written(context, add_generation_prompt=True, **arguments), self._written(whole, **arguments)

    def _written(self, conversation: list[Message], **arguments: Any) -> str:
        return written(self.tokenizer, conversation, **arguments)

    def _what_differs(self, prompt: str, whole: str) -> str:
        """Why a template cannot be used that writes an answer's conversation differently from its prompt."""
        same = next((place for place, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other), len(whole))
        asked, answered = prompt[same:], whole[same:].replace(ANSWER, "ANSWER").replace(QUESTION, "QUESTION")
        if not OPENED.search(prompt):
            return (
                f"{FIELD}: it writes a conversation differently once it is answered: {asked[-40:]!r} becomes "
                f"{answered[:40]!r}; {OWN}, or choose {', '.join(TEMPLATES)}"
            )
        for name in SILENCERS:
            if name in self.tokenizer.get_chat_template():
                quiet, with_answer = self._texts([{"role": "user", "content": QUESTION}], ANSWER, **{name: False})
                if with_answer.startswith(quiet):
                    quieten = f"set data.chat_template_kwargs: {{{name}: false}}"
                    return f"{FIELD}: its prompt opens a thought, which the data's answers do not have; {quieten}"
        return f"{FIELD}: its prompt ends in {asked[-40:]!r}, which opens a thought that the data's answers do not have; {OWN}"

    def _end_of_turn(self) -> int:
        """The one token that ends a completion."""
        tokens = self.tokenizer(self.end_text.strip(), add_special_tokens=False)["input_ids"]
        if tokens and tokens[0] in set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder):
            return tokens[0]
        if self.tokenizer.eos_token_id is None:
            raise InputError(f"{FIELD}: neither it nor the tokenizer has a token that ends an answer")
        return self.tokenizer.eos_token_id

    def _control(self) -> list[str]:
        """Added tokens that only the template may write; blanks and the marks of a thought are words."""
        added = self.tokenizer.added_tokens_decoder
        turns = [{"role": role, "content": text} for role, text in (("user", QUESTION), ("assistant", ANSWER)) * 2][:3]
        try:
            around = self._written(turns)
        except jinja2.TemplateError:  # a template for single turns
            around = self._texts(turns[:1], ANSWER)[1]
        around = around.replace(QUESTION, "").replace(ANSWER, "")
        control = [token for number, token in added.items() if token.special or number == self.end_token]
        control += [token for token in added.values() if token.content in around]
        return [token.content for token in control if token.content.strip()]

    def said(self, tokens: Sequence[int]) -> str:
        """A completion without its end as text: what is compared, judged and shown, of policies and of the data alike."""
        (text,) = self.spelling.texts([tokens])
        return text.removeprefix(self.lead)

    def __call__(self, conversations: Sequence[tuple[list[Message], str]]) -> Iterator[Rendered | str]:
        """Each (messages, answer) as token ids, or why it cannot be: a row that is left out and counted."""
        written = [self._write(context, answer) for context, answer in conversations]
        pairs = self.spelling.pairs([(row.prompt, row.answer) for row in written if isinstance(row, _Written)])
        in_order, texts = iter(pairs), iter(self.spelling.texts([pair.answer for pair in pairs if isinstance(pair, Spelled)]))
        for row in written:
            if isinstance(row, str):
                yield row
                continue
            spelled = next(in_order)
            if isinstance(spelled, str):
                yield spelled
                continue
            text = next(texts).removeprefix(self.lead)
            meant = self.spelling.plain(row.answer).removeprefix(self.lead)
            inexact = [INEXACT] if text.strip() != meant.strip() else []
            apart = [APART] if spelled.apart else []
            yield Rendered(
                spelled.prompt, [*spelled.answer, self.end_token], text, (*row.notes, *self._ended, *apart, *inexact)
            )

    def _write(self, context: list[Message], answer: str) -> _Written | str:
        """A conversation as the template writes it, or why it cannot be used."""
        if any(MARK in message["content"] for message in context) or MARK in answer:
            return "with U+FDD0 in a text, which is no character"
        given = [*context, {"role": "assistant", "content": answer}]
        taken = [self._without_end(message) for message in given]
        notes = [END] if taken != given else []
        hidden = [{**message, "content": self.spelling.hide(message["content"])} for message in taken]
        notes += [TEXT] if any(MARK in message["content"] for message in hidden) else []
        *before, last = hidden
        if not last["content"].strip():
            return "with an empty answer"
        try:
            prompt, whole = self._texts(before, last["content"])
            dropped, folds = self._treatment(tuple(message["role"] for message in context))
        except jinja2.TemplateError as error:
            roles = sorted({message["role"] for message in context} - {"user", "assistant"})
            which = f"with the role{'s' * (len(roles) > 1)} {', '.join(roles)} " if roles else ""
            return f"{which}that the chat template refuses ({_short(error)})"
        if dropped:
            return f"with a {dropped} message that the chat template drops"
        if not whole.startswith(prompt) or not whole.endswith(self.end_text):
            return "that the chat template writes differently once it is answered"
        answered = whole[len(prompt) : len(whole) - len(self.end_text)]
        opened = OPENED.search(prompt)
        if opened and answered.lstrip().startswith("</think"):
            return f"without the thought that the chat template's prompt opens ({OWN})"
        if not _says(opened[0] + answered if opened else answered, last["content"]):
            return "whose answer the chat template changes or shortens"
        notes += [CHANGED] if not all(_says(prompt, message["content"]) for message in before) else []
        notes += [FOLDED] if folds else []
        return _Written(prompt, answered, tuple(notes))

    def _without_end(self, message: Message) -> Message:
        """An answer without the end tokens, and blanks between them, that some data write at its end."""
        if message["role"] != "assistant":
            return message
        return {**message, "content": self._ends.sub("", message["content"])}

    def _treatment(self, roles: tuple[str, ...]) -> tuple[str | None, bool]:
        """(role of a message that is not in the prompt of a conversation with these roles, or None; whether a system text at
        its beginning has no turn of its own)"""
        if roles not in self._treatments:
            texts = [f"\u2063message {place}\u2063" for place in range(len(roles))]
            probes = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            prompt = self._written(probes, add_generation_prompt=True)
            dropped = next((role for role, text in zip(roles, texts, strict=True) if text not in prompt), None)
            folds = roles[:2] == ("system", "user") and dropped is None
            between = prompt.partition(texts[0])[2].partition(texts[1])[0] if folds else "turn"
            self._treatments[roles] = dropped, not between.strip()
        return self._treatments[roles]

    def prompt(self, conversation: list[Message]) -> list[int]:
        """Ids of a conversation that waits for its answer, as the rows have them.

        Raises:
            InputError: the rows would have left it out.
        """
        (rendered,) = self([(conversation, "answer")])
        if isinstance(rendered, str):
            raise InputError(f"a conversation {rendered} cannot be answered")
        return rendered.prompt


def written(tokenizer: Any, conversation: list[Message], **arguments: Any) -> str:
    """A conversation as a tokenizer's chat template writes it.

    Raises:
        InputError: it does not end.
        jinja2.TemplateError: it fails, or makes far more of a conversation than there is in it.
    """
    with within(SECONDS, f"{FIELD}: it takes more than {SECONDS} s for one conversation; {OWN}"):
        text = _of_template(partial(tokenizer.apply_chat_template, conversation, tokenize=False, **arguments))
    given = sum(len(message["content"]) for message in conversation)
    if len(text) > CHARACTERS + 20 * given:
        raise jinja2.TemplateError(f"it makes {len(text):,} characters of {given:,}")
    return text


def check_template(tokenizer: Any, field: str, remedy: str) -> None:
    """Refuse a chat template that takes for ever or all memory; those by name do not.

    Raises:
        InputError: one line with the field and the remedy.
        jinja2.TemplateError: there is none of one name.
    """
    text = _of_template(tokenizer.get_chat_template)
    if text not in TEMPLATES.values():
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        if (too_much := excess(text, special)) is not None:
            raise InputError(f"{field}: its chat template {too_much} for a short conversation; {remedy}")


def _of_template(ask: Callable[[], str]) -> str:
    """What comes of a template, which is a program: it may also divide by zero."""
    try:
        return ask()
    except (jinja2.TemplateError, InputError):
        raise
    except Exception as error:
        raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


def _says(written: str, content: str) -> bool:
    """Whether a content is in what a template wrote, blanks aside."""
    return content.strip() in written or "".join(content.split()) in "".join(written.split())
