"""An end to what may not end by itself: a stranger's template that has met the one row it loops over."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lowmem_spin.common.errors import InputError


@contextmanager
def within(seconds: float, refusal: str) -> Iterator[None]:
    """Refuse what takes longer than so many seconds of this process's computing.

    Python's own code is ended, one long call into C is not. Only Unix has such a clock, and only the main thread hears it;
    elsewhere there is no limit.

    Raises:
        InputError: the refusal.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    running = True

    def ring(number: int, frame: FrameType | None) -> None:
        if running:  # else it rang between the end and the stopping of the clock
            raise InputError(refusal)

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
