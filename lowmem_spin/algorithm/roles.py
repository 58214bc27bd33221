"""What part a policy has in its game. Names are for people; nothing but `role_of_name` reads them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

UNQUANTIZED_BASE = "unquantized base"  # what the base is before its weights are put in 4 bits
PLAIN_SFT = "plain SFT"  # what the trainings "SFT 0", "SFT 1", ... come to, measured once


class Role(StrEnum):
    """What a policy is to its game."""

    BASE = "base"
    UNQUANTIZED = "unquantized"  # the base as it is with its own weights, which plays no part
    WARM_START = "warm_start"  # fine-tuned before the game, whose base it then is
    ITERATE = "iterate"
    BASELINE = "baseline"  # plain fine-tuning, with which the game is compared


class Part(NamedTuple):
    """A policy's part in its game."""

    role: Role
    iteration: int | None  # from 0; None where the policy is not of one iteration

    @property
    def is_iterate(self) -> bool:
        return self.role is Role.ITERATE


def role_of_name(name: str) -> Part:
    """The part of a policy in files of versions that kept only its name.

    Raises:
        ValueError: no version gave a policy this name.
    """
    alone = {"base": Role.BASE, "warm start": Role.WARM_START, PLAIN_SFT: Role.BASELINE}
    if name in alone:
        return Part(alone[name], None)
    kind, _, number = name.partition(" ")
    numbered = {"iterate": Role.ITERATE, "SFT": Role.BASELINE}
    if kind not in numbered or not number.isdecimal():
        raise ValueError(f"{name!r} is no policy's name")
    return Part(numbered[kind], int(number))


def part_in(record: Mapping[str, Any], name: str) -> Part:
    """The part that a record of this policy gives it.

    Raises:
        KeyError, TypeError, ValueError: the record is not whole.
    """
    if "role" not in record:
        return role_of_name(name)
    role, iteration = Role(record["role"]), record["iteration"]
    if type(iteration) is not int and (iteration is not None or role is Role.ITERATE):
        raise TypeError(f"iteration of {name!r}")
    return Part(role, iteration)


def parts_in(record: Mapping[str, Any]) -> dict[str, Part]:
    """The parts of the policies of run.json, in its order.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the record is not whole.
    """
    roles = record.get("roles")
    return {name: part_in({} if roles is None else roles[name], name) for name in record["policies"]}
