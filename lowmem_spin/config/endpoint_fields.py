"""What may be said of an endpoint: its address, the variable with its key, and further fields of its requests.

All of it is written into a run's folder and shown in its report, so a secret in it is refused, and not repeated.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import canonical

OWN = ("model", "messages", "stream", "n")  # fields that the endpoint sets itself
DEEPEST = 50  # lists and mappings in one another; a JSON schema that is to be kept to has some
SECRETS = ("api_key", "apikey", "authorization", "password", "secret", "token")


class SecretError(ValueError):
    """What is refused may hold a secret, so whoever reports it leaves the value out."""


def check_address(url: str) -> None:
    """Refuse what is no address of an API, or has more in it than that.

    Raises:
        SecretError: a user's name or password, or a query, is in it.
        ValueError: anything else that is wrong.
    """
    if "@" in url or "%40" in url:
        raise SecretError(
            "a name or a password in the address would be written into the run; leave it out, and put a key into the variable "
            "that api_key_env names"
        )
    if "?" in url or "#" in url:
        raise SecretError(
            "an address ends with its path, as in https://host/v1; leave out what follows, and put a key into the variable "
            "that api_key_env names"
        )
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        found = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is none, a host's name that is too long
        found = False
    if not found or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("no address; it looks like https://host/v1")


def check_variable(name: str) -> None:
    """Refuse what cannot be a variable's name, or looks like the key itself.

    Raises:
        SecretError: because it may be one.
    """
    key = len(name) >= 20 and any(map(str.islower, name)) and any(map(str.isdigit, name))
    if key or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise SecretError("this is the name of an environment variable, such as JUDGE_API_KEY, and not the key itself")


def subfield(field: str, name: str) -> str:
    """How a user calls a part of `field`: a recipe's field has a dot, a command's option a dash."""
    return f"{field}-{name.replace('_', '-')}" if field.startswith("--") else f"{field}.{name}"


def check_key(field: str, name: str) -> str:
    """The key in an environment variable.

    Raises:
        InputError: there is none, or what is there can be no key; it is not repeated.
    """
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(f"{subfield(field, 'api_key_env')}: the environment variable {name!r} is not set; export it")
    if not re.fullmatch("[!-~]+", key):
        raise InputError(
            f"{subfield(field, 'api_key_env')}: the key in {name!r} has a character that no header can carry, such as a line "
            "break, a space or an accent; export the key alone"
        )
    return key


def check_extra_body(fields: Mapping[str, Any]) -> None:
    """Refuse fields that cannot be sent, or make it another request.

    Raises:
        SecretError: one of them names a key.
        ValueError: anything else that is wrong.
    """
    own = [name for name in OWN if name in fields]
    if own:
        raise ValueError(f"{own[0]} cannot be set here: one answer of the judge's own model is read at a time")
    secret = [name for name in fields if name.lower().replace("-", "_") in SECRETS]
    if secret:
        raise SecretError(f"{secret[0]} would be written into the run; put it into the variable that api_key_env names")
    try:
        json.dumps(canonical(fields), ensure_ascii=False).encode()
        deep = _depth(fields)
    except RecursionError:
        deep = DEEPEST + 1
    except (TypeError, ValueError):
        raise ValueError("give what JSON has: text, numbers, true, false, null, lists and mappings") from None
    if deep > DEEPEST:
        raise ValueError(f"more than {DEEPEST} lists and mappings in one another are no request")


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(_depth, parts), default=0)
