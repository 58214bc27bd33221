"""Prepared rows held against the base: tokens that it has no embedding for, rows longer than its context, lost text."""

import unicodedata

import numpy as np

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.rows import Rows
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.base_check import OWN_TOKENIZER
from lowmem_spin.engines.model_files import ModelFiles

LOOKED_AT = 1000  # rows for what needs their text
LETTERS, MANY = 1.5, 1000  # characters a token below which a tokenizer only spells; tokens of one that should do more
ENOUGH_ROWS, ENOUGH_CHARACTERS = 20, 1000


def check_rows(recipe: Recipe, model: Source, rows: Rows, field: str) -> None:
    """Refuse rows that this base cannot read.

    Args:
        recipe: the game.
        model: its base.
        rows: prepared with the base's tokenizer.
        field: the recipe's, of where the rows come from.

    Raises:
        InputError: one line with the remedy.
    """
    files = ModelFiles(model)
    largest, lengths = 0, []
    for part in rows.tokens():
        sides = [side.combine_chunks() for side in part.columns]
        largest = max(largest, *(int(side.flatten().to_numpy().max(initial=0)) for side in sides))
        lengths.append([side.value_lengths().to_numpy() for side in sides])
    _check_ids(files, largest, field)
    _check_context(recipe, files, [np.concatenate(side) for side in zip(*lengths, strict=True)], field)
    head = rows.head(LOOKED_AT)
    _check_unknown(files, head, field)
    check_told_apart(head, field)


def letters_notes(model: Source, rows: Rows, field: str) -> list[str]:
    """A line on a tokenizer that spells Latin-script answers letter by letter, which one that was converted badly does.

    One of few tokens is meant to, and other scripts have tokens of one character: neither is told of.
    """
    if ModelFiles(model).vocabulary.largest < MANY:
        return []
    rows = rows.head(LOOKED_AT)
    answered = rows.answered(range(len(rows)))
    positions = [position for position in answered if _is_latin(rows.completions[position])]
    characters = sum(len(rows.completions[position]) for position in positions)
    if len(positions) < ENOUGH_ROWS or characters < ENOUGH_CHARACTERS:
        return []
    each = characters / sum(len(rows.chosen(position)) for position in positions)
    if each >= LETTERS:
        return []
    return [
        f"{field}: the tokenizer of {ModelFiles(model).name} makes a token of every {each:.2f} characters, where 3 to 5 are "
        "usual: its merges may have been lost in a conversion; take the model's own tokenizer"
    ]


def _is_latin(text: str) -> bool:
    """Whether a text is mostly of Latin letters and blanks."""
    return sum(character.isspace() or (character.isalpha() and character < "\u0250") for character in text) > 0.7 * len(text)


def unread_rows_note(recipe: Recipe, model: Source) -> list[str]:
    """A line if rows that are not read yet may need more than the base's context."""
    context, data = ModelFiles.of(model).context, recipe.data
    longest = data.max_prompt_length + max(recipe.generation.max_new_tokens, data.max_completion_length)
    if context is None or longest <= context:
        return []
    limits = "data.max_prompt_length, data.max_completion_length and generation.max_new_tokens"
    return [
        f"rows may have up to {longest:,} tokens by {limits}, and {model.location!r} has a context of {context:,}: if any has "
        "more, the game is refused when they are read"
    ]


def _check_ids(files: ModelFiles, largest: int, field: str) -> None:
    known = files.embedding_rows
    if known is not None and largest >= known:
        raise InputError(
            f"model.name_or_path: rows of {field} have token {largest}, but the embedding of {files.name} has {known} rows; "
            f"{OWN_TOKENIZER}"
        )


def _check_context(recipe: Recipe, files: ModelFiles, lengths: list[np.ndarray], field: str) -> None:
    """Every prompt has room for an answer, and every row of the data for its own."""
    context, new = files.context, recipe.generation.max_new_tokens
    if context is None:
        return
    prompt, *answers = lengths
    answered = np.max(answers, axis=0)
    over, longest, answer = (
        int(n) for n in ((prompt + np.maximum(answered, new) > context).sum(), prompt.max(), answered.max())
    )
    if not over:
        return
    problem = (
        f"model.name_or_path: {files.name} has a context of {context} tokens, and {over:,} of {len(prompt):,} rows of {field} "
        f"need more, with prompts of up to {longest} tokens, answers of up to {answer} and generation.max_new_tokens {new}"
    )
    raise InputError(f"{problem}; {_remedy(context, prompt, answer, new)}take a model with a longer context")


def _remedy(context: int, prompt: np.ndarray, answer: int, new: int) -> str:
    """What to set so that all rows fit, or if prompts leave no room for answers, so that some do; nothing if none can."""
    room = context - int(prompt.max())
    if room >= context // 8:
        fields = ["generation.max_new_tokens"] * (new > room) + ["data.max_completion_length"] * (answer > room)
        return f"set {' and '.join(fields)} to {room}, or "
    for limit in (context // 2, context - max(1, context // 8)):
        if prompt.min() <= limit:
            answers = f"generation.max_new_tokens and data.max_completion_length to {context - limit}"
            return f"set data.max_prompt_length to {limit}, and {answers}, or "
    return ""


def _check_unknown(files: ModelFiles, rows: Rows, field: str) -> None:
    """Most of the text is what the tokenizer does not know. Tokens that a template writes say nothing of it."""
    known = files.vocabulary
    if known.unknown is None:
        return
    tokens = np.concatenate([side(position) for position in range(len(rows)) for side in (rows.prompt, rows.chosen)])
    text = tokens[~np.isin(tokens, list(known.added))]
    share = float((text == known.unknown).mean()) if len(text) else 0.0
    if share > 0.5:
        raise InputError(
            f"model.name_or_path: the tokenizer of {files.name} does not know the text of {field}: {share:.0%} of its tokens "
            f"are {known.unknown_text!r}; {OWN_TOKENIZER.partition(',')[0]}"
        )


def check_told_apart(rows: Rows, field: str) -> None:
    """Refuse rows of which two different prompts have the same token ids: the model could not tell them apart.

    Space, case and accents, which a tokenizer or a template may well drop, make no prompt a different one.
    """
    seen: dict[bytes, str] = {}
    for position in range(len(rows)):
        text = "\n".join(message["content"] for message in rows.messages(position))
        known = seen.setdefault(rows.prompt(position).tobytes(), text)
        if known != text and _plain(known) != _plain(text):
            raise InputError(
                f"{field}: two different prompts have the same token ids: {_start(known, text)!r} and {_start(text, known)!r}; "
                "the tokenizer or model.chat_template loses what tells them apart"
            )


def _plain(text: str) -> str:
    characters = unicodedata.normalize("NFKD", text)
    return "".join(one for one in characters if unicodedata.category(one)[0] not in "ZCM").casefold()


def _start(text: str, other: str) -> str:
    """Some of a text from where it differs from another."""
    same = next((index for index, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    begin = max(0, same - 10)
    return text[begin : begin + 40]
