"""samples/ in a run's folder: what a policy was asked and what it answered, document by document.

The lines are those of the harness's own --log_samples, in files that are named alike: samples_TASK_KEY.jsonl in a folder per
policy. Where the harness writes the date, these have the beginning of the result's key, so that none is written twice.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.utils import handle_non_serializable, sanitize_list

from lowmem_spin.common.files import check_inside, write_text
from lowmem_spin.evaluation.judged.shared import file_name

FOLDER = "samples"
SampleRecord = dict[str, Any]


def sample_files(folder: Path, policy: str, tasks: Sequence[str], key: str) -> dict[str, Path]:
    """Where the samples of a result are to be, by the name of the task; a group has several.

    Args:
        folder: the run's.
        policy: its name.
        tasks: names of the tasks.
        key: the result's.

    Raises:
        InputError: they would be outside the run's folder.
    """
    place = Path(FOLDER) / file_name(policy)
    check_inside(folder, FOLDER, str(place))
    return {task: folder / place / f"samples_{file_name(task)}_{key[:12]}.jsonl" for task in tasks}


def write_samples(path: Path, samples: Sequence[SampleRecord]) -> None:
    """Write a task's samples, as the harness has them in its results."""
    write_text(path, "".join(_line(sample) + "\n" for sample in samples))


def _line(sample: SampleRecord) -> str:
    asked = [{f"arg_{place}": part for place, part in enumerate(parts)} for parts in sample["arguments"]]
    arguments = {f"gen_args_{place}": parts for place, parts in enumerate(asked)}
    told = {name: sanitize_list(sample[name]) for name in ("resps", "filtered_resps")}
    line = {**sample, **told, "arguments": arguments, "target": str(sample["target"])}
    return json.dumps(line, default=handle_non_serializable, ensure_ascii=False)
