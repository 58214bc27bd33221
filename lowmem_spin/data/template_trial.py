"""A chat template is a stranger's program: before it renders rows here, it renders a few in a process with an end.

Jinja's sandbox, in which transformers renders, says what a template may touch, and not how long it may take or how much it may
make: {{ 'a' * 10 ** 10 }} takes all memory, two loops in each other an afternoon, 10 ** 10 ** 9 cannot even be interrupted. So
a short conversation is tried first in a process that may be ended, on any system and from any thread; this file is that
process's program, too. Once it has ended by itself, rows are rendered as fast as ever.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

SECONDS, PATIENCE = 3, 120  # of computing; until an answer, on a machine that is busy with other things
BYTES, CHARACTERS = 1 << 30, 1_000_000  # of memory; of text
MEMORY, LONG = 3, 4  # exit codes
WORDS = "word " * 400
TURNS = [{"role": role, "content": WORDS} for role in ("system", "user", "assistant", "user", "assistant")]
TRIED = [TURNS[1:2], TURNS[1:3], TURNS[1:5], TURNS]


def excess(template: str, variables: Mapping[str, str]) -> str | None:
    """What a template takes too much of, in a few words; None if it keeps within the limits, or fails, which is seen here.

    Args:
        template: its text.
        variables: that it is given beside the messages: the tokenizer's special tokens.
    """
    return _excess(template, tuple(sorted(variables.items())))


@lru_cache
def _excess(template: str, variables: tuple[tuple[str, str], ...]) -> str | None:
    asked = json.dumps({"template": template, "variables": dict(variables), "seconds": SECONDS})
    command = [sys.executable, "-P", __file__]
    try:
        ended = subprocess.run(command, input=asked, text=True, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return f"does not end within {PATIENCE} s"
    if ended.returncode > 0 and ended.returncode not in (MEMORY, LONG):
        raise RuntimeError(ended.stderr)
    told = {
        0: None,
        MEMORY: f"takes more than {BYTES >> 30} GB of memory",
        LONG: f"makes more than {CHARACTERS:,} characters",
        -int(getattr(signal, "SIGXCPU", 0)): f"takes more than {SECONDS} s",
    }
    return told.get(ended.returncode, f"ends its process (signal {-ended.returncode})")


class _Generation(jinja2.ext.Extension):
    """transformers' own tag around answers, which writes what is in it."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

    def parse(self, parser: jinja2.parser.Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _limit(seconds: int) -> None:
    """Have this process end by itself, where the system can do that."""
    try:
        import resource
    except ImportError:  # Windows: the parent ends it
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def _render(template: str, variables: Mapping[str, str]) -> int:
    """The exit code: 0 also for a template that fails, which is said where it is used."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: "2024-02-29"}
    try:
        compiled = environment.from_string(template)
    except MemoryError:
        return MEMORY
    except Exception:  # noqa: BLE001 - whatever the compiler says of it
        return 0
    for messages in TRIED:
        for prompt in (True, False):
            try:
                text = compiled.render(messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **variables)
            except MemoryError:
                return MEMORY
            except Exception:  # noqa: BLE001, S112 - what a program may raise; it may still take for ever in another place
                continue
            if len(text) > CHARACTERS:
                return LONG
    return 0


def _refuse(said: str) -> None:
    raise jinja2.TemplateError(said)


if __name__ == "__main__":
    given = json.load(sys.stdin)
    _limit(given["seconds"])
    sys.exit(_render(given["template"], given["variables"]))
