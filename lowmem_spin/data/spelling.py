"""Texts to token ids: what a conversation says stays text, and an answer is what follows its prompt."""

import copy
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from lowmem_spin.common.errors import InputError

HIDDEN, STAND_IN = 0xF0000, 0x100000  # the private planes: one character for each control token
MARK = "\ufdd0"  # before a hidden one; Unicode promises that no text has this character
ANCHORS = ("", "\n", ":", "a")  # what an answer is tokenised after, where its own prompt would merge with it


class Spelled(NamedTuple):
    """A prompt and its answer as token ids."""

    prompt: list[int]
    answer: list[int]
    apart: bool  # whether the tokenizer would have merged the prompt's end with the answer's beginning


class Spelling:
    """The one rule by which texts become token ids.

    A control token is one that the tokenizer calls special, that ends an answer or that the template writes around turns
    (`control`). Only the template may write them: where a message spells one, `hide` replaces it before the template sees
    the message, and `ids` has it tokenised as the characters it is made of. Nothing else about tokenising changes, whatever
    the family of the tokenizer: the same text is given to the same tokenizer at once, or, if it has something hidden, to a
    copy that reads no control token in it but stand-ins, which are put where the template wrote one.

    A prompt's ids are those of its text alone, as in generation. An answer's ids are those after the prompt's when both are
    tokenised together: SentencePiece writes a blank before a text, so that an answer tokenised by itself begins with a token
    that no policy samples after a prompt.
    """

    def __init__(self, tokenizer: Any, control: Iterable[str]) -> None:
        self.tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)  # called by itself it takes a third of the time
        if self._backend is not None:  # as transformers does at every call
            self._backend.no_truncation()
            self._backend.no_padding()
        self.control = sorted(set(control), key=lambda token: (-len(token), token))  # of two that begin alike, the longer
        self._pattern = re.compile("|".join(map(re.escape, self.control)) or r"(?!)")
        self._ids = set(tokenizer.convert_tokens_to_ids(self.control)) - {tokenizer.unk_token_id}
        self._unknown = tokenizer.unk_token
        self._number = {token: place for place, token in enumerate(self.control)}

    def hide(self, text: str) -> str:
        """The text with its control tokens hidden from the template and the tokenizer."""
        return self._pattern.sub(lambda found: MARK + chr(HIDDEN + self._number[found[0]]), text)

    def plain(self, text: str) -> str:
        """The text again, its control tokens spelled out."""
        return re.sub(f"{MARK}(.)", lambda found: self.control[ord(found[1]) - HIDDEN], text) if MARK in text else text

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[Spelled | str]:
        """Each (prompt, answer) as token ids, or why it cannot be."""
        prompts = self.ids([prompt for prompt, _ in texts])
        wholes = self.ids([prompt + answer for prompt, answer in texts])
        found: list[Spelled | str] = []
        for prompt, whole, (_, answer) in zip(prompts, wholes, texts, strict=True):
            if prompt is None or whole is None:
                found.append("with a control token in a text that this tokenizer cannot take as plain text")
            elif whole[: len(prompt)] == prompt:
                found.append(Spelled(prompt, whole[len(prompt) :], apart=False))
            else:
                found.append(self._apart(prompt, whole, answer))
        return found

    def _apart(self, prompt: list[int], whole: list[int], answer: str) -> Spelled | str:
        """For a prompt that the tokenizer merges with its answer: ids of the answer that spell the same after the prompt."""
        spelled = self.texts([whole])
        for anchor in ANCHORS:
            before, both = self.ids([anchor, anchor + answer])
            if before is not None and both is not None and both[: len(before)] == before:
                ids = both[len(before) :]
                if self.texts([[*prompt, *ids]]) == spelled:
                    return Spelled(prompt, ids, apart=True)
        return "whose answer this tokenizer cannot spell after its prompt"

    def ids(self, texts: Sequence[str]) -> list[list[int] | None]:
        """Token ids of texts as a template wrote them; None where a control token would come out of a message."""
        tokenised = iter(self._tokenised([text for text in texts if MARK not in text]))
        return [self._literal(text) if MARK in text else self._checked(next(tokenised), text) for text in texts]

    def _tokenised(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        try:
            if self._backend is None:
                return self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:  # tokenizers raises nothing more precise
            told = " ".join(str(error).split())[:150]
            raise InputError(
                f"model.name_or_path: its tokenizer fails on a text ({told}); use the tokenizer that belongs to this model"
            ) from error

    def texts(self, completions: Sequence[Sequence[int]]) -> list[str]:
        """Each completion's ids as text, to the letter."""
        if self._backend is None:
            exact = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
            return [self.tokenizer.decode(ids, **exact) for ids in completions]
        return self._backend.decode_batch([list(ids) for ids in completions], skip_special_tokens=False)

    def _checked(self, ids: list[int], text: str) -> list[int] | None:
        """The ids, if as many of them are control tokens as the template wrote."""
        control = sum(map(ids.count, self._ids.intersection(ids)))
        written = self._pattern.findall(text)
        return ids if control == len(written) - written.count(self._unknown) else None

    def _literal(self, text: str) -> list[int] | None:
        """Ids of a text with hidden control tokens, which are spelled out."""
        if self._backend is None or any(STAND_IN <= ord(character) < STAND_IN + len(self.control) for character in text):
            return None
        written = self._pattern.sub(lambda found: chr(STAND_IN + self._number[found[0]]), text)
        ids: list[int] = self._reader.encode(self.plain(written), add_special_tokens=False).ids
        return None if self._ids.intersection(ids) else [self._meant.get(token, token) for token in ids]

    @cached_property
    def _reader(self) -> Any:
        """A copy of the tokenizer to which control tokens are text and stand-ins are control tokens."""
        reader = copy.deepcopy(self._backend)
        known = {token.content: token for token in self.tokenizer.added_tokens_decoder.values()}
        for place, content in enumerate(self.control):
            token, stand_in = known[content], copy.deepcopy(known[content])
            token.special, stand_in.special, stand_in.content = True, False, chr(STAND_IN + place)
            reader.add_special_tokens([token])
            reader.add_tokens([stand_in])
        reader.encode_special_tokens = True
        return reader

    @cached_property
    def _meant(self) -> dict[int, int]:
        """{a stand-in's id: the control token's}"""
        meant: list[int] = self.tokenizer.convert_tokens_to_ids(self.control)
        return {self._reader.token_to_id(chr(STAND_IN + place)): token for place, token in enumerate(meant)}
