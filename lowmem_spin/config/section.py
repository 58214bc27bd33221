"""What every part of a recipe is, and how something that a user gave is refused."""

from functools import cache
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A part of a recipe: unknown fields are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, given: Any) -> Any:
        """Python takes true for 1, and a learning rate of true is a slip: where a number is asked for, it is a word."""
        if not isinstance(given, dict):
            return given
        counted = _counted(cls)
        return {name: _as_word(value) if name in counted else value for name, value in given.items()}

    def with_value(self, field: str, value: Any) -> Self:
        """The same with another value of a field, `name` or `section.name`; it is not checked again."""
        name, _, rest = field.partition(".")
        return self.model_copy(update={name: getattr(self, name).with_value(rest, value) if rest else value})


@cache
def _counted(section: type[Section]) -> frozenset[str]:
    """The fields that are numbers."""
    return frozenset(name for name, field in section.model_fields.items() if _is_number(field.annotation))


def _is_number(annotation: Any) -> bool:
    """Whether numbers are among the types that an annotation is made of, and true and false are not."""
    return (_takes(annotation, int) or _takes(annotation, float)) and not _takes(annotation, bool)


def _takes(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_takes(part, kind) for part in get_args(annotation))


def _as_word(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_word(one) for one in value]
    return str(value).lower() if isinstance(value, bool) else value
