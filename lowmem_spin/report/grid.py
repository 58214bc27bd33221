"""Results as tables of text: the same cells for the page, for Markdown and for the terminal."""

import html
import re
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from lowmem_spin.common.errors import printable


@dataclass(frozen=True)
class Grid:
    """A table of text: the first `names` columns name a row, the rest are numbers."""

    headings: list[str]
    rows: list[list[str]]
    names: int = 1

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
                f"<{tag} style='text-align:{'left' if place < self.names else 'right'}'>{cell}</{tag}>"
                for place, cell in enumerate(row)
            )
            + "</tr>"
            for tag, row in zip(["th"] + ["td"] * len(self.rows), rows, strict=True)
        ]
        title = html.escape(printable(caption))
        return f"<table><caption>{title}</caption><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"

    def table(self, title: str) -> Table:
        """For a terminal; a heading may have several lines."""
        table = Table(title=escape(printable(title)), box=box.SIMPLE_HEAD)
        table.show_edge, table.padding = False, (0, 1, 0, 0)  # type: ignore[assignment]
        for place, heading in enumerate(self.headings):
            lines = "\n".join(escape(printable(line)) for line in heading.split("\n"))
            word = max(map(len, heading.split()), default=0)
            table.add_column(lines, justify="left" if place < self.names else "right", no_wrap=place == 0, min_width=word)
        for row in self.rows:
            table.add_row(*(escape(printable(cell)) for cell in row))
        return table


def escape_markdown(text: str) -> str:
    """One line of text that means nothing to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]|~#$!])", r"\\\1", html.escape(printable(text), quote=False))
