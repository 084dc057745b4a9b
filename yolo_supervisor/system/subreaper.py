"""Adopt, reap and end descendants (Linux only)."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def adopt_orphans() -> bool:
    """Become a child subreaper: orphaned descendants become children of this process (Linux).

    A process that has children already, because a shell replaced itself by it, does not, and returns False: those
    children's orphans are not ours to end.
    """
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        return True
    return False


def bury_orphans(child: int) -> None:
    """Reap exited orphans, as init would, except ``child``.

    Other processes may wait for the orphans to disappear. ``child`` is reaped by its starter.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(ChildProcessError):  # there is no child
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != child:
            os.waitpid(ended.si_pid, 0)


def end_with_parent() -> None:
    """Have SIGTERM sent to this process when its parent ends, however it ends (Linux only)."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
