"""What no run uses, as a table, and what became of it."""

import time
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError, printable
from lowmem_spin.common.files import size_in_words
from lowmem_spin.runner import gc
from lowmem_spin.store.store import Store

LONGEST = 40  # rows of the table; the rest is one line


def show_unused(root: Path, top: Path, delete: bool, aside: bool, grace_hours: float, display: Display) -> None:
    """Print what in the store at `root` no run below `top` uses, nor any other that the store knows of, and with `delete` free
    it. What was written less than `grace_hours` ago is left alone.

    Raises:
        InputError: no store, or no run, is there; or a run does not read, so that it might use anything.
    """
    if not (root / "FORMAT").is_file():
        raise InputError(f"--store: {str(root)!r} is no store; give the output.store of your recipes")
    store = Store(root, display.log)
    found, used_by = _unused(store, top, delete, display)
    young = [item for item in found if grace_hours and item.written > time.time() - 3600 * grace_hours]
    items = sorted((item for item in found if item not in young), key=lambda item: (-item.size, item.path))
    display.log(f"{used_by} use {size_in_words(gc.size_of(root) - sum(item.size for item in found))} of {root}")
    size = size_in_words(sum(item.size for item in young))
    waiting = f"{size} is unused but younger than {grace_hours:g} h; --grace-hours 0 {'deletes' if delete else 'shows'} it"
    if young and items:
        display.log(waiting)
    if not items:
        display.log("nothing is unused" if not young else f"nothing {'deleted' if delete else 'to delete'}: {waiting}")
        return
    display.console.print(_table(items))
    doomed = [item for item in items if aside or item.kind != "aside"] if delete else []
    if doomed and store.users.anyone():
        doomed = [item for item in doomed if item.kind != "leftover"]
        display.log("leftovers stay: a game is being played, and they may be its own", "yellow")
    freed = 0
    for item, gone in gc.collect(store, doomed):
        freed += item.size if gone else 0
        if not gone:
            display.log(f"kept {item.path}: a process is computing it", "yellow")
    display.log(f"freed {size_in_words(freed)}" if delete else "nothing is freed without --delete")
    if delete and not aside and any(item.kind == "aside" for item in items):
        display.log("what was set aside is kept without --aside")


def _unused(store: Store, top: Path, delete: bool, display: Display) -> tuple[list[gc.Unused], str]:
    """What no run uses, young or old, and which runs were asked; with `delete`, runs that are gone are forgotten."""
    folders = gc.run_folders(top, store.root)
    if not folders:
        why = f"so all of {str(store.root)!r} is unused; delete that folder if you mean it"
        for user in store.users.known():
            why = f"though the store knows of one at {str(user.folder)!r}; give the folder with your runs"
        raise InputError(f"--runs: no run below {str(top)!r}, {why}")
    try:
        others = gc.known_runs(store, folders, top)
        used = gc.used_by([*folders, *others.folders])
    except InputError as error:
        raise InputError(f"{error}; nothing is freed until this file can be read") from None
    for user in others.kept:
        used.add(user.keys)
    for line in others.lines():
        display.log(line, "yellow")
    for user in others.gone if delete else ():
        user.record.unlink(missing_ok=True)
    found = gc.unused(store.root, used)
    elsewhere = f" and {len(others.folders)} elsewhere" if others.folders else ""
    return [*found, *gc.leftovers(store, found)], f"{len(folders)} run{'s' * (len(folders) > 1)} below {top}{elsewhere}"


def _table(items: list[gc.Unused]) -> Table:
    table = Table(title="Used by no run", box=box.SIMPLE_HEAD)
    table.add_column("kind", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for item in items[:LONGEST]:
        table.add_row(item.kind, escape(printable(item.path.name)), size_in_words(item.size))
    rest = items[LONGEST:]
    if rest:
        table.add_row("", f"and {len(rest)} smaller ones", size_in_words(sum(item.size for item in rest)))
    table.add_row("", "all", size_in_words(sum(item.size for item in items)), style="bold")
    return table
