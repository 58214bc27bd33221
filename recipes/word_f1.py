"""A metric for short texts: the words that an answer and the data's have in common.

lowmem-spin run smollm2_cpu --trust --set 'evaluation.metric={name: function, function: word_f1.py:word_f1}'
"""

import re
from collections import Counter


def word_f1(prompt: str, answer: str, expected: str) -> float:
    """F1 of the answer's words against the expected ones, 0 to 1: SQuAD's (arXiv 1606.05250), but with articles counted."""
    said, meant = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, expected))
    return 2 * (said & meant).total() / max(1, said.total() + meant.total())
