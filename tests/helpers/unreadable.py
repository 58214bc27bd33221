"""A file that a real system does not let be read, without a broken disk."""

import errno
from pathlib import Path

import pytest


def answering_eio() -> Path:
    """A file of 4096 bytes, by its status, whose reading is EIO: the kernel has one for each device that never sleeps."""
    for path in Path("/sys/devices").rglob("power/autosuspend_delay_ms"):
        try:
            path.read_bytes()
        except OSError as error:
            if error.errno == errno.EIO:
                return path
    pytest.skip("this system has no file whose reading is EIO")
