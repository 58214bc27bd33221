"""Games that were played, finished or not: their numbers, their policies, and what these say."""

import html
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError, printable
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.formats import Message
from lowmem_spin.data.sources import Source
from lowmem_spin.library import frames
from lowmem_spin.report.load import read_results, read_run_results, read_sweep
from lowmem_spin.report.overview import played
from lowmem_spin.report.results import RunResults
from lowmem_spin.report.summary import grid_notation, run_grid, sweep_grid
from lowmem_spin.runner import run_folder
from lowmem_spin.runner.run_folder import RunFolder, StoredPolicy

if TYPE_CHECKING:
    from pandas import DataFrame
    from peft import PeftModel
    from transformers import PreTrainedModel

    from lowmem_spin.engines.hf import HF

TRUST = "trust=True"  # how a person says here that code may run


class _Folder:
    """What a run and a sweep have in common."""

    record = ""  # the file by which the folder is known

    def __init__(self, folder: Path, trust: bool = False) -> None:
        self.folder, self.trust = folder.absolute(), trust

    def report(self) -> Path:
        """Write report.html, with report.md and the pictures, as `lowmem-spin report` does; loads no model.

        Returns:
            Where report.html is: one page that needs no network. Of a game that is not finished it has what is measured.

        Raises:
            InputError: nothing is measured yet, or the files do not read back.
        """
        from lowmem_spin.report.page import write_all  # matplotlib takes a second

        return write_all(read_results(self.folder, so_far=True))[0]

    def __repr__(self) -> str:
        if not (self.folder / self.record).is_file():
            return printable(f"{type(self).__name__}({str(self.folder)!r}: not there any more)")
        found = played(self.folder / self.record)
        return printable(f"{type(self).__name__}({str(self.folder)!r}: {', '.join(filter(None, [found.state, found.best]))})")


class Run(_Folder):
    """One game's folder. Everything is read when it is asked for, so that it is never older than the files.

    Attributes:
        folder: where `lowmem-spin run` would have put it.
        trust: whether the recipe's and the model's own code may run; see `load`.
    """

    record = "run.json"

    def __init__(self, folder: Path, trust: bool = False) -> None:
        super().__init__(folder, trust)
        self._engine: HF | None = None  # with the base, once `generate` has needed it

    @property
    def recipe(self) -> Recipe:
        """What was played, every default filled in."""
        return run_folder.read_run_folder(self.folder).recipe

    @property
    def finished(self) -> bool:
        """Whether the game was played to its end; if not, playing its recipe again goes on."""
        try:
            read_run_results(self.folder)
        except InputError:
            return False
        return True

    @property
    def table(self) -> "DataFrame":
        """The results: a row per policy, a column per number, and its standard error as `<name>_se`.

        Shares are from 0 to 1 and KL is in nats; `lowmem_spin.fields()` says what each column is. A game that is not
        finished has the policies that are measured, and a line says so.

        Raises:
            InputError: none is measured yet, or the files do not read back.
        """
        return frames.run_frame(self._so_far())

    @property
    def metrics(self) -> "DataFrame":
        """metrics.jsonl as it is: also each policy's key and role, its scores by category and by row, and its first answers.

        Raises:
            InputError: no policy is measured yet, or the files do not read back.
        """
        return frames.metrics_frame(self._so_far())

    def iterate(self, name: int | str | None = None) -> tuple["PeftModel | PreTrainedModel", Any]:
        """A policy as a model of its own, on a base that is loaded for it: in 4 bits, if the game was played so.

        Args:
            name: an iterate's number, "iterate 2", "base" or another policy of the game. None is the last one trained, or the
                one to keep of a game that was stopped early.

        Returns:
            (model, tokenizer), ready for `generate`: the tokenizer has the game's chat template and pads on the left, and the
            model ends its answers where the game does. The base alone, without an adapter, is no PeftModel.

        Raises:
            InputError: there is no such policy, it is not trained yet, or its base is not here any more.
        """
        game, policy, base = self._open(name)
        from lowmem_spin.library.policies import load_policy

        return load_policy(game, policy, base)

    def generate(
        self,
        prompts: Sequence[str | list[Message]],
        iterate: int | str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> list[str]:
        """A policy's answers, with the template, the system prompt and the sampling of its game, as `lowmem-spin chat` gives
        them. How many are truncated is said.

        The base stays loaded for the next call, until `close`.

        Args:
            prompts: questions, or whole conversations as lists of {"role": ..., "content": ...}.
            iterate: as in `Run.iterate`.
            max_new_tokens: most tokens of an answer; None is the recipe's.
            temperature: 0 is greedy; None is the recipe's. The same prompts in the same order have the same answers.

        Raises:
            InputError: there is no such policy, or a prompt cannot be answered: it is empty, or too long for the model.
        """
        if isinstance(prompts, str):
            raise InputError("prompts: give a list, for instance [prompt]")
        game, policy, base = self._open(iterate)
        from lowmem_spin.cli.chat import sampling_of
        from lowmem_spin.library.policies import answers, open_portable_engine

        sampling = sampling_of(game, temperature, "temperature")
        sampling = _at_most(sampling, max_new_tokens)
        if self._engine is None:
            self._engine = open_portable_engine(game, base)
        drawn = answers(self._engine, policy, prompts, sampling)
        cut = sum(answer.finish_reason == "length" for answer in drawn)
        if cut:
            _notify(f"{cut} of {len(drawn)} answers are truncated at max_new_tokens {sampling.max_new_tokens}")
        return [answer.text for answer in drawn]

    def close(self) -> None:
        """Let go of the base that `generate` has loaded, and of its memory."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _so_far(self) -> RunResults:
        results = read_run_results(self.folder, so_far=True)
        if not results.finished:
            _notify(results.missing[0])
        return results

    def _open(self, name: int | str | None) -> tuple[RunFolder, StoredPolicy, Source]:
        """The game, the policy and the base, to be loaded."""
        game = run_folder.read_run_folder(self.folder)
        store = run_folder.open_store(game, _notify)
        policy = run_folder.find_policy(game, store, None if name is None else str(name), "iterate")
        return game, policy, run_folder.find_trusted_base(game, store, Trust(self.trust, option=TRUST), _notify)

    def _repr_html_(self) -> str:
        try:
            results = read_run_results(self.folder, so_far=True)
        except InputError:
            return f"<p>{html.escape(repr(self))}</p>"
        grid = run_grid(results)
        so_far = " so far" * (not results.finished)
        return grid.html(f"{self.folder.name}: held-out results{so_far}, ± 95% interval{grid_notation(grid)}")


class Sweep(_Folder):
    """The folder of games that differ in some of their values and in their seeds.

    Attributes:
        folder: where `lowmem-spin sweep` would have put it.
        trust: as in `Run`.
    """

    record = "sweep.json"

    @property
    def table(self) -> "DataFrame":
        """A row per game, waiting and failed ones too: its place on the axes, its seed, its state, and of its last iterate the
        same columns as `Run.table`.

        Raises:
            InputError: a file does not read back.
        """
        return frames.sweep_frame(read_sweep(self.folder))

    @property
    def runs(self) -> dict[str, Run]:
        """The finished games by name."""
        return {name: Run(run.folder, self.trust) for name, run in read_sweep(self.folder).runs.items()}

    @property
    def best(self) -> Run:
        """Of the configuration whose last iterates score highest, over the seeds, the game with the first seed.

        It is chosen by the numbers of the table, which flatters it.

        Raises:
            InputError: no game is finished yet.
        """
        results = read_sweep(self.folder)
        if not results.finished:
            raise InputError(f"{str(self.folder)!r} has no finished game yet; play the sweep again to continue")
        return Run(next(iter(results.best.runs.values())).folder, self.trust)

    def _repr_html_(self) -> str:
        try:
            results = read_sweep(self.folder)
        except InputError:
            results = None
        if results is None or not results.finished:
            return f"<p>{html.escape(repr(self))}</p>"
        grid = sweep_grid(results)
        return grid.html(f"{self.folder.name}: last iterates, ± 95% interval{grid_notation(grid)}")


def load(folder: str | Path, trust: bool = False) -> Run | Sweep:
    """A run or a sweep that was played before, here or elsewhere, finished or not. Computes nothing.

    Args:
        folder: what `lowmem-spin run` or `sweep` wrote, for instance runs/quickstart.
        trust: whether code that comes with the base may run once the base is loaded, which is remembered until it changes.

    Raises:
        InputError: it is neither.
    """
    place = Path(folder).expanduser()
    if (place / Sweep.record).is_file():
        read_sweep(place)
        return Sweep(place, trust)
    run_folder.read_run_folder(place)
    return Run(place, trust)


def _notify(line: str) -> None:
    Display(Console(stderr=True, force_jupyter=False)).log(line)


def _at_most(sampling: Sampling, tokens: int | None) -> Sampling:
    if tokens is None:
        return sampling
    if not (isinstance(tokens, int) and tokens > 0):
        raise InputError(f"max_new_tokens: {tokens!r} cannot be used; give at least 1")
    return replace(sampling, max_new_tokens=tokens)
