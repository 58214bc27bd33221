"""AlpacaEval: how often a policy's answers are preferred to a baseline's, and how often if they were as long as those.

Instructions, outputs and annotations are JSON as the package alpaca-eval reads and writes it. The length-controlled rate
(arXiv 2404.04475) is the package's own; it is fitted to the 805 official instructions and means nothing on others.
"""

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_spin.common.errors import InputError, install_extra
from lowmem_spin.common.keys import digest
from lowmem_spin.evaluation import json_rows
from lowmem_spin.runner.health import Estimate

VERSION = 1  # bumped by hand when the same answers would be compared otherwise
REPOSITORY, OFFICIAL = "tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json"
LONGEST = 2048  # tokens of an answer
Row = dict[str, str]


class Instructions:
    """What policies are asked, and what a baseline answered."""

    def __init__(self, rows: Sequence[Row], official: bool) -> None:
        self.rows, self.official = list(rows), official
        self.identity = digest(self.rows)
        self.baseline = self.rows[0]["generator"]


def read_alpaca(path: Path | None, limit: int | None, option: str) -> Instructions:
    """The first `limit` instructions of a file, or the official ones from the hub.

    Raises:
        InputError: it is not there, or not in AlpacaEval's format.
    """
    source = _fetch(OFFICIAL, option) if path is None else path
    absent = f"no file {str(source)!r}; without the option the official one is taken"
    rows = [_row(row, option, source) for row in json_rows.rows(source, option, absent)[:limit]]
    names = sorted({row["generator"] for row in rows})
    if not rows:
        raise InputError(f"{option}: {str(source)!r} has no instruction")
    if len(names) > 1:
        raise InputError(f"{option}: {str(source)!r} has outputs of {', '.join(names[:3])}; a baseline is one of them")
    if len({row["instruction"] for row in rows}) < len(rows):
        raise InputError(f"{option}: {str(source)!r} has an instruction twice; alpaca-eval tells answers apart by it")
    return Instructions(rows, path is None and limit is None)


def _row(row: Any, option: str, source: Path) -> Row:
    for name in ("instruction", "output"):
        if not isinstance(row, dict) or not isinstance(row.get(name), str):
            raise InputError(
                f"{option}: a row of {str(source)!r} has no {name!r}; each needs an instruction and a baseline's output"
            )
    named = {name: str(row.get(name) or default) for name, default in (("generator", "baseline"), ("dataset", "own"))}
    return {"instruction": row["instruction"], "output": row["output"], **named}


def _fetch(name: str, option: str) -> Path:
    """A file of AlpacaEval's repository on the hub, or of its local copy."""
    import httpx
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, name, repo_type="dataset"))
    except (hub.LocalEntryNotFoundError, hub.HfHubHTTPError, hub.OfflineModeIsEnabled, httpx.TransportError, OSError):
        command = f"`hf download {REPOSITORY} {name} --repo-type dataset`"
        raise InputError(f"{option}: {name} of {REPOSITORY} is neither here nor can it be fetched; run {command}") from None


def check_length_control(option: str) -> None:
    """Refuse before anything is judged what could not be computed after it."""
    if find_spec("alpaca_eval") is None:
        raise InputError(f"{option}: alpaca-eval is not installed; {install_extra('judge')}")
    _fetch("df_gamed.csv", option)


def outputs(instructions: Instructions, generator: str, answers: Sequence[str]) -> list[Row]:
    """A policy's answers as alpaca-eval reads them."""
    instructed = [{name: row[name] for name in ("instruction", "dataset")} for row in instructions.rows]
    return [{**row, "output": answer, "generator": generator} for row, answer in zip(instructed, answers, strict=True)]


def annotations(
    instructions: Instructions, generator: str, answers: Sequence[str], wins: Sequence[float], judge: str
) -> list[dict[str, Any]]:
    """As alpaca-eval writes them: a preference of 2 is the policy's, 1 the baseline's, 1.5 neither's.

    Args:
        instructions: what was asked.
        generator: the policy's name.
        answers: its answers.
        wins: P(the policy's answer is preferred).
        judge: what preferred.
    """
    return [
        {
            "instruction": row["instruction"],
            "dataset": row["dataset"],
            "output_1": row["output"],
            "generator_1": row["generator"],
            "output_2": answer,
            "generator_2": generator,
            "annotator": judge,
            "preference": 1 + win,
        }
        for row, answer, win in zip(instructions.rows, answers, wins, strict=True)
    ]


def alpaca_numbers(instructions: Instructions, annotated: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """win rate, lengths in characters, and on the official instructions the length-controlled win rate; rates from 0 to 1."""
    parts = {
        "win rate": [one["preference"] - 1 for one in annotated],
        "length": [len(one["output_2"]) for one in annotated],
        "baseline's length": [len(one["output_1"]) for one in annotated],
    }
    estimates = {name: Estimate(np.array(values, float)) for name, values in parts.items()}
    alone = len(annotated) < 2
    found: dict[str, dict[str, Any]] = {
        name: {"value": one.mean, "stderr": None if alone else one.error, "values": one.values.tolist()}
        for name, one in estimates.items()
    }
    if instructions.official:
        found["length-controlled win rate"] = _length_controlled(annotated)
    return found


def _length_controlled(annotated: Sequence[dict[str, Any]]) -> dict[str, Any]:
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pkg_resources and scikit-learn, about versions that the extra keeps away
        from alpaca_eval.metrics import get_length_controlled_winrate

        result = get_length_controlled_winrate(pd.DataFrame(annotated), save_weights_dir=None, is_warn_extreme_changes=False)
    return {"value": float(result["length_controlled_winrate"]) / 100, "stderr": float(result["lc_standard_error"]) / 100}


def versions(instructions: Instructions) -> dict[str, str]:
    """Of what computed the numbers."""
    return {"alpaca-eval": version("alpaca-eval")} if instructions.official else {}
