"""The metrics that score greedy answers to held-out prompts, by name, some with options of their own."""

from typing import Annotated, Any, Literal

import regex
from pydantic import BeforeValidator, Field, field_validator

from lowmem_spin.config.paths import PathText
from lowmem_spin.config.section import Section

PLAIN = ("exact_match", "none")
NAMED = ("final_number", "regex", "contains", "function")


class FinalNumber(Section):
    """The last number, as tasks like GSM8K ask for it."""

    name: Literal["final_number"] = "final_number"
    """Selects the share of greedy answers that end and whose last number, after the last #### where there is one, equals that
    of the data's answer. Commas and $ do not count: $1,200 is 1200.0."""


class Contains(Section):
    """The data's answer somewhere in the policy's."""

    name: Literal["contains"] = "contains"
    """Selects the share of greedy answers that end and have the data's answer, stripped of blanks around it, in them."""


class Regex(Section):
    """What a pattern finds, as the letter of a multiple choice."""

    name: Literal["regex"] = "regex"
    """Selects the share of greedy answers that end and in which the pattern finds what it finds in the data's answer."""
    pattern: str
    """Regular expression with a group, in Python's syntax, for instance "answer is ([A-D])": the first group of its last match
    is compared. Write one that matches the data's answers, too."""

    @field_validator("pattern")
    @classmethod
    def _with_a_group(cls, value: str) -> str:
        try:
            groups = regex.compile(value).groups
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(f"no regular expression: {error}") from None
        if not groups:
            raise ValueError("it has no group; put what is to be compared in parentheses")
        return value


class OwnMetric(Section):
    """A metric that is a Python function: tests of code, units, anything that can be computed."""

    name: Literal["function"]
    """Selects a Python function of your own as the metric; it runs after --trust."""
    function: PathText
    """Your metric as file.py:function, with the file beside the recipe or here. It is called with (prompt, answer, expected),
    three texts, for every greedy answer that ends, and returns a number or true or false; a truncated one counts 0."""


def _named(value: Any) -> Any:
    """A name alone is that metric, and the two without options are their names."""
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str) or name not in (*PLAIN, *NAMED):
        raise ValueError(f"its name is none of {', '.join((*PLAIN, *NAMED))}")
    if name in PLAIN:
        return name if value in (name, {"name": name}) else value
    return {"name": value} if isinstance(value, str) else value


_Chosen = Annotated[FinalNumber | Contains | Regex | OwnMetric, Field(discriminator="name")]
Metric = Annotated[
    Literal["exact_match", "none"] | _Chosen,
    BeforeValidator(_named, json_schema_input_type=Literal["exact_match", "none"] | _Chosen),
]


def name_of(metric: Any) -> str:
    """What a metric is called in a recipe, and by its number in metrics.jsonl."""
    return metric if isinstance(metric, str) else metric.name
