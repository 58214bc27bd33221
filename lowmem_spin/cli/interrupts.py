"""Ctrl-C, wherever it finds a game."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lowmem_spin.common.display import Display


@contextmanager
def ctrl_c(display: Display) -> Iterator[None]:
    """Have Ctrl-C interrupt what a display shows; nothing in a thread that is not the main one, as that gets no signals.

    Where Python drops the interrupt, inside a destructor, it prints a traceback. The display raises it again at the next
    batch, so nobody needs to see that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, hook = signal.signal(signal.SIGINT, display.interrupt), sys.unraisablehook
    sys.unraisablehook = lambda dropped: None if issubclass(dropped.exc_type, KeyboardInterrupt) else hook(dropped)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, handler)
