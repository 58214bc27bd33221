"""What a plan estimates with: numbers for rows, what the store has of them, their lengths, and the time they take."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from lowmem_spin.algorithm.touches import NO_ROWS, SAMPLE, Places
from lowmem_spin.common.files import DamagedError
from lowmem_spin.common.keys import digest
from lowmem_spin.common.parquet import ParquetTable
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.formats import Conversation
from lowmem_spin.data.readers import Unusable
from lowmem_spin.data.rows import Rows
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.memory import peak, planned_shape
from lowmem_spin.engines.model_files import find_file
from lowmem_spin.engines.passes import planned_passes
from lowmem_spin.engines.pool import ORACLE
from lowmem_spin.engines.registry import ENGINES, PORTABLE
from lowmem_spin.engines.residency import judging_terms
from lowmem_spin.runner.planning.calibration import Calibration, Kind, device_name
from lowmem_spin.runner.planning.counting import Unit
from lowmem_spin.runner.resolved import ResolvedRecipe

SAMPLED = 1000  # rows whose lengths are looked at
STEP_SECONDS = 0.003  # a layer and token of a batch, by transformers on a GPU, however few rows: gemma-2b's in nf4 on an H200
MEASURED_ANSWERS = 2  # to a held-out prompt, of which an oracle is asked: a policy's, and another's
MARKS = 3  # tokens that a template writes around a turn, or so


def find_tokenizer(model: Source) -> Tokenizer | None:
    """The base's, without transformers; None where it is not here or does not read, which a run refuses in its own words."""
    path = find_file(model, "tokenizer.json") if model.resolved else None
    try:
        return None if path is None else Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001 - tokenizers raises nothing more precise
        return None


@dataclass
class Lengths:
    """Mean tokens of a row, for the time it takes."""

    prompt: float
    chosen: float
    generated: float  # at most

    @classmethod
    def of(cls, recipe: Recipe, rows: Rows | None) -> "Lengths":
        longest = float(recipe.generation.max_new_tokens)
        if rows is None or not len(rows):
            return cls(float(recipe.data.max_prompt_length), float(recipe.data.max_completion_length), longest)
        some = rows.only(range(0, len(rows), max(1, len(rows) // SAMPLED)))
        prompt, chosen = (float(np.mean([len(side(n)) for n in range(len(some))])) for side in (some.prompt, some.chosen))
        return cls(prompt, chosen, longest)

    @classmethod
    def sampled(cls, recipe: Recipe, rows: Sequence[Conversation], tokenizer: Tokenizer | None) -> "Lengths":
        """Of rows that are not prepared yet; without the base's tokenizer a token is taken to be four letters."""
        asked = ["\n".join(message["content"] for message in row.context) for row in rows]
        said = [row.answer or "" for row in rows]
        if tokenizer is None:
            prompts, answers = ([len(text) / 4 for text in texts] for texts in (asked, said))
        else:
            prompts, answers = ([len(one.ids) for one in tokenizer.encode_batch(texts)] for texts in (asked, said))
        marks = [MARKS * (len(row.context) + 1) for row in rows]
        data = recipe.data
        prompt = float(np.mean(np.minimum(np.add(prompts, marks), data.max_prompt_length)))
        chosen = float(np.mean(np.minimum(np.add(answers, 1), data.max_completion_length)))
        return cls(prompt, chosen, float(recipe.generation.max_new_tokens))


class Sample(list[Conversation]):
    """Usable rows, taken at random while others count the rows of a file: SAMPLED of them, or all."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.drawn = 0, random.Random(0)

    def passing(self, rows: Iterable[Conversation | Unusable]) -> Iterator[Conversation | Unusable]:
        """The rows as they are."""
        for row in rows:
            if isinstance(row, Conversation):
                self.seen += 1
                if len(self) < SAMPLED:
                    self.append(row)
                elif (place := self.drawn.randrange(self.seen)) < SAMPLED:
                    self[place] = row
            yield row


class Ids:
    """A number for every row; a block of fresh ones for rows that have no ids yet."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.blocks: dict[Any, int] = {}

    def of(self, ids: Sequence[str]) -> Places:
        return np.array([self.numbers.setdefault(name, len(self.numbers)) for name in ids], np.int64)

    def block(self, name: Any, count: int) -> Places:
        start = self.blocks.setdefault(name, 10**12 * (1 + len(self.blocks)))
        return np.arange(start, start + count)


class Stored:
    """Which of a unit's rows the store has."""

    def __init__(self, root: Path, ids: Ids) -> None:
        self.root, self.ids = root, ids
        self.tables: dict[tuple[str, str], dict[str, list[tuple[str, int]]]] = {}

    def missing(self, unit: Unit) -> Places:
        """Those that it does not have."""
        if unit.side == "pairs":
            return NO_ROWS if (self.root / "adapters" / unit.table / "manifest.json").exists() else unit.places
        if unit.side in ("completions", "mixtures", "judgements"):
            names = self._names(unit.side, unit.table).get(unit.side, [])
        else:
            table, _, judged_samples = unit.side.partition("/")
            names = self._names("logps", unit.table).get(table, [])
            names = _first_two(names) if judged_samples else names
        if not names:
            return unit.places
        known = [self.ids.numbers[name] + sample * SAMPLE for name, sample in names if name in self.ids.numbers]
        return np.setdiff1d(unit.places, np.array(known, np.int64))

    def _names(self, kind: str, table: str) -> dict[str, list[tuple[str, int]]]:
        """(prompt id, sample) in a table by side. A damaged shard is redone, so it does not count."""
        if (kind, table) not in self.tables:
            found: dict[str, list[tuple[str, int]]] = {}
            for path in sorted((self.root / kind / table).glob("[!.]*.parquet")):
                try:
                    rows = ParquetTable(path).read()
                except (FileNotFoundError, DamagedError):
                    continue
                for side, name, sample in _named(kind, rows):
                    found.setdefault(side, []).append((name, sample))
            self.tables[kind, table] = found
        return self.tables[kind, table]


def _named(kind: str, rows: pa.Table) -> Iterator[tuple[str, str, int]]:
    """(side, prompt id, sample) of each row of a table of this kind."""
    ids = rows["prompt_id"].to_pylist()
    if kind == "logps":
        for name, completion in zip(ids, rows["completion"].to_pylist(), strict=True):
            side, _, sample = completion.partition("/")
            yield side, name, int(sample or 0)
        return
    samples = rows["sample"].to_pylist() if "sample" in rows.column_names else [0] * len(ids)
    yield from ((kind, name, sample) for name, sample in zip(ids, samples, strict=True))


def _first_two(names: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Of each prompt's scored answers up to two: those that another game chose among the same answers count as well."""
    counts = Counter(name for name, _ in set(names))
    return [(name, place) for name, count in counts.items() for place in range(min(count, 2))]


def _kind(unit: Unit) -> Kind:
    """Which engine's work it is."""
    kinds: dict[str, Kind] = {"completions": "generate", "mixtures": "generate", "pairs": "train"}
    return kinds.get(unit.side, "score")


def shapes(found: ResolvedRecipe) -> str:
    """What a rate depends on beside the engine: measurements of like ones hold for each other as they are."""
    recipe = found.recipe
    lengths = [recipe.data.max_prompt_length, recipe.data.max_completion_length, recipe.generation.max_new_tokens]
    batches = [recipe.runtime.generation_batch_size, recipe.scoring_tokens, recipe.training_tokens, recipe.runtime.layout]
    return digest([found.model.identity, recipe.model.quantization, found.choices.machine.dtype, lengths, batches])


def judged(found: ResolvedRecipe, answers: int) -> str:
    """The same of judging so many answers to a prompt: the rate of another oracle, or of more answers, is none for it."""
    return digest([shapes(found), found.oracle_spec, getattr(found.recipe.game.oracle, "batch_size", None), answers])


@dataclass
class Clock:
    """Seconds by what bench measured on this device, or by FLOP; and memory by engines/memory.py."""

    found: ResolvedRecipe
    calibration: Calibration
    gpu: str | None = None  # another device than this machine's

    def __post_init__(self) -> None:
        choices, shape = self.found.choices, planned_shape(self.found.model)
        self.device = self.gpu or device_name(choices.machine.device)
        self.peaks: dict[str, float] = {}
        self.shapes = shapes(self.found)
        self.parameters: int | None = None
        self.layers = 0
        if shape is not None:
            dtype = choices.machine.dtype if choices.machine.device == "cuda" else "bfloat16"
            oracle = self.found.judging(dtype)
            recipe = planned_passes(self.found.recipe, shape, choices.machine, choices.generator, choices.learner, oracle)
            self.parameters, self.layers = shape.active, shape.layers
            generator, learner = (ENGINES[name].memory(recipe, shape, dtype) for name in (choices.generator, choices.learner))
            terms = {**learner, "generate": generator["generate"], "judge": judging_terms(recipe, shape, dtype, oracle)}
            self.peaks = {kind: peak(found) for kind, found in terms.items() if found}

    def memory(self, unit: Unit) -> float:
        """Bytes that the unit's kind of stage takes on a GPU at most, by the model of engines/memory.py."""
        return self.peaks.get("judge" if unit.side == "judgements" else _kind(unit), float("nan"))

    def seconds(self, unit: Unit, rows: int, lengths: Lengths, epochs: int) -> tuple[float, bool]:
        """(seconds for `rows` rows of the unit, whether measured); a training reads them `epochs` times."""
        if unit.side == "judgements":
            answers = self.found.recipe.game.samples if unit.kind == "judge" else MEASURED_ANSWERS
            record = self.calibration.of_shapes("judge", self.device, ORACLE, judged(self.found, answers))
            if record is None:
                return (float("nan") if rows else 0.0), False
            return rows * record.seconds / record.rows, True
        training, choices = self.found.recipe.training, self.found.choices
        kind = _kind(unit)
        shared = 2 if unit.kind == "score" else 1  # a pair's answers are scored with their prompt, which is read once
        per_row = {
            "generate": lengths.generated,
            "score": lengths.prompt / shared + (lengths.chosen if unit.side == "chosen" else lengths.generated),
            "train": epochs * (lengths.prompt + lengths.chosen + lengths.generated),
        }[kind]
        if unit.kind == "baseline":
            per_row = epochs * (lengths.prompt + lengths.chosen)
        if self.parameters is None:
            return float("nan"), False
        engine = choices.generator if kind == "generate" else choices.learner
        tokens = round(rows * per_row)
        checkpointing = training.gradient_checkpointing
        mine = self.shapes
        if kind == "score" and unit.kind != "score" and self.calibration.of_shapes("score alone", self.device, engine, mine):
            kind = "score alone"
        seconds, measured = self.calibration.seconds(kind, tokens, self.parameters, self.device, engine, checkpointing, mine)
        if kind == "generate" and engine == PORTABLE and choices.machine.device == "cuda" and not measured:
            batches = -(-rows // self.found.recipe.runtime.generation_batch_size)
            seconds = max(seconds, batches * lengths.generated * self.layers * STEP_SECONDS)
        return seconds, measured

    def generated(self) -> float:
        """Tokens of an answer: those of the base's, where they were measured, else as many as there may be."""
        generator = self.found.choices.generator
        record = self.calibration.of_shapes("generate", self.device, generator, self.shapes)
        return float(self.found.recipe.generation.max_new_tokens) if record is None else record.tokens / record.rows
