"""YAML as recipes, grids and --set have it: small and plain, and every scalar means what it says.

Scalars are those of YAML 1.2: 0777 and 1:30 are no numbers of base 8 or 60, 1e-4 is a number, 2024-02-30 a text. Of YAML 1.1,
which most programs read, `<<` is kept, and yes, no, on and off as true and false: as text, a chat template or an optimiser
would take `no` for true. Where a text of these letters is meant, the field refuses true and false, and quotes help.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

LARGEST = 250_000  # characters, also once every alias is written out
DEEPEST = 50  # lists and mappings in each other
DIGITS = 40  # of a number
TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"
SCALARS = {
    "bool": r"true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "null": r"~|null|Null|NULL|",
    "merge": r"<<",
}
"""What a scalar without quotes is, by how it looks; anything else is text."""


class YAMLTextError(ValueError):
    """A text is not YAML that can be used: why, in a few words."""


def read_yaml(text: str) -> Any:
    """The value of a YAML text: nothing but dicts with text as names, lists, text, numbers, true, false and None.

    Raises:
        YAMLTextError: it is none, too large, too deep, has a name twice, or a value of another type.
    """
    if len(text) > LARGEST:
        raise YAMLTextError(f"over {LARGEST:,} characters")
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Values().of(node)
    except yaml.MarkedYAMLError as error:
        raise YAMLTextError(_in_place(error.problem or "it breaks off", error.problem_mark or error.context_mark)) from None
    except yaml.YAMLError as error:  # of characters that no text has
        raise YAMLTextError(" ".join(str(error).split())) from None
    except RecursionError:
        raise YAMLTextError(f"lists and mappings more than {DEEPEST} deep") from None
    except YAMLTextError:
        raise
    except (ValueError, OverflowError) as error:  # of escapes and directives with numbers that Python does not take
        raise YAMLTextError(str(error)) from None


def write_yaml(value: Any, **options: Any) -> str:
    """A value as a YAML text that reads back the same, here and where YAML 1.1 is read."""
    return yaml.dump(value, Dumper=_Dumper, **options)


def one_line(value: Any) -> str:
    """A value as it stands after a field's name: `--set field=value`, or in a list of such."""
    return write_yaml(value, default_flow_style=True, width=float("inf")).removesuffix("\n...\n").strip()


class _Loader(yaml.SafeLoader):
    """Only tells what a scalar is; what it stands for is _Values' matter."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as PyYAML has it


class _Dumper(yaml.SafeDumper):
    """Puts in quotes the text that either version of YAML would take for something else."""


for _kind, _looks in SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(TAG + _kind, re.compile(rf"(?:{_looks})\Z"), None)


def _in_place(said: str, mark: Any) -> str:
    return f"{said} in line {mark.line + 1}, column {mark.column + 1}" if mark else said


class _Values:
    """What the nodes of one text stand for. An alias is written out wherever it stands, so a bomb of them soon ends."""

    def __init__(self) -> None:
        self.left = LARGEST

    def of(self, node: Node, depth: int = 0) -> Any:
        """The value of a node that is `depth` lists and mappings deep."""
        self.left -= 1 + (len(node.value) if isinstance(node, ScalarNode) else 0)
        if self.left < 0:
            raise YAMLTextError(f"over {LARGEST:,} characters once its aliases are written out")
        if depth > DEEPEST:
            raise YAMLTextError(_in_place(f"lists and mappings more than {DEEPEST} deep", node.start_mark))
        if isinstance(node, ScalarNode):
            return _scalar(node)
        if isinstance(node, SequenceNode) and node.tag == f"{TAG}seq":
            return [self.of(part, depth + 1) for part in node.value]
        if isinstance(node, MappingNode) and node.tag == f"{TAG}map":
            found = dict(self._own(node, depth))
            return {**dict(self._merged(node, depth)), **found}
        raise _other(node)

    def _own(self, node: MappingNode, depth: int) -> Iterator[tuple[str, Any]]:
        """The names of a mapping itself, each once."""
        seen = set()
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise YAMLTextError(_in_place("a list or mapping where a name should be", key.start_mark))
            name = key.value if key.tag != f"{TAG}null" else "null"
            if name in seen:
                raise YAMLTextError(_in_place(f"{name[:60]!r} is there twice", key.start_mark))
            seen.add(name)
            if key.tag != MERGE:
                yield name, self.of(value, depth + 1)

    def _merged(self, node: MappingNode, depth: int) -> Iterator[tuple[str, Any]]:
        """What `<<` adds: of several mappings the first counts."""
        for key, value in node.value:
            if key.tag == MERGE:
                found = self.of(value, depth + 1)
                for one in reversed(found if isinstance(found, list) else [found]):
                    if not isinstance(one, dict):
                        raise YAMLTextError(_in_place("no mapping after <<", value.start_mark))
                    yield from one.items()


def _scalar(node: ScalarNode) -> Any:
    """Text, a number, true, false or None."""
    kind, text = node.tag.removeprefix(TAG), str(node.value)
    if kind in ("str", "merge"):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise YAMLTextError(_in_place("half of a character", node.start_mark))
        return text
    if kind not in SCALARS:
        raise _other(node)
    if not re.fullmatch(SCALARS[kind], text):  # with a tag in front
        raise YAMLTextError(_in_place(f"{text[:60]!r} is no {kind}", node.start_mark))
    if kind in ("int", "float") and len(text) > DIGITS:
        raise YAMLTextError(_in_place(f"a number of {len(text):,} digits", node.start_mark))
    if kind == "int":
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text if base == 10 else text[2:], base)
    if kind == "float":
        return float(re.sub(r"\.(?=[a-zA-Z])", "", text))  # Python writes .inf and .nan without the point
    return None if kind == "null" else text.lower() in ("true", "yes", "on")


def _other(node: Node) -> YAMLTextError:
    return YAMLTextError(_in_place(f"a value of another type, {node.tag[:60]!r}", node.start_mark))
