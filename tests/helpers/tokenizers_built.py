"""Small tokenizers of every family, built here: byte-level, SentencePiece as it was converted then and now, Unigram."""

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["Hello there friend", "Nice to see you", "Good day to you", "stone river dog green house\n<|user|>\n<|assistant|>\n"]
CORPUS += ["the cat sat on the mat, and then? sort: cab abc  two blanks", "Be brief. 42 [INST] [/INST] ### Response:\n\n"] * 2
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def _wrapped(core: Tokenizer, template: str, **names: Any) -> Any:
    first = core.token_to_id("<s>")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])  # as add_bos does
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **{**marks, **names})
    tokenizer.chat_template = template
    return tokenizer


def _trained(core: Tokenizer, **options: Any) -> dict[str, Any]:
    """Vocabulary and merges of a BPE that has seen the corpus."""
    core.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(vocab_size=300, show_progress=False, **options))
    return json.loads(core.to_str())["model"]


def _byte_fallback(core: Tokenizer) -> Tokenizer:
    """The BPE of SentencePiece: characters that it does not know are bytes."""
    teacher = Tokenizer(models.BPE())  # whose words end before a blank, as SentencePiece's
    teacher.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    learned = _trained(teacher)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    merges = [tuple(pair) for pair in learned["merges"]]
    core.model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    core.add_special_tokens([AddedToken(mark, normalized=False) for mark in ("<unk>", "<s>", "</s>")])
    return core


def prepending(template: str = ZEPHYR) -> Any:
    """As Mistral v1, Llama 2 and Zephyr: a blank before the text, and before whatever follows a control token."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core = _byte_fallback(core)
    blank = decoders.Replace("▁", " ")
    core.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _wrapped(core, template)


def prepending_once(template: str = ZEPHYR) -> Any:
    """As they are converted since: a blank at the very beginning alone."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    core = _byte_fallback(core)
    blank = decoders.Replace("▁", " ")
    core.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _wrapped(core, template)


def byte_level(template: str = ZEPHYR) -> Any:
    """As GPT-2, Llama 3 and Qwen."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _trained(core, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>", "<|user|>"])
    core.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return _wrapped(core, template, unk_token=None)


def eating() -> Any:
    """As Phi-3: control tokens that take the blanks after them, and one that takes those before it."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core = _byte_fallback(core)
    marks = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    core.add_special_tokens([AddedToken(mark, rstrip=True, normalized=False) for mark in marks])
    core.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    blank = decoders.Replace("▁", " ")
    core.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _wrapped(core, TURNS)


def unigram() -> Any:
    """As T5 and XLM-R: the end token is a word of the model's too."""
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")} | set("</>s"))
    words = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in letters)]
    words += [("▁Hello", -2.0), ("Hello", -3.0), ("▁you", -2.5)]
    core = Tokenizer(models.Unigram(words, unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    core.add_special_tokens([AddedToken(mark, normalized=False) for mark in ("<unk>", "<s>", "</s>")])
    return _wrapped(core, ZEPHYR)


FAMILIES = {
    "prepending": prepending,
    "prepending once": prepending_once,
    "byte-level": byte_level,
    "eating blanks": eating,
    "unigram": unigram,
}
