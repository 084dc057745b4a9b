"""Adopt, reap and end descendants (Linux only)."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def adopt_orphans() -> None:
    """From now on whatever descends from this process, and loses its parent, becomes its child: so nothing that is
    started here is ever lost sight of. Only Linux can.

    Not where there are children already, of a shell that became this process: their orphans are not ours to end.
    """
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)


def bury_orphans(child: int) -> None:
    """Take the exit of the adopted that have ended, as init would: they may be waited for to be gone. ``child`` itself,
    which is not reaped yet, is left to who has started it."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(ChildProcessError):  # there is none at all
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != child:
            os.waitpid(ended.si_pid, 0)


def end_with_parent() -> None:
    """Have this process asked to leave when its parent ends, however that comes. Only Linux can."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
