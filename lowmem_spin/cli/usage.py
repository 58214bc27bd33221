"""What is wrong with a command as it was typed, in one line of our own: typer's has the usage, and pydantic's English."""

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from lowmem_spin.common.errors import InputError, quoted

# typer has brought a copy of click along since 0.26; whichever it is, these are its classes.
UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


class Commands(TyperGroup):
    """The commands; what cannot be used of a command line is refused like anything else."""

    def make_context(self, *given: Any, **options: Any) -> Any:
        """See click."""
        try:
            return super().make_context(*given, **options)
        except UsageError as error:
            raise self._refused(error) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See click."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise InputError(f"{quoted(args[0])}: no such command; {_command_meant(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """See click."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise self._refused(error) from None

    def _refused(self, error: Any) -> Exception:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help, which is no refusal
            return error
        return InputError(usage_line(error, self.commands))


def _command_meant(given: str, commands: Iterable[str]) -> str:
    from lowmem_spin.config.load import BUNDLED

    recipe = given.removesuffix(".yaml")
    if given.endswith(".yaml") or any((folder / f"{recipe}.yaml").is_file() for folder in BUNDLED):
        return f"to play this recipe: `lowmem-spin run {given}`"
    near = difflib.get_close_matches(given, commands, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(commands)}"


def usage_line(error: Any, commands: Mapping[str, Any]) -> str:
    """The option or argument, its value, and what to write instead."""
    command = error.ctx.command if error.ctx is not None else None
    called = command.name if command is not None and command.name in commands else "lowmem-spin"
    kind = type(error).__name__
    param = getattr(error, "param", None)
    if kind == "NoSuchOption" and command is not None:
        return f"{error.option_name}: `{called}` has no such option; {_option_meant(error.option_name, command, commands)}"
    if kind == "BadOptionUsage":
        name = error.option_name
        if "does not take a value" in error.message:
            return f"{name}: takes no value; leave out what stands behind ="
        return f"{name}: a value is missing; write it behind {name}, or leave both out"
    if kind == "MissingParameter" and param is not None:
        return f"{_name(param)}: missing; {_help(param)}"
    if param is not None:
        return f"{_name(param)} {_value(error)}"
    if command is not None and "unexpected extra argument" in error.message:
        extra = error.message.partition("(")[2].rpartition("(")[2].rstrip(").")
        takes = " ".join(_name(one) for one in command.params if one.param_type_name == "argument")
        return f"{quoted(extra)}: more than `{called}` takes, which is {takes or 'no words at all'}; options begin with --"
    return error.format_message()


def _name(param: Any) -> str:
    """As it is typed: --limit, or RUN."""
    return max(param.opts, key=len) if param.param_type_name == "option" else param.metavar or param.name.upper()


def _help(param: Any) -> str:
    text = (param.help or "").rstrip(".")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _value(error: Any) -> str:
    """A value that was refused, and what was wanted."""
    cause = error.__cause__
    if not hasattr(cause, "errors"):
        return f"cannot be used: {error.message}"
    problem = cause.errors(include_url=False)[0]
    _, of, choices = problem["msg"].partition(" is not one of ")
    if of:
        return f"{quoted(problem['input'])}: there is no such choice; write one of {choices.rstrip('.')}"
    from lowmem_spin.config.wanted import wanted

    return f"{quoted(problem['input'])}: cannot be used; {wanted(problem, _bounds(error.param), math.inf)}"


def _bounds(param: Any) -> dict[str, Any]:
    limits = {"ge": getattr(param, "min", None), "le": getattr(param, "max", None)}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _option_meant(given: str, command: Any, commands: Mapping[str, Any]) -> str:
    """What to write instead of an option that a command does not have."""
    own = _options(command)
    elsewhere = [name for name, other in commands.items() if given in _options(other)]
    if "--set" in own:
        from lowmem_spin.config.field_names import field_names, named_like

        found = dict.fromkeys(named_like(given.lstrip("-").replace("-", "_"), field_names()))
        if found:
            shallow = sorted(found, key=lambda name: name.count("."))[:3]
            several = ", or `lowmem-spin sweep` for several values" if "sweep" in elsewhere else ""
            return f"write {' or '.join(f'--set {name}={_typed_value(given)}' for name in shallow)}{several}"
    if elsewhere:
        named = ", ".join(f"`{name}`" for name in elsewhere)
        return f"{named} {'have' if len(elsewhere) > 1 else 'has'} it"
    near = difflib.get_close_matches(given.lower(), own, n=1)
    asked = " ".join(["lowmem-spin", *([command.name] if command.name in commands else []), "--help"])
    return f"did you mean {near[0]}?" if near else f"`{asked}` lists those it has"


def _options(command: Any) -> list[str]:
    return [name for param in command.params if param.param_type_name == "option" for name in param.opts]


def _typed_value(option: str) -> str:
    """What was typed behind an option."""
    words = sys.argv[1:]
    for word, after in zip(words, [*words[1:], "VALUE"], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option:
            return "VALUE" if after.startswith("--") else after
    return "VALUE"
