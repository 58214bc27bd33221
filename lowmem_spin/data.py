"""Instruction data to token ids, through the one renderer that generation, scoring and training share."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa

from lowmem_spin.algorithm.stages import VERSIONS, Draw
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import token_arrays
from lowmem_spin.common.keys import digest, number
from lowmem_spin.config.recipe import Data
from lowmem_spin.conversations import Message, conversations
from lowmem_spin.sources import Source
from lowmem_spin.templates import TEMPLATES

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "prompt": pa.list_(pa.int32()),
        "chosen": pa.list_(pa.int32()),
        "truncated": pa.bool_(),
        "completion": pa.string(),
        "category": pa.string(),
        "messages": pa.string(),  # JSON: the conversation before the answer
    }
)
PREFERENCES = SCHEMA.append(pa.field("rejected", pa.list_(pa.int32())))  # of data that has a worse answer too


class Rows:
    """Prepared rows: prompt and chosen token ids by place, ids, categories, conversations, and what was left out."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        self.ids: list[str] = self.table["id"].to_pylist()
        self.categories: list[str | None] = self.table["category"].to_pylist()
        self.completions: list[str] = self.table["completion"].to_pylist()
        self.counts: dict[str, int] = json.loads((self.table.schema.metadata or {}).get(b"counts", b"{}"))
        self._prompts, self._chosen = token_arrays(self.table["prompt"]), token_arrays(self.table["chosen"])
        self._rejected = token_arrays(self.table["rejected"]) if "rejected" in self.table.column_names else []

    def __len__(self) -> int:
        return len(self.ids)

    def prompt(self, place: int) -> np.ndarray:
        return self._prompts[place]

    def chosen(self, place: int) -> np.ndarray:
        return self._chosen[place]

    def rejected(self, place: int) -> np.ndarray:
        return self._rejected[place]

    def messages(self, place: int) -> list[Message]:
        """The conversation that the answer continues."""
        return json.loads(self.table["messages"][place].as_py())


def draw(ids: Sequence[str], asked: Draw) -> list[int]:
    """The places of `asked.prompts` rows, without replacement, in their shuffled order.

    Each row's place in the order is a hash of (seed, round, its id), so the draw does not depend on the
    order of the file, on alpha or on the history, and a smaller draw is the head of a larger one.
    """
    return taken(order(ids, asked.seed, asked.round), asked)


def order(ids: Sequence[str], seed: int, turn: int | None) -> list[int]:
    """All places in the order of this seed and round (`turn`), which every draw is the head of."""
    return sorted(range(len(ids)), key=lambda place: (number(seed, turn, ids[place]), ids[place]))


def taken(order: Sequence[int], asked: Draw) -> list[int]:
    """The part of an order that a draw takes.

    Raises:
        InputError: there are too few rows.
    """
    if asked.start + asked.prompts > len(order):
        others = f", {asked.start} of them for earlier iterations (data.resample split)," if asked.start else ""
        raise InputError(
            f"game.pairs: {asked.start + asked.prompts} prompts{others} asked of {len(order)} usable rows; "
            "lower it or give more data"
        )
    return list(order[asked.start : asked.start + asked.prompts])


def set_aside(ids: Sequence[str], count: int) -> tuple[list[int], list[int]]:
    """(places kept for measuring, places left to learn from): `count` rows, but at most a tenth of the data."""
    kept = head(ids, min(count, len(ids) // 10))
    return kept, sorted(set(range(len(ids))) - set(kept))


def head(ids: Sequence[str], count: int) -> list[int]:
    """`count` places, or all of them if there are fewer, the same for every seed."""
    return sorted(range(len(ids)), key=lambda place: (number("head", ids[place]), ids[place]))[:count]


def data_key(source: Source, model: Source, data: Data, template: str | None, split: str, worse: bool = False) -> str:
    """Key of the prepared rows: what they are read from and everything that shapes their token ids.

    The category labels are not in it: they change no row. `worse` is whether the data's worse answers are rows' too.
    """
    limits = data.model_dump(include={"turns", "max_prompt_length", "max_completion_length"})
    asked = {"source": source.identity, "split": None if source.local else split}
    rendered = {"model": model.identity, "template": TEMPLATES.get(template or "", template)}
    both = {"worse": worse} if worse else {}
    return digest({"kind": "data", "version": VERSIONS["data"], **asked, **rendered, **limits, **both})


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

    def __call__(self, conversations: Sequence[tuple[list[Message], str]]) -> Iterator[tuple[list[int], list[int], str]]:
        """Prompt ids, completion ids with their end of turn, and the completion's text; tokenised apart."""
        texts = [self._texts(context, answer) for context, answer in conversations]
        answers = [answer.removesuffix(self.end_text) for _, answer in texts]
        prompts = self.tokenizer([prompt for prompt, _ in texts], add_special_tokens=False)["input_ids"]
        completions = self.tokenizer(answers, add_special_tokens=False)["input_ids"]
        for prompt, completion, answer in zip(prompts, completions, answers, strict=True):
            yield prompt, [*completion, self.end_token], answer

    def prompt(self, conversation: list[Message]) -> list[int]:
        """Ids of a conversation that waits for its answer, as the rows have them."""
        ((prompt, _, _),) = self([(conversation, "answer")])
        return prompt


def prepare(
    source: Source, data: Data, field: str, split: str, category: str, renderer: Renderer, worse: bool = False
) -> pa.Table:
    """Read, render and filter a data set; with `worse`, one whose rows have a rejected answer too.

    Rows with over-long prompts are counted and left out; over-long answers are counted and lose their end of
    turn, for they do not end there. The counts are in the table's metadata.
    """
    counts: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    schema = PREFERENCES if worse else SCHEMA
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for batch in _batches(conversations(source, data, field, split, category, worse), 1000):
        rendered = renderer([(context, answer) for context, answer, _, _ in batch])
        others = renderer([(context, other) for context, _, _, other in batch]) if worse else [([], [], "")] * len(batch)
        for (prompt, chosen, text), (_, other, _), (context, _, label, _) in zip(rendered, others, batch, strict=True):
            counts["rows read"] += 1
            if len(prompt) > data.max_prompt_length:
                counts["prompts over the limit, left out"] += 1
                continue
            kept, lost = chosen[: data.max_completion_length], other[: data.max_completion_length]
            truncated = len(kept) < len(chosen)
            counts["answers over the limit, ended early"] += truncated + (len(lost) < len(other))
            content = [*prompt, -1, *kept, *([-1, *lost] if worse else [])]
            content = hashlib.sha256(np.asarray(content, np.int32).tobytes()).hexdigest()[:20]
            seen[content] += 1  # a row that occurs twice is two rows, as in the user's data
            row = (f"{content}-{seen[content]}" if seen[content] > 1 else content, prompt, kept, truncated, text, label)
            row = (*row, json.dumps(context), *([lost] if worse else []))
            row = tuple(np.asarray(value, np.int32) if isinstance(value, list) else value for value in row)  # a ninth of lists
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    if not columns["id"]:
        longest = f": every prompt is over data.max_prompt_length {data.max_prompt_length}" if counts else ""
        raise InputError(f"{field}: {source.location!r} has no usable row{longest}")
    metadata = {"counts": json.dumps({name: count for name, count in counts.items() if count})}
    return pa.table(columns, schema=schema.with_metadata(metadata))


def plain(context: list[Message]) -> str:
    """A conversation as a person reads it; a single question is just its text."""
    if len(context) == 1:
        return context[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in context)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
