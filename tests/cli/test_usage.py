"""Commands as people mistype them: one line in our own words, exit code 2, before anything is computed."""

import re

import pytest
from typer.main import get_command

from helpers.commands import assert_one_line, call
from lowmem_spin.cli.main import app

FOREIGN = ("Input should", "parse", "Usage:", "Invalid value", "Error:")  # of pydantic and typer
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
NUMERIC = [
    (name, option.opts[0])
    for name, command in COMMANDS.items()
    for option in command.params
    if re.search(r"\b(int|float)\b", str(option.type_descriptor.annotation))
]


def said(*words: str) -> str:
    result = call(*words)
    assert_one_line(result)
    assert not any(foreign in result.stderr for foreign in FOREIGN), result.stderr
    return result.stderr.removeprefix("error: ").rstrip()


def test_there_are_numeric_options() -> None:
    assert len(NUMERIC) > 15 and ("sweep", "--seeds") in NUMERIC


@pytest.mark.parametrize(("command", "option"), NUMERIC)
def test_what_is_no_number_is_refused_by_every_option_that_wants_one(command: str, option: str) -> None:
    line = said(command, *["x"] * (command not in ("bench", "gc")), option, "lots")
    assert re.match(rf"{option} 'lots': cannot be used; write a (whole )?number", line), line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("serve x --port 99999", "--port '99999': cannot be used; write a whole number from 1 to 65,535"),
        ("arena x --limit 0", "--limit '0': cannot be used; write a whole number of at least 1"),
        ("export x --dtype int8", "--dtype 'int8': there is no such choice; write one of 'bfloat16', 'float16', 'float32'"),
        ("run quickstart --alpha 0.5", "--alpha: `run` has no such option; write --set game.alpha=0.5, or `lowmem-spin sweep`"),
        ("run quickstart --history=2", "--history: `run` has no such option; write --set game.history=2, or `lowmem-spin swee"),
        ("run quickstart --epochs --trust", "--epochs: `run` has no such option; write --set "),
        ("run quickstart --seeds 3", "--seeds: `run` has no such option; `sweep`, `plan` have it"),
        ("plan --histroy 1", "--histroy: `plan` has no such option; did you mean --history?"),
        ("run --Set x=1", "--Set: `run` has no such option; did you mean --set?"),
        ("chat x --frobnicate", "--frobnicate: `chat` has no such option; `lowmem-spin chat --help` lists those it has"),
        ("--frobnicate", "--frobnicate: `lowmem-spin` has no such option; `lowmem-spin --help` lists those it has"),
        ("run --set", "--set: a value is missing; write it behind --set, or leave both out"),
        ("run --trust=1", "--trust: takes no value; leave out what stands behind ="),
        ("run quickstart zoo", "'zoo': more than `run` takes, which is RECIPE; options begin with --"),
        ("recipes all", "'all': more than `recipes` takes, which is no words at all"),
        ("chat", "RUN: missing; a folder that `lowmem-spin run` wrote"),
        ("rnu", "'rnu': no such command; did you mean run?"),
        ("quickstart", "'quickstart': no such command; to play this recipe: `lowmem-spin run quickstart`"),
        ("mine.yaml", "'mine.yaml': no such command; to play this recipe: `lowmem-spin run mine.yaml`"),
        ("xyz", "'xyz': no such command; there are run, sweep, "),
        ("sweep quickstart --alpha foo", "game.alpha: 'foo' cannot be used: write a number from 0 to 1"),
        ("sweep quickstart --alpha 0.5,2", "game.alpha: 2 cannot be used: write a number from 0 to 1"),
        ("sweep quickstart --history x", "game.history: 'x' cannot be used: write a whole number or 'inf'"),
        ("sweep quickstart --history 1,0", "game.history: 0 cannot be used: write a whole number of at least 1 or 'inf'"),
        ("theory quickstart --grid game.loss.beta=much", "game.loss.beta: 'much' cannot be used: write a number"),
        ("plan quickstart --set evaluation.compare_sft=often", "evaluation.compare_sft: 'often' cannot be used: write true or"),
        ("plan quickstart --set training.lora=16", "training.lora: 16 cannot be used: this is a section"),
        ("plan quickstart --set game.init=before", "game.init: 'before' cannot be used: write 'previous' or 'base'"),
    ],
)
def test_a_slip_is_one_line_that_says_what_to_type(words: str, line: str) -> None:
    assert said(*words.split()).startswith(line)


def test_help_is_still_help() -> None:
    asked, bare = call("--help"), call()
    assert asked.returncode == 0 and "Play a game" in asked.stdout
    assert "Play a game" in bare.stdout + bare.stderr
    assert "--max-hours" in call("run", "--help").stdout
