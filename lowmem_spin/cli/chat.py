"""Talk to the policies of a game, in a terminal or through a pipe, with the template and end tokens of its training."""

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers import GenerationConfig, TextStreamer

from lowmem_spin.algorithm.game import sampling_params
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.errors import InputError, printable
from lowmem_spin.common.keys import number
from lowmem_spin.data.formats import Message
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.hf import HF, RowNoise
from lowmem_spin.engines.model_files import context_limit
from lowmem_spin.runner.run_folder import RunFolder, StoredPolicy, machine_of

COMMAND = re.compile(r"/[a-z]+")  # what begins like this and goes on is a question
WIDE = 100  # columns of a terminal in which two answers stand side by side
Show = Callable[[str], object]


class StopButton:
    """Ctrl-C as a signal handler: it stops the answer that is being given. At the prompt, or pressed again before
    the answer has stopped, it ends the chat."""

    def __init__(self) -> None:
        self.answering = self.pulled = False

    def __call__(self, *_: object) -> None:
        if not self.answering or self.pulled:
            raise KeyboardInterrupt
        self.pulled = True

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """While one answer is given."""
        self.answering, self.pulled = True, False
        try:
            yield
        finally:
            self.answering = False

    def stops(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """A stopping criterion of transformers."""
        return torch.full((len(input_ids),), self.pulled, device=input_ids.device)


class _Words(TextStreamer):
    """Gives finished words to `show`; the token that ends an answer is no part of it."""

    def __init__(self, engine: HF, show: Show) -> None:
        super().__init__(engine.tokenizer, skip_prompt=True, skip_special_tokens=False)  # type: ignore[arg-type]
        self.ends, self.show = engine.ends, show

    def put(self, value: torch.Tensor) -> None:
        if self.next_tokens_are_prompt or value.item() not in self.ends:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.show(text)


@dataclass
class Voice:
    """One policy and its side of the conversation."""

    engine: HF
    policy: StoredPolicy
    sampling: Sampling
    messages: list[Message] = field(default_factory=list)  # after the recipe's system prompt
    asked: int = 0  # questions, forgotten ones included: each is answered with noise of its own

    @torch.no_grad()
    def answer(self, question: str, show: Show, button: StopButton) -> str | None:
        """Stream the answer to `show` as words are finished; None, or a line on why it ended or was not begun."""
        engine, conversation = self.engine, [*self.messages, {"role": "user", "content": question}]
        try:
            prompt = torch.tensor([prompt_tokens(engine, conversation, self.sampling, "/reset")], device=engine.device)
        except InputError as refusal:
            return str(refusal)
        width = prompt.shape[1]
        seeds = torch.tensor([row_seed(self.sampling, self.policy, self.asked)], device=engine.device)
        ends = torch.tensor(engine.ends, device=engine.device)
        noise = RowNoise(seeds, ends, self.sampling.temperature, self.sampling.top_p, self.sampling.top_k, width)
        settings = GenerationConfig(
            do_sample=False,  # the noise samples
            max_new_tokens=self.sampling.max_new_tokens,
            eos_token_id=engine.ends,
            pad_token_id=engine.pad,
            use_cache=True,
        )
        with button.released(), engine.playing(self.policy.adapter) as model:
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=settings,
                logits_processor=[noise],
                stopping_criteria=[button.stops],
                streamer=_Words(engine, show),
            )
        tokens = output[0, width:].tolist()
        ended = tokens[-1] in engine.ends
        text = engine.renderer.said(tokens[:-1] if ended else tokens)
        self.messages, self.asked = [*conversation, {"role": "assistant", "content": text}], self.asked + 1
        if ended:
            return None
        return "stopped" if button.pulled else f"cut at {self.sampling.max_new_tokens} tokens; --max-new-tokens allows more"


def open_voices(
    run: RunFolder, policies: list[StoredPolicy], base: Source, temperature: float | None, longest: int | None = None
) -> list[Voice]:
    """The policies on one base, sampling as the recipe's generation section says, up to `longest` tokens; loads the base."""
    sampling = sampling_of(run, temperature, "--temperature")
    sampling = sampling if longest is None else replace(sampling, max_new_tokens=longest)
    engine = HF(run.recipe, base, machine_of(run))
    return [Voice(engine, policy, sampling) for policy in policies]


def sampling_of(run: RunFolder, temperature: float | None, option: str) -> Sampling:
    """How the recipe's generation section samples, at another temperature if one is given.

    Raises:
        InputError: it is none; the line begins with `option`.
    """
    sampling = sampling_params(run.recipe, run.inputs)
    if temperature is None:
        return sampling
    if not (temperature == 0 or 1e-6 <= temperature <= 100):
        raise InputError(f"{option} {temperature}: cannot be used; give 0, which is greedy, or 0.000001 to 100")
    return replace(sampling, temperature=temperature)


def prompt_tokens(engine: HF, conversation: list[Message], sampling: Sampling, remedy: str) -> list[int]:
    """Ids of a conversation as the game's rows have them, with the system prompt that they have.

    Raises:
        InputError: the rows would have left it out, or its answer has no room in the model's context.
    """
    system = engine.recipe.data.system_prompt
    opened = system is not None and conversation[0]["role"] != "system"
    found = engine.renderer.prompt([{"role": "system", "content": str(system)}, *conversation] if opened else conversation)
    limit, most = context_limit(engine.model.config.to_dict()), sampling.max_new_tokens
    if limit is not None and len(found) + most > limit:
        raise InputError(f"the conversation has {len(found)} tokens and an answer may have {most}, of {limit}; {remedy}")
    return found


def row_seed(sampling: Sampling, policy: StoredPolicy, asked: int) -> int:
    """The noise of a policy's answer to the question of this number."""
    return number(sampling.seed, policy.key, asked)


def talk(voices: list[Voice], lines: Iterable[str], out: Console, notify: Show) -> None:
    """Answer every line until there are no more, /quit or Ctrl-C; notes on them go to `notify`."""
    button = StopButton()
    before = signal.signal(signal.SIGINT, button)
    try:
        for line in lines:
            match line.strip():
                case "":
                    continue
                case "/quit":
                    break
                case "/reset":
                    for voice in voices:
                        voice.messages.clear()
                case command if COMMAND.fullmatch(command):
                    notify(f"{command}: unknown command; /reset forgets, /quit ends")
                case question:
                    side_by_side = len(voices) > 1 and out.is_terminal and out.width >= WIDE
                    (_in_columns if side_by_side else _in_turn)(voices, question, out, notify, button)
    except KeyboardInterrupt:
        out.print()
    finally:
        signal.signal(signal.SIGINT, before)


def read_lines() -> Iterator[str]:
    """What is typed, or what comes through a pipe, line by line."""
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    if find_spec("readline"):
        import readline  # noqa: F401  # gives input() the arrow keys
    with contextlib.suppress(EOFError):
        while True:
            yield input("you: ")


def _harmless(text: str) -> str:
    """Model text as it may be shown: what would steer a terminal shows as its escape."""
    return "".join(character if character in "\n\t" else printable(character) for character in text)


def _in_turn(voices: list[Voice], question: str, out: Console, notify: Show, button: StopButton) -> None:
    for voice in voices:
        if len(voices) > 1 or out.is_terminal:
            out.print(Text(f"{printable(voice.policy.name)}: ", style="bold"), end="")

        def show(text: str) -> None:
            out.out(_harmless(text), end="", highlight=False)
            out.file.flush()

        note = voice.answer(question, show, button)
        out.out("")
        if note:
            notify(f"{voice.policy.name}: {note}")


def _in_columns(voices: list[Voice], question: str, out: Console, notify: Show, button: StopButton) -> None:
    texts = [Text() for _ in voices]
    grid = Table.grid(expand=True, padding=(0, 2))
    for _ in voices:
        grid.add_column(ratio=1)
    grid.add_row(*(Text(printable(voice.policy.name), style="bold") for voice in voices))
    grid.add_row(*texts)
    notes = []
    with Live(grid, console=out, transient=True):  # what is longer than the screen is cut here, and whole below
        for voice, text in zip(voices, texts, strict=True):
            notes.append(voice.answer(question, lambda words, text=text: text.append(_harmless(words)), button))
    out.print(grid)
    for voice, note in zip(voices, notes, strict=True):
        if note:
            notify(f"{voice.policy.name}: {note}")
