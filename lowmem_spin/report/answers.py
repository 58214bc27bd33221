"""What changed, in one answer: a kept prompt, and what the base, the best policy and the data say to it."""

from dataclasses import dataclass

from rich.cells import cell_len

from lowmem_spin.common.errors import printable
from lowmem_spin.report.results import PolicyResults, RunResults, SweepResults

LONGEST = 600  # characters of a text; the samples below a page's pictures are whole


@dataclass(frozen=True)
class BeforeAfter:
    """One prompt and its answers, long ones cut; each is a sample, drawn as the game draws them."""

    why: str  # this prompt of those that were kept
    prompt: str
    answers: list[tuple[str, str]]  # (whose, text): the base's, the best policy's and, where the data has any, the data's


def before_after(results: RunResults | SweepResults) -> BeforeAfter | None:
    """The first kept prompt on which the best policy has come to answer as the data does, else the first that tells it from
    the base, else the first; None where no prompt was kept."""
    if isinstance(results, RunResults):
        best = max(results.played[1:], key=lambda policy: policy.score.mean, default=results.base)
        return _first(results.base, best, best.name)
    if not results.finished:
        return None
    run = next(iter(results.best.runs.values()))
    return _first(run.base, run.last, f"{run.last.name} of {results.best.label}")


def _first(base: PolicyResults, best: PolicyResults, name: str) -> BeforeAfter | None:
    after = {sample["prompt_id"]: sample for sample in best.samples}
    kept = [(one, after[one["prompt_id"]]) for one in base.samples if "prompt" in one and one["prompt_id"] in after]
    if not kept:
        return None
    learned = [(b, a) for b, a in kept if "data" in b and b["answer"].strip() != b["data"].strip() == a["answer"].strip()]
    differ = [(b, a) for b, a in kept if b["answer"] != a["answer"]]
    if learned:
        why = f"the first of {len(kept)} kept prompts that {name} answers as the data does and the base otherwise"
    elif differ:
        why = f"the first of {len(kept)} kept prompts that {name} answers unlike the base"
    else:
        why = f"the first of {len(kept)} kept prompts; {name} answers all of them as the base does"
    first, last = (learned or differ or kept)[0]
    texts = {base.name: _said(first), name: _said(last), **({"the data": first["data"]} if "data" in first else {})}
    return BeforeAfter(why, _cut(first["prompt"]), [(whose, _cut(text)) for whose, text in texts.items()])


def _said(sample: dict[str, str]) -> str:
    return sample["answer"] + (" … (truncated)" if sample.get("finish_reason") == "length" else "")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


def on_one_line(text: str, cells: int) -> str:
    """Text that nobody has checked, on one line of so many columns at most; what is cut is an ellipsis."""
    text = printable(" ".join(text.split())) or "(nothing)"
    if cell_len(text) <= cells:
        return text
    while cell_len(text) >= cells:
        text = text[: max(1, min(len(text) - 1, cells))]
    return text.rstrip() + "…"
