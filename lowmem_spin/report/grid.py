"""Results as tables of text: the same cells for the page, for Markdown and for the terminal."""

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lowmem_spin.common.errors import printable

NARROW = 24  # columns that a long name has at least; a shorter one is broken only where two thirds of the terminal are too few


@dataclass(frozen=True)
class Grid:
    """A table of text: the first `names` columns name a row, the `texts` after them are words, the rest are numbers."""

    headings: list[str]
    rows: list[list[str]]
    names: int = 1
    parted: int | None = None  # the row below which a terminal has a space
    texts: int = 0

    def markdown(self) -> str:
        """As a GitHub table; text that is not ours cannot break out of its cell."""
        rule = ["---"] * self.names + ["---:"] * (len(self.headings) - self.names)
        cells = [[escape_markdown(cell) for cell in row] for row in [self.headings, *self.rows]]
        return "".join(f"| {' | '.join(row)} |\n" for row in [cells[0], rule, *cells[1:]])

    def html(self, caption: str) -> str:
        """As a table of HTML; text that is not ours stays text."""
        rows = [[html.escape(printable(cell.replace("\n", " "))) for cell in row] for row in [self.headings, *self.rows]]
        head, *body = [
            "<tr>"
            + "".join(
                f"<{tag} style='text-align:{'left' if column < self.names else 'right'}'>{cell}</{tag}>"
                for column, cell in enumerate(row)
            )
            + "</tr>"
            for tag, row in zip(["th"] + ["td"] * len(self.rows), rows, strict=True)
        ]
        title = html.escape(printable(caption))
        return f"<table><caption>{title}</caption><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"

    def table(self, title: str) -> "TerminalTable":
        """For a terminal of any width; a heading may have several lines."""
        return TerminalTable(title, self)


@dataclass(frozen=True)
class TerminalTable:
    """A grid in a terminal: no word of a number is cut. What does not fit beside the names goes below, under them again."""

    title: str
    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text | str]:
        """See rich's protocol."""
        width, names = options.max_width, self.grid.names
        columns = [[heading, *(row[column] for row in self.grid.rows)] for column, heading in enumerate(self.grid.headings)]
        longest_name = max(8, (2 * width // 3) // names)  # a longer one is broken
        text = names + self.grid.texts  # words need not stand one below the other
        widest = [longest_name if column < names else width // 6 if column < text else 0 for column in range(len(columns))]
        least = [min(_line(column), limit) for column, limit in zip(columns, widest, strict=True)]
        least = [
            min(few, max(NARROW, _piece(columns[column]))) if column < names else max(few, _word(columns[column]))
            for column, few in enumerate(least)
        ]
        for number, group in enumerate(_side_by_side(least, names, width)):
            if number:
                yield ""
            sizes = _sizes([columns[column] for column in group], [least[column] for column in group], width)
            above = number == 0 and cell_len(printable(self.title)) > _total(sizes)  # where it need not be broken
            if above:
                yield Text(printable(self.title), style="table.title")
            yield self._part(group, sizes, self.title if number == 0 and not above else "")

    def _part(self, group: Sequence[int], sizes: Sequence[int], title: str) -> Table:
        table = Table(title=escape(printable(title)) or None, box=box.SIMPLE_HEAD)
        table.show_edge, table.padding = False, (0, 1, 0, 0)  # type: ignore[assignment]
        for column, size in zip(group, sizes, strict=True):
            lines = "\n".join(escape(printable(line)) for line in self.grid.headings[column].split("\n"))
            table.add_column(
                lines, justify="left" if column < self.grid.names + self.grid.texts else "right", width=size, overflow="fold"
            )
        for number, row in enumerate(self.grid.rows):
            cells = [
                broken(printable(row[column]), size) if column < self.grid.names else printable(row[column])
                for column, size in zip(group, sizes, strict=True)
            ]
            table.add_row(*map(escape, cells), end_section=number == self.grid.parted)
        return table


def _pieces(name: str) -> list[str]:
    """A name where it may be broken: at spaces, and behind what joins its parts, as in learning_rate5e-05-r16."""
    return [piece for piece in re.split(r"(?<=[-_/])(?=[^\W\d_])|(?<= )", name) if piece]


def _piece(column: Sequence[str]) -> int:
    return max(
        cell_len(piece.rstrip(" "))
        for cell in column
        for line in cell.split("\n")
        for piece in _pieces(printable(line)) or [""]
    )


def broken(name: str, width: int) -> str:
    """A name in lines of at most `width`, broken between its parts; a part that is longer stays whole."""
    lines = [""]
    for piece in _pieces(name):
        if lines[-1] and cell_len(lines[-1] + piece.rstrip(" ")) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def _word(column: Sequence[str]) -> int:
    return max((cell_len(printable(word)) for cell in column for word in cell.split()), default=0)


def _line(column: Sequence[str]) -> int:
    return max(cell_len(printable(line)) for cell in column for line in cell.split("\n"))


def _total(sizes: Iterable[int]) -> int:
    """With two spaces between columns, and one behind the last."""
    return sum(size + 2 for size in sizes) - 1


def _side_by_side(least: Sequence[int], names: int, width: int) -> list[list[int]]:
    """Which columns stand beside each other; the names are in all of these groups."""
    naming = list(range(names))
    groups = [[*naming]]
    for column in range(names, len(least)):
        if groups[-1] != naming and _total(least[i] for i in (*groups[-1], column)) > width:
            groups.append([*naming])
        groups[-1].append(column)
    return groups


def _sizes(columns: Sequence[Sequence[str]], least: Sequence[int], width: int) -> list[int]:
    """As wide as each column would be, less what is too much: the widest give way first, as far as their words let them."""
    sizes = [_line(column) for column in columns]
    while _total(sizes) > width:
        room = [size if size > few else 0 for size, few in zip(sizes, least, strict=True)]
        if not any(room):
            break
        sizes[room.index(max(room))] -= 1
    return sizes


def escape_markdown(text: str) -> str:
    """One line of text that means nothing to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]|~#$!])", r"\\\1", html.escape(printable(text), quote=False))
