"""The Open LLM Leaderboard, version 1: its six tasks, and what arXiv 2404.04291 reports on them in Table 1."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One task as the leaderboard took it."""

    heading: str
    task: str  # its name in lm-evaluation-harness
    fewshot: int
    metric: str  # "metric,filter" as the harness calls it, or OF_SUBTASKS
    weighted: str | None = None  # what earlier versions have instead: the mean over all documents, whatever their task


OF_SUBTASKS = "acc,mean of subtasks"  # which the harness does not know: it weights the 57 of MMLU by their sizes

# truthfulqa_mc2 by its own name: the harness's tag `truthfulqa` is three tasks.
COLUMNS = (
    Column("ARC", "arc_challenge", 25, "acc_norm,none"),
    Column("TruthfulQA", "truthfulqa_mc2", 0, "acc,none"),
    Column("Winogrande", "winogrande", 5, "acc,none"),
    Column("GSM8K", "gsm8k", 5, "exact_match,strict-match"),
    Column("HellaSwag", "hellaswag", 10, "acc_norm,none"),
    Column("MMLU", "mmlu", 5, OF_SUBTASKS, weighted="acc,none"),
)

# Percent in the order of COLUMNS, then the average as printed there; that of the last row is 46.64 by its own columns.
# gemma-2b after alpha-SPIN with alpha 0.95 on UltraChat200k.
PAPER_SOURCE = "gemma-2b in Table 1 of arXiv 2404.04291"
PAPER = {
    "paper: history 2, iterate 0": (48.98, 33.00, 65.35, 19.33, 72.20, 41.01, 46.65),
    "paper: history 2, iterate 1": (49.32, 33.20, 66.22, 20.39, 73.06, 40.93, 47.19),
    "paper: history 2, iterate 2": (50.09, 33.86, 66.22, 21.23, 73.65, 40.54, 47.60),
    "paper: history 1, iterate 0": (49.32, 33.15, 65.98, 18.20, 72.10, 41.03, 46.63),
    "paper: history 1, iterate 1": (49.40, 33.14, 65.82, 17.66, 72.25, 41.13, 46.57),
    "paper: history 1, iterate 2": (49.40, 33.31, 65.82, 18.12, 72.23, 40.93, 46.69),
}
