"""FastChat's files of MT-Bench: fetched, read and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from lowmem_spin.common.errors import InputError
from lowmem_spin.evaluation import json_rows
from lowmem_spin.evaluation.judged.mtbench import OWN, REFERRED, TURNS, MTBench, MTBenchQuestion, prompt_fields

QUESTIONS, PROMPTS, REFERENCES = "question.jsonl", "judge_prompts.jsonl", "reference_answer/gpt-4.jsonl"
COMMIT = "587d5cfa1609a43d192cedb8441cac3c17db105d"
FASTCHAT = f"https://raw.githubusercontent.com/lm-sys/FastChat/{COMMIT}/fastchat/llm_judge/data"


def download(folder: Path, address: str = FASTCHAT) -> None:
    """Fetch FastChat's three files (Apache-2.0) into a folder, those that are not there.

    Raises:
        InputError: one does not come.
    """
    for name in (QUESTIONS, PROMPTS, REFERENCES):
        path, url = folder / name, f"{address}/{name if name == PROMPTS else f'mt_bench/{name}'}"
        if path.exists():
            continue
        try:
            response = httpx.get(url, timeout=60, follow_redirects=True).raise_for_status()
        except httpx.HTTPError as error:
            raise InputError(f"--download: {url} does not come ({error}); put it at {path} yourself") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_bytes(response.content)
        partial.replace(path)


def read_mtbench(folder: Path, limit: int | None, option: str) -> MTBench:
    """The first `limit` questions of a folder with FastChat's files.

    Raises:
        InputError: a file is missing, or is another.
    """
    if not (folder / QUESTIONS).is_file():
        remedy = "`evaluate --download` fetches FastChat's files, or name a folder that has them"
        raise InputError(f"{option}: {str(folder)!r} has no {QUESTIONS}; {remedy}")
    references = {
        line["question_id"]: _reference(line) for line in _lines(folder / REFERENCES, option, ("question_id", "choices"))
    }
    questions = []
    for line in _lines(folder / QUESTIONS, option, ("question_id", "category", "turns"))[:limit]:
        category = line["category"]
        if not isinstance(category, str) or category in OWN:
            raise InputError(
                f"{option}: question {line['question_id']} of {str(folder)!r} has the category {category!r}; a category is a "
                f"text, and none of {', '.join(OWN)}"
            )
        reference = references.get(line["question_id"]) if category in REFERRED else None
        if not _is_turns(line["turns"]) or (category in REFERRED and not _is_turns(reference)):
            raise InputError(
                f"{option}: question {line['question_id']} of {str(folder)!r} needs {TURNS} turns, and a reference answer to "
                f"each if it is of {', '.join(REFERRED)}"
            )
        questions.append(MTBenchQuestion(line["question_id"], category, line["turns"], reference))
    if not questions:
        raise InputError(f"{option}: {str(folder / QUESTIONS)!r} has no question")
    if len({question.id for question in questions}) < len(questions):
        raise InputError(f"{option}: {str(folder / QUESTIONS)!r} has a question_id twice; answers are told apart by it")
    named = {line["name"]: line for line in _lines(folder / PROMPTS, option, ("name", "system_prompt", "prompt_template"))}
    kinds = {(referred, second): _prompt_name(referred, second) for referred in (False, True) for second in (False, True)}
    absent = sorted(set(kinds.values()) - named.keys())
    if absent:
        raise InputError(f"{option}: {str(folder / PROMPTS)!r} has no prompt {absent[0]!r}; FastChat's file has")
    kept = ("name", "system_prompt", "prompt_template")
    prompts = {kind: {field: named[name][field] for field in kept} for kind, name in kinds.items()}
    for (referred, second), prompt in prompts.items():
        example = MTBenchQuestion(0, "", ["", ""], ["", ""] if referred else None)
        try:
            prompt["prompt_template"].format(**prompt_fields(example, int(second), ["", ""]))
        except (LookupError, ValueError, AttributeError) as error:
            raise InputError(
                f"{option}: prompt {prompt['name']!r} of {str(folder / PROMPTS)!r} has a place that nothing fills: {error}; "
                "a brace that is none is written twice"
            ) from None
    return MTBench(questions, prompts)


def _reference(line: dict[str, Any]) -> Any:
    """What a line of reference answers has of them; `_is_turns` says whether they are."""
    try:
        return line["choices"][0]["turns"]
    except (LookupError, TypeError):
        return None


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and len(value) == TURNS and all(isinstance(turn, str) for turn in value)


def _prompt_name(referred: bool, second: bool) -> str:
    return f"single{'-math' if referred else ''}-v1{'-multi-turn' if second else ''}"


def _lines(path: Path, option: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    lines = json_rows.rows(path, option, f"{str(path)!r} is missing; FastChat has it, --download fetches it")
    for line in lines:
        lacking = [field for field in fields if not isinstance(line, dict) or field not in line]
        if lacking:
            raise InputError(f"{option}: a line of {str(path)!r} has no {lacking[0]!r}; FastChat's files have")
        for field in {"question_id", "name", "system_prompt", "prompt_template"} & set(fields):
            if not isinstance(line[field], int | str):
                raise InputError(f"{option}: {field!r} in a line of {str(path)!r} is no text; in FastChat's files it is")
    return lines
