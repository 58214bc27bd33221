"""What no run uses, as a table, and what became of it."""

from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError, printable
from lowmem_spin.runner import gc
from lowmem_spin.store.store import Store

LONGEST = 40  # rows of the table; the rest is one line


def show_unused(root: Path, top: Path, delete: bool, aside: bool, display: Display) -> None:
    """Print what in the store at `root` no run below `top` uses, and with `delete` free it.

    Raises:
        InputError: no store, or no run, is there; or a run does not read, so that it might use anything.
    """
    if not (root / "FORMAT").is_file():
        raise InputError(f"--store: {str(root)!r} is no store; give the output.store of your recipes")
    store = Store(root, display.log)
    folders = gc.run_folders(top, root)
    if not folders:
        raise InputError(
            f"--runs: no run below {str(top)!r}, so all of {str(root)!r} is unused; delete that folder if you mean it"
        )
    try:
        items = gc.unused(root, gc.used_by(folders))
    except InputError as error:
        raise InputError(f"{error}; until it reads, nothing is freed") from None
    display.log(f"{len(folders)} runs below {top} use {_bytes(gc.size_of(root) - sum(item.size for item in items))} of {root}")
    if not items:
        display.log("nothing is unused")
        return
    display.console.print(_table(items))
    doomed = [item for item in items if aside or item.kind != "aside"] if delete else []
    freed = 0
    for item, gone in gc.collect(store, doomed):
        freed += item.size if gone else 0
        if not gone:
            display.log(f"kept {item.path}: a process is computing it", "yellow")
    display.log(f"freed {_bytes(freed)}" if delete else "nothing is freed without --delete")
    if delete and len(doomed) < len(items):
        display.log("what was set aside is kept without --aside")


def _table(items: list[gc.Unused]) -> Table:
    table = Table(title="Used by no run", box=box.SIMPLE_HEAD)
    table.add_column("kind", no_wrap=True)
    table.add_column("name", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for item in items[:LONGEST]:
        table.add_row(item.kind, escape(printable(item.path.name)), _bytes(item.size))
    rest = items[LONGEST:]
    if rest:
        table.add_row("", f"and {len(rest)} smaller ones", _bytes(sum(item.size for item in rest)))
    table.add_row("", "all", _bytes(sum(item.size for item in items)), style="bold")
    return table


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"
