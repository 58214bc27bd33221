"""How long and how different a policy's answers to one prompt are.

Texts are cut into words by sacrebleu's tokeniser 13a, which is mteval-v13a's. Self-BLEU is that of Texygen (arXiv
1802.01886): every answer's BLEU against the other answers to its prompt; RSPO (arXiv 2503.00030) reports it over 16 answers
with n-grams up to 3. Lower is more diverse. Where an answer shares no n-gram of an order with the others, smoothing gives it
a part of one: here sacrebleu's `exp`, one half and then a quarter; in RSPO's code NLTK's method1, which is a tenth and
sacrebleu's `floor`. That code also has NLTK's words, AlpacaEval's prompts, temperature 0.7, top-p 0.9 and 200 tokens, so its
numbers do not compare with these. Distinct-n (arXiv 1510.03055) is the share of distinct n-grams among all of a
prompt's answers; higher is more diverse.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError, install_extra
from lowmem_spin.common.keys import digest
from lowmem_spin.runner.health import Estimate
from lowmem_spin.store.memo import Tables
from lowmem_spin.store.rows import Answer, Prompt

VERSION = 1  # bumped by hand when the same answers would give other numbers
PROMPTS, ANSWERS = 64, 16
ORDER = 3  # longest n-grams of self-BLEU


def check_temperature(temperature: float, asked_by: str) -> None:
    """Refuse where the numbers cannot be had or mean nothing."""
    if find_spec("sacrebleu") is None:
        raise InputError(f"{asked_by}: sacrebleu is not installed; {install_extra('eval')}")
    if temperature == 0:
        raise InputError("generation.temperature: 0 gives one answer to a prompt, so there is no diversity to measure")


def diversity_spec(policy: str, sampling: Sampling, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What names the result; its digest is the key."""
    names = digest([prompt.name for prompt in prompts])
    what = {"task": "diversity", "answers": ANSWERS, "prompts": names}
    return {"kind": "evaluate", "version": VERSION, "policy": policy, **what, "generate": sampling.spec(policy)}


def measure_diversity(
    tables: Tables, policy: str, name: str, prompts: Sequence[Prompt], sampling: Sampling, display: Display
) -> dict[str, Any]:
    """One policy's answers to held-out prompts, those generated that are not stored: a record as harness.measure gives it."""
    several = [prompt._replace(sample=sample) for prompt in prompts for sample in range(ANSWERS)]
    (answers,) = tables.answers([(policy, several)], sampling, f"{name}: {ANSWERS} answers to each prompt")
    groups = [answers[start : start + ANSWERS] for start in range(0, len(answers), ANSWERS)]
    with display.stage("evaluate", f"{name} on diversity", len(groups)) as meter:
        found = []
        for group in groups:
            found.append({number: of_prompt(group) for number, of_prompt in _measures().items()})
            meter.advance(1)
    numbers = {number: _number([of_prompt[number] for of_prompt in found]) for number in _measures()}
    numbers = {number: value for number, value in numbers.items() if value is not None}
    recorded = {"versions": {"sacrebleu": version("sacrebleu")}, "bleu": _signature()}
    return {"numbers": numbers, "count": len(prompts), "fewshot": None, "own": False, "recorded": recorded}


def _number(found: Sequence[float | None]) -> dict[str, Any] | None:
    """The mean over the prompts that have the number; with all of them beside it if none lacks it."""
    values = [float(value) for value in found if value is not None]
    if not values:
        return None
    estimate = Estimate(np.array(values))
    shown = {"value": estimate.mean, "stderr": estimate.error if len(values) > 1 else None}
    return shown if len(values) < len(found) else {**shown, "values": values}


def _measures() -> dict[str, Callable[[Sequence[Answer]], float | None]]:
    """Numbers of one prompt's answers; None where an answer is too short to have one."""
    return {
        "length": lambda answers: float(np.mean([len(answer.tokens) for answer in answers])),
        "truncated": lambda answers: float(np.mean([answer.finish_reason == "length" for answer in answers])),
        "distinct_1": lambda answers: distinct([answer.text for answer in answers], 1),
        "distinct_2": lambda answers: distinct([answer.text for answer in answers], 2),
        f"self_bleu_{ORDER}": lambda answers: self_bleu([answer.text for answer in answers]),
    }


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Share of distinct n-grams of words; None without any."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    cut = Tokenizer13a()
    words = [cut(text).split() for text in texts]
    grams = [tuple(line[start : start + n]) for line in words for start in range(len(line) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # The effective order leaves out n-grams longer than an answer: equal answers of one word have 100, not 0.
    return BLEU(max_ngram_order=ORDER, effective_order=True, tokenize="13a")


def _signature() -> str:
    """sacrebleu's own line on how it scores; it knows it only after it has."""
    bleu = _bleu()
    bleu.sentence_score("a", ["a"] * (ANSWERS - 1))
    return str(bleu.get_signature())


def self_bleu(texts: Sequence[str]) -> float:
    """Mean over the texts of their BLEU against all others, 0 to 100. One that occurs twice has 100, an empty one too."""
    bleu = _bleu()
    others = [[*texts[:position], *texts[position + 1 :]] for position in range(len(texts))]
    scores = [
        100.0 if text in rest else bleu.sentence_score(text, rest).score for text, rest in zip(texts, others, strict=True)
    ]
    return float(np.mean(scores))
