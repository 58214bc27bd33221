"""The columns of a file: which layout they are, what is read of them, and what to write where they are none that is known."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.yaml_text import YAMLTextError, read_yaml
from lowmem_spin.data.column_layouts import (
    ALIKE,
    ANSWERED,
    PREFERENCES,
    PROMPTS,
    QUESTIONS,
    Layout,
    Row,
    alike,
    find_layout,
    has,
    nearest,
    unread,
)
from lowmem_spin.data.readers import Unusable

NAMED, SAID = 20, 5  # columns that a line lists, of a file that is refused or read
WIDTH = 40  # characters of their names
NO_OBJECT = "that are no objects with columns"
NO_ROWS = ("that are not JSON", NO_OBJECT)


def layout_of(
    head: Sequence[tuple[str, Any]], layouts: Sequence[Layout], renamed: dict[str, str], named: str, needs_answers: str | None
) -> Layout:
    """What the file is read as, by its first rows."""
    rows = [row for _, row in head if isinstance(row, dict)]
    if not rows:
        place, row = next(iter(head))
        reason = row.reason if isinstance(row, Unusable) else NO_OBJECT
        needed = "; needed: one object with columns on each line, or one array of such objects" if reason in NO_ROWS else ""
        raise InputError(f"{named} has rows {reason} and no other (first: {place}){needed}")
    columns = _columns(head)
    for ours, theirs in renamed.items():
        if theirs not in columns:
            raise InputError(f"{named} has no column {theirs!r}, which data.columns.{ours} names; it has {_listed(columns)}")
    if renamed:
        rows = [with_our_names(row, renamed) for row in rows]
    layout = find_layout(rows, layouts)
    if layout is not None:
        return layout
    if renamed:
        needed = ", or ".join(dict.fromkeys(" and ".join(one.columns) for one in layouts[:4]))
        raise InputError(f"{named}: data.columns names {' and '.join(renamed)}; needed: {needed}")
    why = "no layout that is known"
    names = ("prompt", "completion")
    if layouts is PREFERENCES:
        answered = find_layout(rows, ANSWERED)
        if answered is not None and not all(
            max(alike(name, one) for one in columns) >= ALIKE for name in PREFERENCES[0].columns
        ):
            has_only = f"{named} has {' and '.join(answered.columns)} and no other answer"
            needed = "game.algorithm offline needs the columns chosen and rejected"
            raise InputError(f"{has_only}; {needed}; for this file set game.algorithm alpha-spin")
        why, names = (
            "not the better and the worse answer that game.algorithm offline learns from",
            ("prompt", "chosen", "rejected"),
        )
    elif find_layout(rows, PROMPTS) is not None:
        why = f"no answers that are known as such, which {needs_answers} needs"
    elif len(columns) == 1 and any(sign in columns[0] for sign in ";\t|"):
        raise InputError(f"{named} has one column, {_listed(columns)}; separate columns by commas, or in a .tsv file by tabs")
    elif len(rows) == len(columns) == 1 and isinstance(rows[0][columns[0]], list):
        raise InputError(f"{named} is one object with all rows in its {columns[0]!r}; save that list by itself")
    elif columns == ["text"]:
        why = "in which nothing says what is asked and what is answered"
    near = nearest(columns, layouts)
    similar = f"; the nearest layout is {' and '.join(near.columns)}" if near is not None else ""
    said = ", ".join(f"{name}: {_yaml(column)}" for name, column in zip(names, _guessed(columns, names), strict=True))
    raise InputError(
        f"{named} has the columns {_listed(columns)}, {why}{similar}: rename the columns, or name them, for instance "
        f"data.columns={{{said}}}"
    )


def _yaml(column: str) -> str:
    """A name as it can be written in a recipe."""
    try:
        plain = read_yaml(f"{{name: {column}}}") == {"name": column}
    except YAMLTextError:
        plain = False
    return column if plain else json.dumps(column, ensure_ascii=False)


def _guessed(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """For each name the column that may be it, or dots. As many columns as names are taken to be in the same order."""
    if len(columns) == len(names) and all(
        names.index(column) == columns.index(column) for column in columns if column in names
    ):
        return [column[:WIDTH] for column in columns]
    likest = [max(columns, key=lambda column: alike(name, column), default="") for name in names]
    return [column[:WIDTH] if alike(name, column) >= ALIKE else "..." for name, column in zip(names, likest, strict=True)]


def describe_layout(head: Iterable[tuple[str, Any]], layout: Layout, read: set[str], renamed: bool, for_game: bool) -> str:
    """What a file is read as, with the columns that are not looked at, for the line that reports the rows."""
    given = [(place, {name: row[name] for name in row if has(row, name)}) for place, row in head if isinstance(row, dict)]
    columns = [column for column in _columns(given) if column not in read]
    left = columns if renamed else unread(columns, layout)
    question = next((name for name in QUESTIONS if name in columns), None) if layout.columns == ("chosen",) else None
    name = layout.name if question is None or renamed else f"{question} and {layout.name}"
    worse = next(
        (pair.columns[1] for pair in PREFERENCES if layout.columns == pair.columns[:1] and pair.columns[1] in left), None
    )
    if worse is not None and for_game:
        left.remove(worse)
        name += f" ({worse!r} is not used: for DPO on these pairs set game.algorithm=offline)"
    more = f" and {len(left) - SAID} more" if len(left) > SAID else ""
    named = ", ".join(column[:WIDTH] or "one without a name" for column in left[:SAID])
    return name + (f" (its other columns are not read: {named}{more})" if left else "")


def _columns(head: Iterable[tuple[str, Any]]) -> list[str]:
    return list(dict.fromkeys(column for _, row in head if isinstance(row, dict) for column in row))


def _listed(columns: Sequence[str]) -> str:
    named = [column if len(column) <= WIDTH else f"{column[:WIDTH]}..." for column in columns[:NAMED]]
    return str(named) + (f" and {len(columns) - NAMED} more" if len(columns) > NAMED else "")


def with_our_names(row: Row, renamed: dict[str, str]) -> Row:
    """The columns that data.columns names, as layouts call them."""
    return {ours: row[theirs] for ours, theirs in renamed.items() if theirs in row}
