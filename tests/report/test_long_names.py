"""Tables at 80 columns whose rows have names of 60 characters."""

import io

import pytest
from rich.console import Console

from lowmem_spin.report.grid import Grid, broken

NAMES = [f"qwen2.5_1.5b_alpha-alpha{alpha}-history2-learning_rate5e-05-r16" for alpha in ("0.95", "0.5")]


def shown(grid: Grid, width: int = 80, title: str = "") -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(grid.table(title))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "grid",
    [
        Grid(["run", "state", "best policy", "size"], [[n, "finished", "iterate 1: exact 98.6", "1.0 MB"] for n in NAMES], 1),
        Grid(["run", "seeds", "match", "best", "KL"], [[n, "3", "97.1 ±0.7", "the best", "1.32"] for n in NAMES], 2),
    ],
)
def test_a_long_name_is_broken_between_its_parts_and_pushes_nothing_out(grid: Grid) -> None:
    lines = shown(grid)
    assert all(len(line) <= 80 for line in lines)
    assert sum("run " in line for line in lines) == 1  # one table, no second part below it
    pieces = [line.split("  ")[0].strip() for line in lines]
    text = "".join(pieces)
    assert all(name in text for name in NAMES)
    assert all(
        piece == name or piece.endswith("-") or name.endswith(piece) for name in NAMES for piece in pieces if piece in name
    )
    for number in ("97.1 ±0.7", "1.32", "1.0 MB"):
        assert any(number in line for line in lines) == any(number in row for row in grid.rows)


def test_a_title_is_broken_only_where_the_terminal_ends() -> None:
    grid, title = Grid(["policy", "gain"], [["base", "+0.1"]]), "Held-out results, ± 95% interval; gain over the base"
    assert shown(grid, title=title)[0].strip() == title
    assert max(map(len, shown(grid, 30, title))) <= 30 and " ".join(" ".join(shown(grid, 30, title)).split()).startswith(title)


def test_a_name_is_whole_where_there_is_room_and_no_part_is_broken() -> None:
    assert broken(NAMES[0], 100) == NAMES[0]
    lines = broken(NAMES[0], 24).split("\n")
    assert lines == ["qwen2.5_1.5b_alpha-", "alpha0.95-history2-", "learning_rate5e-05-r16"]
    assert broken("fictitious play with history", 18) == "fictitious play\nwith history"
    assert broken("x" * 30, 10) == "x" * 30  # which the terminal folds
    assert broken("", 10) == ""
